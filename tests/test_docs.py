"""The documentation matches the repository: links, files, modules, commands, options and configuration keys exist."""

from __future__ import annotations

import contextlib
import functools
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ijepa_ds import cli

REPO = Path(__file__).resolve().parents[1]
PAGES = sorted([*REPO.glob("*.md"), *(REPO / "docs").glob("*.md")])
WIDTH = 120
MOST_PROSE = 150
EXAMPLE_FILES = {"configs/base.yaml", "configs/in1k_vith14_ep300.yaml"}  # an example of a user's file; a published one
FILE_TYPES = {"json", "yaml"}  # `ijepa_ds.schema.json` is no module
ROOTS = "ijepa_ds|tests|configs|ds_configs|launch|docs|benchmarks"

pytestmark = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def split(page: Path) -> tuple[list[tuple[int, str]], list[str]]:
    """Numbered lines of prose, and the lines of fenced code with continued lines joined."""
    prose: list[tuple[int, str]] = []
    code: list[str] = []
    fenced = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            prose.append((number, line))
        elif code and code[-1].endswith("\\"):
            code[-1] = code[-1][:-1] + line.strip()
        else:
            code.append(line)
    assert not fenced, f"{page.name}: an unclosed code block"
    return prose, code


def snippets(page: Path) -> list[str]:
    """All code of a page: inline spans and lines of code blocks without their comments."""
    prose, code = split(page)
    spans = re.findall(r"`([^`]+)`", "\n".join(line for _, line in prose))
    return [span.replace("\n", " ") for span in spans] + [re.sub(r"(^|\s)#.*", "", line) for line in code]


def found(page: Path, pattern: str) -> Iterator[re.Match[str]]:
    """Matches of `pattern` in a page's code."""
    for snippet in snippets(page):
        yield from re.finditer(pattern, snippet)


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    titles = [re.sub(r"^#+ ", "", line) for _, line in split(page)[0] if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def source_of(words: list[str]) -> str:
    """Text of the module of a dotted name; empty if there is none."""
    path = REPO.joinpath(*words)
    files = [path.with_suffix(".py"), path / "__init__.py"]
    return next((file.read_text(encoding="utf-8") or " " for file in files if file.is_file()), "")


@functools.cache
def help_of(*words: str) -> tuple[int, str]:
    """Exit code and output of `ijepa-ds WORDS --help`."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            code = cli.main([*words, "--help"])
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.getvalue()


def test_lines_of_prose_are_short(page: Path) -> None:
    """Rows of tables, pictures and lines that hold nothing but a link may be longer."""
    exempt = re.compile(r"\s*(\||!\[|[-*]? ?(\[[^\]]*\]\()?https?://\S+$)")
    assert not [
        f"{page.name}:{number}: {len(line)} characters"
        for number, line in split(page)[0]
        if len(line) > WIDTH and not exempt.match(line)
    ]


def test_a_page_begins_with_what_the_reader_will_be_able_to_do(page: Path) -> None:
    if page.parent.name != "docs" or page.name in {"LOG.md", "index.md"}:
        pytest.skip("no page of instructions")
    assert page.read_text(encoding="utf-8").splitlines()[2].startswith("With this page you ")


def test_no_page_is_a_wall(page: Path) -> None:
    """Tables, headings and code do not count."""
    lines = [line for _, line in split(page)[0] if line.strip() and not line.startswith(("|", "#"))]
    assert page.name in {"LOG.md", "CHANGELOG.md"} or len(lines) <= MOST_PROSE, f"{page.name}: {len(lines)} lines of prose"


def test_links_lead_somewhere(page: Path) -> None:
    text = "\n".join(line for _, line in split(page)[0])
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name) if name else page
        assert path.exists(), f"{page.name} links to {target}, which does not exist"
        assert not anchor or anchor in anchors(path), f"{page.name} links to {target}; {path.name} has no such heading"


def test_named_files_exist(page: Path) -> None:
    for match in found(page, rf"(?<![\w/.-])(?:{ROOTS})/[\w./*-]*"):
        name = match[0].rstrip(".")
        assert name in EXAMPLE_FILES or any(REPO.glob(name)), f"{page.name} names {name}, which does not exist"


def test_selected_tests_exist(page: Path) -> None:
    """`pytest ... tests/x/test_y.py -k word`: the file has a test or a case of that name."""
    for match in found(page, r"pytest [^;&|]*"):
        word = re.search(r"-k (\w+)", match[0])
        files = [REPO / name for name in re.findall(r"tests/[\w/]+\.py", match[0])]
        if word and files:
            assert any(word[1] in file.read_text(encoding="utf-8") for file in files), f"{page.name}: {match[0]}"


def test_modules_and_names_exist(page: Path) -> None:
    """Read from the sources: nothing is imported."""
    for match in found(page, r"(?:python -m|--module) ((?:ijepa_ds|tests|benchmarks)[\w.]*)"):
        assert source_of(match[1].split(".")), f"{page.name}: there is no module {match[1]}"
    for match in found(page, r"(?<![\w/.-])ijepa_ds(?:\.[a-zA-Z_]\w*)+(?![\w/]|\.\w)"):
        words = match[0].split(".")
        if words[-1] not in FILE_TYPES and not source_of(words):
            defined = rf"(?:def|class|import)\b.*\b{words[-1]}\b|^{words[-1]}\b|^    \"{words[-1]}\": \("
            source = source_of(words[:-1])
            assert source and re.search(defined, source, re.MULTILINE), f"{page.name}: there is no {match[0]}"


def test_verbs_and_options_exist(page: Path) -> None:
    for match in found(page, r"ijepa-ds ([a-z]+)(?: ([a-z]+(?:\|[a-z]+)*))?(?=[\s`.,;|]|$)([^;&]*)"):
        for second in (match[2] or "").split("|"):
            words = (match[1], second) if second else (match[1],)
            code, text = help_of(*words)
            assert code == 0, f"{page.name}: `ijepa-ds {' '.join(words)}` is no command:\n{text}"
        for option in re.findall(r"(?<!\S)--[a-z][\w-]*", re.split(r" -- | > ", match[3])[0]):
            assert re.search(rf"{option}(?![\w-])", text), f"{page.name}: `ijepa-ds {' '.join(words)}` has no option {option}"


def test_configuration_keys_exist(page: Path) -> None:
    """Overrides in commands are keys of the table in docs/configuration.md, which also shows a message about a wrong one."""
    table = (REPO / "docs" / "configuration.md").read_text(encoding="utf-8")
    keys = {"data.sorce", *re.findall(r"^\| `([\w.]+)` \|", table, re.MULTILINE)}
    assert len(keys) > 80, "the table of keys was not found"
    for match in found(page, r"(?<![\w.])((?:run|data|model|masks|optimization|eval)\.[a-z_.]+)="):
        assert match[1] in keys, f"{page.name} sets {match[1]}, which is no key"
