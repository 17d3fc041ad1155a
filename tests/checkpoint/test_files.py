"""Checkpoints on disk: any slice is read back; whatever is broken is named and never used."""

import json
import logging
from pathlib import Path

import pytest
import torch

from ijepa_ds.checkpoint.folder import list_steps
from ijepa_ds.checkpoint.reader import CheckpointReader, newest
from ijepa_ds.errors import CheckpointError
from tests.checkpoint_cases import Range, flip, truncate, write


def test_any_slice_across_files(tmp_path: Path) -> None:
    values = torch.arange(100, dtype=torch.float32)
    reader = CheckpointReader(write(tmp_path, 5, values, [30, 31, 77]))
    assert torch.equal(reader.read("ema", "w"), values)
    for start, numel in [(0, 1), (29, 3), (10, 80), (77, 23), (40, 0)]:
        assert torch.equal(reader.read("ema", "w", Range(start, numel)), values[start : start + numel])
    with pytest.raises(CheckpointError, match="another model"):
        reader.read("ema", "other")
    with pytest.raises(CheckpointError, match="elements"):
        reader.read("ema", "w", Range(90, 20))


@pytest.mark.parametrize(
    ("damage", "file", "reason"),
    [
        (truncate, "shard_00001_of_00002.safetensors", "truncated"),
        (flip, "shard_00000_of_00002.safetensors", "checksum"),
        (Path.unlink, "shard_00001_of_00002.safetensors", "missing"),
        (truncate, "manifest.json", "manifest is damaged"),
        (Path.unlink, "manifest.json", "not a finished checkpoint"),
    ],
)
def test_damage_is_named_and_the_older_one_taken(
    damage: object, file: str, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, 10, torch.zeros(8), [4])
    folder = write(tmp_path, 20, torch.ones(8), [4])
    damage(folder / file)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=reason) as error:
        CheckpointReader(folder)
    assert file in str(error.value)
    with caplog.at_level(logging.ERROR):
        reader = newest(tmp_path)
    assert reader is not None and reader.manifest["step"] == 10
    assert "NOT USABLE" in caplog.text and file in caplog.text


def test_none_good_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    assert newest(tmp_path) is None
    truncate(write(tmp_path, 10, torch.zeros(8), []) / "manifest.json")
    with pytest.raises(CheckpointError, match="refusing to start from scratch"):
        newest(tmp_path)


def test_unfinished_saves_do_not_count(tmp_path: Path) -> None:
    write(tmp_path, 10, torch.zeros(8), [])
    (tmp_path / "checkpoints" / ".step_00000020.partial").mkdir()
    (tmp_path / "checkpoints" / "notes").mkdir()
    assert list_steps(tmp_path) == [10]


def test_manifest_cannot_lead_outside(tmp_path: Path) -> None:
    folder = write(tmp_path, 10, torch.zeros(8), [])
    manifest = json.loads((folder / "manifest.json").read_text())
    (tmp_path / "outside").write_text("secret")
    manifest["files"][0]["file"] = "../../outside"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="refusing to open"):
        CheckpointReader(folder)
