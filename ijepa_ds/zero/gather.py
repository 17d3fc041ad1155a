"""Whole parameters out of what the ranks hold of them, at any ZeRO stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ijepa_ds.zero.layout import Piece, ZeroLayout


def gathered(layout: ZeroLayout, buffers: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Put parameters together, one after the other; every rank calls this and gets all. Nothing of the engine is changed.

    Args:
        layout: where the parts are.
        buffers: one a slot, laid out like the master weights: they themselves, Adam's moments, an average.

    Yields:
        name, float32 [numel] on the device of the buffers; the tensor is the caller's.

    Raises:
        RuntimeError: the ranks together do not hold every value exactly once.
    """
    pieces: dict[str, list[Piece]] = {}
    for piece in layout.pieces:
        pieces.setdefault(piece.name, []).append(piece)
    device = next(iter(layout.named.values())).device  # the collectives'; offloaded buffers are in host memory
    held, total = torch.zeros((), dtype=torch.int64, device=device), 0
    for name, parameter in layout.named.items():
        whole = torch.zeros(getattr(parameter, "ds_numel", parameter.numel()), dtype=torch.float32, device=device)
        for piece in pieces.get(name, ()):
            whole[piece.start : piece.start + piece.numel].copy_(layout.view(buffers[piece.slot], piece))
            held += piece.numel
        if not layout.replicated:
            dist.all_reduce(whole)  # each value is on one rank, zeros on the others: the sum is exact
        total += whole.numel()
        yield name, whole
    if not layout.replicated:
        dist.all_reduce(held)
    if int(held) != total:
        raise RuntimeError(f"the ranks hold {int(held)} of {total} values: this sharding is not understood")
