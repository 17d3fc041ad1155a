from pathlib import Path

import pytest

from tests import house


def test_the_drawing_of_packages_is_up_to_date(repository: Path) -> None:
    page = (repository / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawing = house.mermaid(house.read_graph(repository / house.PACKAGE))
    assert house.updated(page, drawing) == page, "run `python -m tests.house --write`"


def test_an_arrow_that_follows_from_a_longer_path_is_left_out() -> None:
    graph = {"a": {"b", "c", "d"}, "b": {"c"}, "c": {"d"}, "d": set()}
    assert house.reduced(graph) == {"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": set()}
    assert house.reduced({"a": {"b", "c"}, "b": set(), "c": set()})["a"] == {"b", "c"}


def test_imports_between_packages_are_read(tmp_path: Path) -> None:
    for name, source in {
        "config/checks": "from ijepa_ds.masks import sampler",
        "config/__init__": "from ijepa_ds.config import checks",
        "masks/sampler": "def f():\n  from ijepa_ds.counter import fold",
        "masks/__init__": "import torch",
        "counter": "",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text(source)
    graph = house.read_graph(tmp_path)
    assert {node: others for node, others in graph.items() if others} == {"config": {"masks"}, "masks": {house.GROUND}}


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="expected the markers"):
        house.updated("text", "flowchart TB")
