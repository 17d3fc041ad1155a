"""Load checkpoints of any world size and ZeRO stage into an engine. `saver.py` writes them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from ijepa_ds.checkpoint.folder import check_files, read_manifest
from ijepa_ds.checkpoint.reader import CheckpointReader
from ijepa_ds.distributed.agreement import agree
from ijepa_ds.distributed.exchange import broadcast_object
from ijepa_ds.errors import CheckpointError
from ijepa_ds.zero.ema import ShardedEMA
from ijepa_ds.zero.layout import ZeroLayout

_MOMENTS = ("exp_avg", "exp_avg_sq")


def open_together(folder: Path, beat: Callable[[], None] = lambda: None) -> CheckpointReader:
    """Validate and open a checkpoint on every rank.

    Rank 0 reads the manifest for all. Each rank compares its share of the files, and opens later only those that it needs.
    `beat` is called after every file.

    Raises:
        CheckpointError: it is broken; raised on every rank.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    manifest = broadcast_object(agree(lambda: read_manifest(folder) if rank == 0 else None))
    agree(lambda: check_files(folder, (rank, ranks), beat, manifest))
    return agree(lambda: CheckpointReader(folder, manifest=manifest))


def load(layout: ZeroLayout, ema: ShardedEMA, reader: CheckpointReader, beat: Callable[[], None] = lambda: None) -> None:
    """Load a checkpoint into an engine: master weights, Adam's moments, EMA, and the model weights cast from them.

    `beat` is called after every piece.

    Raises:
        CheckpointError: it is of another model or incomplete; the engine is unchanged.
    """
    _check_complete(layout, ema, reader)
    adam_step = reader.manifest["adam_step"]
    with torch.no_grad():
        for slot in range(layout.num_slots):
            master, pieces = layout.master(slot), [piece for piece in layout.pieces if piece.slot == slot]
            for piece in pieces:
                layout.view(master, piece).copy_(reader.read("master", piece.name, piece))
                beat()
            if adam_step:
                moments = {key: torch.zeros_like(master) for key in _MOMENTS}
                for piece, key in itertools.product(pieces, _MOMENTS):
                    layout.view(moments[key], piece).copy_(reader.read(key, piece.name, piece))
                    beat()
                layout.set_moments(slot, moments["exp_avg"], moments["exp_avg_sq"], adam_step)
        layout.publish_masters()
        for piece in ema.pieces:
            buffer = ema.layout.view(ema.average[piece.slot], piece)
            buffer.copy_(reader.read("ema", "encoder." + piece.name, piece))
            beat()
        ema.publish()


def _check_complete(layout: ZeroLayout, ema: ShardedEMA, reader: CheckpointReader) -> None:
    """Check that every element of every parameter is there, before anything is overwritten."""
    kinds = ("master", *(_MOMENTS if reader.manifest["adam_step"] else ()))
    expected = {f"{kind}/{name}": shape.numel() for name, shape in layout.shapes.items() for kind in kinds}
    expected |= {f"ema/encoder.{name}": shape.numel() for name, shape in ema.layout.shapes.items()}
    for key, numel in expected.items():
        found = reader.numel(key)
        if found != numel:
            raise CheckpointError(f"{reader.folder}: {key} has {found} elements, this model's has {numel}")
