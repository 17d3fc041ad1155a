"""Hooks of mkdocs: pages that are generated from the code, and links that lead out of `docs/`."""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

from ijepa_ds import cli
from ijepa_ds.config import command

REPO = Path(__file__).resolve().parents[1]


def help_text(words: str) -> str:
    """What `ijepa-ds WORDS --help` prints, 100 columns wide."""
    os.environ["COLUMNS"] = "100"
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        cli.build_parser(words).parse_args(["--help"])
    return out.getvalue()


def commands() -> str:
    """The page of all verbs: a section a purpose, a heading a verb, its help text."""
    lines = ["# Commands", "", "Every verb of `ijepa-ds` with its options, as `--help` prints them. Training is started with"]
    lines += ["`deepspeed` or `torchrun` ([running](../running.md)).", "", "```text", cli.overview(), "```"]
    for purpose, verbs in cli.GROUPS.items():
        lines += ["", f"## {purpose.capitalize()}"]
        for words, verb in verbs.items():
            page = verb.page.removeprefix("docs/")
            lines += ["", f"### ijepa-ds {words}", "", f"{verb.help.capitalize()}: [{page}](../{page}).", ""]
            lines += ["```text", help_text(words).rstrip(), "```"]
    return "\n".join([*lines, ""])


def configuration() -> str:
    """The page of all configuration keys."""
    head = "Every key of a run's YAML, generated from its schema. [Configuration](../configuration.md) explains the file.\n\n"
    return f"# Configuration keys\n\n{head}{command.tables()}"


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    for name, text in {"reference/commands.md": commands(), "reference/configuration.md": configuration()}.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Name files outside `docs/` instead of linking to them: the site does not hold them."""
    if "/" in page.file.src_uri:
        return markdown
    return re.sub(r"\[([^\]]*)\]\(\.\./([^)]*)\)", lambda link: f"`{link[2]}`", markdown)
