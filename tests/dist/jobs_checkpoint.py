"""What the ranks of the pool run for tests/dist/test_damage.py. Each function is called on every rank at once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any


def refused_shards(folder: str, names: list[str]) -> list[str]:
    """For each file in turn: flip one bit, open the checkpoint on all ranks, restore the bit; the message of each refusal.

    The last message is that of the restored checkpoint: empty.
    """
    import torch.distributed as dist

    from ijepa_ds.checkpoint import restore
    from ijepa_ds.distributed.world import barrier, initialise_distributed
    from ijepa_ds.errors import CheckpointError
    from tests.checkpoint_cases import flip

    initialise_distributed()
    first, messages = dist.get_rank() == 0, []

    def flip_by_one_rank(name: str) -> None:
        barrier()
        if name and first:
            flip(Path(folder) / name)
        barrier()

    for name in [*names, ""]:
        flip_by_one_rank(name)
        try:
            restore.open_together(Path(folder))
            messages.append("")
        except CheckpointError as error:
            messages.append(str(error))
        flip_by_one_rank(name)  # restores the bit
    return messages


def save_on_a_failing_disk(folder: str, failing: int) -> dict[str, Any]:
    """Save twice; in the first save the disk of rank `failing` writes one wrong bit. What was saved and logged."""
    import logging
    from unittest import mock

    import torch.distributed as dist

    from ijepa_ds import durable
    from ijepa_ds.checkpoint import saver, writer
    from ijepa_ds.checkpoint.folder import list_steps
    from ijepa_ds.distributed.world import barrier, initialise_distributed
    from tests.checkpoint_cases import Layout, flip

    initialise_distributed()
    layout, texts = Layout(dist.get_rank()), []
    ema = SimpleNamespace(layout=layout, pieces=layout.pieces, average=[layout.weights * 10])
    ours = saver.Saver(layout, ema, Path(folder), every=10, keep_last=2)  # type: ignore[arg-type]

    def broken(tensors: Any, path: Path, metadata: Any) -> None:
        durable.save_tensors(tensors, path, metadata)
        if dist.get_rank() == failing:
            flip(path)

    handler = logging.Handler()
    handler.emit = lambda record: texts.append(record.getMessage())  # type: ignore[method-assign]
    saver.logger.addHandler(handler)
    try:
        with mock.patch.object(writer, "save_tensors", broken):
            ours.start(10, {})
            first = ours.finish()
        before = list_steps(Path(folder))
        barrier()
        ours.start(11, {})
        second = ours.finish()
        barrier()
    finally:
        saver.logger.removeHandler(handler)
    return {"saved": (first, second), "before": before, "after": list_steps(Path(folder)), "texts": texts}
