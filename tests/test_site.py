"""The documentation site builds without a warning and without a network, and its reference pages follow the code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ijepa_ds import cli
from tests.waiting import limit

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: a dead link, a missing anchor or a page that is not in the navigation is an error."""
    pytest.importorskip("mkdocs")
    out = tmp_path_factory.mktemp("site")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)],
        cwd=REPO,
        env={**os.environ, **nowhere, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=limit(200),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_every_verb_is_on_the_page_of_commands(site: Path) -> None:
    page = (site / "reference" / "commands" / "index.html").read_text(encoding="utf-8")
    for words in cli.VERBS:
        assert f"ijepa-ds {words}</" in page or f"ijepa-ds {words}<a" in page, words
    assert "--max-train" in page  # the help texts are there, not only the names


def test_keys_and_python_names_are_in_the_reference(site: Path) -> None:
    keys = (site / "reference" / "configuration" / "index.html").read_text(encoding="utf-8")
    assert "optimization.max_micro_batch" in keys
    names = (site / "api" / "index.html").read_text(encoding="utf-8")
    for name in ("load_encoder", "ShardedEMA", "build_sampler"):
        assert name in names


def test_pages_load_nothing_from_a_font_server(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert "fonts.g" not in page.read_text(encoding="utf-8"), page
