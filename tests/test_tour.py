"""The notebook `docs/tour.ipynb` runs from its first cell to its last, and shows pictures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.waiting import limit

REPO = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_tour_runs_and_shows_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    book = nbformat.read(REPO / "docs" / "tour.ipynb", as_version=4)
    runner = client.NotebookClient(book, timeout=limit(240), resources={"metadata": {"path": str(tmp_path)}})
    runner.execute()
    kinds = [kind for cell in book.cells for output in cell.get("outputs", ()) for kind in output.get("data", ())]
    assert kinds.count("image/png") >= 6
