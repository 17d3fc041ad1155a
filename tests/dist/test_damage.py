"""One wrong bit in any shard, on several ranks: at a save or on the disk later, it is found and named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ijepa_ds.checkpoint.reader import CheckpointReader
from tests.checkpoint_cases import write
from tests.dist.pool import Pool

pytestmark = pytest.mark.dist
MODULE = "tests.dist.jobs_checkpoint"


@pytest.mark.parametrize(("world_size", "shards"), [(2, 1), (2, 5), (3, 2), (3, 7)])
def test_a_flipped_bit_in_any_shard_refuses_the_resume_on_every_rank(
    world_size: int, shards: int, ranks: Callable[[int], Pool], tmp_path: Path
) -> None:
    folder = write(tmp_path, 10, torch.arange(40.0), [5 * shard for shard in range(1, shards)])
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(names) == shards
    results = ranks(world_size).run("refused_shards", module=MODULE, folder=str(folder), names=names)
    for messages in results:
        assert len(messages) == shards + 1
        for name, message in zip(names, messages, strict=False):
            assert f"{folder / name}: checksum differs" in message, (name, message)
        assert messages[-1] == ""


@pytest.mark.parametrize(("world_size", "failing"), [(2, 0), (2, 1), (3, 2)])
def test_a_shard_that_is_written_wrongly_is_noticed_at_the_save(
    world_size: int, failing: int, ranks: Callable[[int], Pool], tmp_path: Path
) -> None:
    results = ranks(world_size).run("save_on_a_failing_disk", module=MODULE, folder=str(tmp_path), failing=failing)
    for result in results:
        assert result["saved"] == (False, True) and result["before"] == [] and result["after"] == [11]
    (text,) = (text for text in results[0]["texts"] if "NOT SAVED" in text)
    assert f"rank {failing} on " in text and "differs when read back" in text
    assert f"shard_{failing:05d}_of_{world_size:05d}.safetensors" in text and text.count("rank ") == 1
    reader = CheckpointReader(tmp_path / "checkpoints" / "step_00000011")
    assert reader.read("master", "w").tolist() == list(range(4 * world_size))
