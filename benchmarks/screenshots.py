"""Screenshots for the documentation: `python -m benchmarks.screenshots [terminals] [tensorboard] [pages]`.

Terminals are real output of real commands in a pseudo terminal, drawn by rich as SVG. TensorBoard, the README and the site
are opened in a headless Chromium (`apt-get install chromium`) at 1280 and 400 pixels. The run that is shown is made in a
temporary folder. It takes some minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import markdown
from PIL import Image
from rich.console import Console
from rich.text import Text

from tests.terminals import run_in

REPOSITORY = Path(__file__).resolve().parents[1]
IMAGES = REPOSITORY / "docs" / "images"
COLUMNS = 112
WIDTHS = (1280, 400)
STYLE = """body { font: 16px/1.5 sans-serif; color: #1f2328; max-width: 900px; margin: 24px auto; padding: 0 24px }
img { max-width: 100% } pre, code { font: 13.5px monospace; background: #f6f8fa } pre { padding: 12px; overflow: auto }
table { border-collapse: collapse; display: block; overflow: auto } th, td { border: 1px solid #d0d7de; padding: 5px 11px }"""


def _program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def _environment() -> dict[str, str]:
    given = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS")}
    return given | {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


def shot(name: str, command: str, place: Path, until: str = "") -> None:
    """Run a command in a terminal, and write what is on it as an SVG.

    Args:
        name: of the SVG.
        command: as it is typed.
        place: the folder it runs in.
        until: a pattern; the picture shows the terminal at its last match instead of at the end.
    """
    words = shlex.split(command)
    _, output = run_in(COLUMNS, [_program(words[0]), *words[1:]], _environment(), place, 1200)
    if until:
        *_, last = re.finditer(until, output)
        output = output[: output.find("\r", last.end())]
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in output.strip().split("\n")]
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ {command}", "bold"))
    for line in lines:
        console.print(Text.from_ansi(line.replace(str(place), "~").replace(str(Path.home()), "~")))
    drawn = console.export_svg(title="ijepa_ds")
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)  # no request to a font server
    (IMAGES / f"terminal_{name}.svg").write_text(drawn, encoding="utf-8")


def terminals(place: Path) -> None:
    """The output of three verbs."""
    quiet = "--log_level critical --num_gpus 2 --module ijepa_ds.train --config configs/quickstart.yaml"
    where = "data.source=images run.dir=run optimization.steps=300"
    shot("init", "ijepa-ds init mine --data images", place)
    command = f"deepspeed {quiet} --deepspeed_config ds_configs/zero2.json {where}"
    shot("train", command, place, r"pretraining [^\r]* (6|7)\d%")
    shot("eval", "ijepa-ds eval knn --checkpoint run --train images --test images --baseline untrained --out run/eval", place)


def browse(address: str, width: int, height: int, path: Path, profile: Path, milliseconds: int = 4000) -> None:
    """Write what a browser shows as a PNG of at most 256 colours."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        raise SystemExit("no Chromium: apt-get install chromium")
    flags = "--headless --no-sandbox --disable-gpu --hide-scrollbars --no-first-run --disable-background-networking".split()
    size = [f"--window-size={width},{height}", f"--user-data-dir={profile}", f"--virtual-time-budget={milliseconds}"]
    subprocess.run([browser, *flags, *size, f"--screenshot={path}", address], check=True, capture_output=True, timeout=300)
    Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def tensorboard(place: Path) -> None:
    """The dashboard of the run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", "run", "--port", str(port)]
    server = subprocess.Popen(command, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}/"
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}data/runs")
                break
            except OSError:
                time.sleep(0.5)
        browse(f"{address}?darkMode=false#timeseries", 1280, 900, IMAGES / "tensorboard.png", place / "profile", 20000)
    finally:
        server.terminate()
        server.wait()


def pages(place: Path) -> None:
    """The README, as a repository shows it, and the first page of the site."""
    lines = (REPOSITORY / "README.md").read_text("utf-8").splitlines()
    local = "\n".join(line for line in lines if not re.match(r"!\[[^]]*\]\(https?:", line))  # badges need the network
    text = markdown.markdown(local, extensions=["tables", "fenced_code"])
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><base href="{REPOSITORY.as_uri()}/">'
    (place / "readme.html").write_text(f"<!doctype html>{head}<style>{STYLE}</style>{text}", encoding="utf-8")
    subprocess.run([sys.executable, "-m", "mkdocs", "build", "-q", "-d", str(place / "site")], cwd=REPOSITORY, check=True)
    for width in WIDTHS:
        for name, page in (("readme", place / "readme.html"), ("site", place / "site" / "index.html")):
            browse(page.as_uri(), width, 900, IMAGES / f"{name}_{width}.png", place / "profile")


def main(argv: Sequence[str] | None = None) -> int:
    """Take the screenshots that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.screenshots", description=__doc__)
    parser.add_argument("what", nargs="*", help="terminals, tensorboard, pages; default: all")
    parser.add_argument("--place", type=Path, help="a folder to work in, which is kept; default: a temporary one")
    arguments = parser.parse_args(argv)
    unknown = set(arguments.what) - {"terminals", "tensorboard", "pages"}
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: expected terminals, tensorboard or pages")
    with tempfile.TemporaryDirectory() as temporary:
        place = arguments.place or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        what = arguments.what or ["terminals", "tensorboard", "pages"]
        if "terminals" in what:
            images = "data objects --out images --num 1200 --size 64".split()
            subprocess.run([_program("ijepa-ds"), *images], cwd=place, check=True, env=_environment())
            terminals(place)
        if "tensorboard" in what:
            tensorboard(place)
        if "pages" in what:
            pages(place)
    return 0


if __name__ == "__main__":
    sys.exit(main())
