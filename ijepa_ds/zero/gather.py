"""Assembles whole parameters from the parts on all ranks, at any ZeRO stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ijepa_ds.zero.layout import Piece, ZeroLayout


def gathered(layout: ZeroLayout, buffers: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Assemble parameters one after the other, on every rank; every rank calls it. The engine does not change.

    Args:
        layout: positions of the parts.
        buffers: one for each slot, laid out like the master weights (those, a moment, or an average).

    Yields:
        Name and values, float32 `[numel]` on the parameters' device. The tensor is not reused.

    Raises:
        RuntimeError: the ranks together do not hold every value exactly once.
    """
    pieces: dict[str, list[Piece]] = {}
    for piece in layout.pieces:
        pieces.setdefault(piece.name, []).append(piece)
    device = next(iter(layout.named.values())).device  # for collectives; offloaded buffers are in host memory
    held, total = torch.zeros((), dtype=torch.int64, device=device), 0
    for name, shape in layout.shapes.items():
        whole = torch.zeros(shape.numel(), dtype=torch.float32, device=device)
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
        raise RuntimeError(f"the ranks hold {int(held)} of {total} values: this sharding is not supported")
