"""The manifest says which file has what, and a reader opens only the files that it needs."""

import json
from pathlib import Path

import pytest
import torch

from ijepa_ds.checkpoint import reader as reading
from ijepa_ds.checkpoint.folder import list_steps
from ijepa_ds.checkpoint.ranges import Ranges, Run, pack
from ijepa_ds.checkpoint.reader import CheckpointReader
from ijepa_ds.checkpoint.writer import prune
from ijepa_ds.errors import CheckpointError
from tests.checkpoint_cases import Range, write


def with_ranges(folder: Path, parts: list[tuple[int, int]]) -> Path:
    """Add `ranges` to the manifest of a checkpoint of `ema/w`; `parts` has (start, elements) of every file."""
    table = Ranges()
    table.update([pack({"ema/w": start}, {"ema/w": torch.empty(numel)}) for start, numel in parts])
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"ranges": table.table()}))
    return folder


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that readers open."""
    names: list[str] = []
    real = reading.safe_open

    def noted(path: Path, framework: str) -> object:
        names.append(path.name)
        return real(path, framework=framework)

    monkeypatch.setattr(reading, "safe_open", noted)
    return names


def test_equal_parts_are_one_run_and_only_needed_files_are_opened(tmp_path: Path, opened: list[str]) -> None:
    values = torch.arange(100.0)
    cuts = list(range(10, 100, 10))
    folder = with_ranges(write(tmp_path, 5, values, cuts), [(start, 10) for start in range(0, 100, 10)])
    assert json.loads((folder / "manifest.json").read_text())["ranges"] == {"ema/w": [[0, 10, 0, 10]]}
    reader = CheckpointReader(folder)
    assert reader.numel("ema/w") == 100 and reader.names("ema") == ["w"] and opened == []
    for start, numel in [(0, 100), (37, 6), (30, 10), (95, 5), (9, 2)]:
        opened.clear()
        reader = CheckpointReader(folder, verify=False)
        assert torch.equal(reader.read("ema", "w", Range(start, numel)), values[start : start + numel])
        first, last = start // 10, (start + numel - 1) // 10
        assert opened == [f"shard_{number:05d}_of_00010.safetensors" for number in range(first, last + 1)]


def test_unequal_parts_and_a_table_that_is_kept(tmp_path: Path) -> None:
    values = torch.arange(20.0)
    folder = with_ranges(write(tmp_path, 5, values, [3, 6, 15]), [(0, 3), (3, 3), (6, 9), (15, 5)])
    assert torch.equal(CheckpointReader(folder).read("ema", "w"), values)
    table = Ranges()
    one, two = (pack({"a": start}, {"a": torch.empty(4)}) for start in (0, 4))
    table.update([one, two])
    before = table.table()
    table.update([None, None])
    assert table.table() is before == {"a": [[0, 2, 0, 4]]}
    table.update([None, pack({"a": 4, "b": 0}, {"a": torch.empty(2), "b": torch.empty(1)})])
    assert table.table() == {"a": [[0, 1, 0, 4], [1, 1, 4, 2]], "b": [[1, 1, 0, 1]]}


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"ema/w": [[0, 3, 0, 5]]}, "no range of its 2 files"),
        ({"ema/w": [[0, 1, 0]]}, "`ranges` is damaged"),
        ([], "`ranges` is damaged"),
        ({"ema/w": [[0, 2, 1, 5]]}, "gap or an overlap"),
        ({"ema/w": [[0, 1, 0, 4], [1, 1, 4, 6]]}, "does not have elements 0 to 4 of ema/w"),
        ({"ema/w": [[1, 1, 0, 5], [0, 1, 5, 5]]}, "does not have elements 0 to 5 of ema/w"),
    ],
)
def test_a_wrong_table_is_refused(table: object, words: str, tmp_path: Path) -> None:
    folder = write(tmp_path, 5, torch.arange(10.0), [5])
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"ranges": table}))
    with pytest.raises(CheckpointError, match=words):
        CheckpointReader(folder).read("ema", "w")


def test_parts_that_overlap_a_range() -> None:
    run = Run(file=7, files=3, start=100, numel=10)
    assert list(run.overlapping(0, 100)) == [] == list(run.overlapping(130, 200))
    assert list(run.overlapping(0, 101)) == [(7, 100)] and list(run.overlapping(129, 999)) == [(9, 120)]
    assert list(run.overlapping(110, 120)) == [(8, 110)]


def test_sizes_of_known_checkpoints_are_not_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step, torch.arange(8.0), [2, 4, 6])
    whole: set[int] = set()
    seen: list[str] = []
    real = Path.stat

    def noted(path: Path, **options: bool) -> object:
        seen.extend([path.name] if path.suffix == ".safetensors" else [])
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", noted)
    assert prune(tmp_path, 2, 0, whole=whole) == [1] and whole == {2, 3} and len(seen) == 8
    seen.clear()
    assert prune(tmp_path, 2, 0, whole=whole) == [] and seen == []
    next((tmp_path / "checkpoints" / "step_00000003").glob("*.safetensors")).unlink()
    write(tmp_path, 4, torch.arange(8.0), [])
    assert prune(tmp_path, 2, 0, whole=whole) == []  # one that lost a file does not count
    assert list_steps(tmp_path) == [2, 3, 4]
