"""A headless Chromium that opens local pages for tests."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.waiting import limit

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --enable-logging=stderr"
).split()
_MEASURE = """<script>addEventListener("load", () => { const images = [...document.images];
document.title = JSON.stringify({broken: images.filter(i => !i.naturalWidth).length, images: images.length,
scroll: document.documentElement.scrollWidth, width: innerWidth}); });</script>"""


def chromium() -> str:
    """Its path; without it the test is skipped, and says so."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not found:
        pytest.skip("NO CHROMIUM: the page was not opened in a browser (apt-get install chromium)")
    return found


def open_page(address: str, folder: Path, width: int, *more: str) -> str:
    """What the page's document is after loading; an error in its console fails the test."""
    profile = ["--user-data-dir=" + str(folder / f"profile{width}"), f"--window-size={width},900"]
    command = [chromium(), *FLAGS, *profile, *more, "--dump-dom", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit(600), check=True)
    problems = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    assert not problems, problems
    return done.stdout


def measure(page: Path, folder: Path, width: int) -> dict[str, int]:
    """Open a copy of a page that measures itself: broken, images, scroll (its width), width (the window's)."""
    copy = page.with_name(f"measured-{page.name}")
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", _MEASURE + "</body>"), encoding="utf-8")
    try:
        text = open_page(copy.as_uri(), folder, width, "--virtual-time-budget=5000")
    finally:
        copy.unlink()
    found = re.search(r"<title>(\{.*?\})</title>", text)
    assert found, text[:500]
    return json.loads(found[1].replace("&quot;", '"'))
