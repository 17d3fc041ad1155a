"""A copy of a rank's training state in host memory, which a thread writes while training continues."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from ijepa_ds.zero.ema import ShardedEMA
from ijepa_ds.zero.layout import Piece, ZeroLayout

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Copied:
    """The state at one step.

    Attributes:
        tensors: key (`master/NAME`) -> float32 [n] in host memory; complete once `wait` returns.
        starts: key -> where the piece begins in its flattened parameter.
        ready: when a GPU has copied everything; None on a CPU.
        adam: float32 [1], Adam's step.
    """

    tensors: dict[str, Tensor]
    starts: dict[str, int]
    ready: torch.cuda.Event | None
    adam: Tensor

    def wait(self) -> None:
        """Until everything is in host memory."""
        if self.ready:
            self.ready.synchronize()

    def is_finite(self) -> bool:
        """Whether no value is infinite or NaN."""
        return all(bool(torch.isfinite(tensor).all()) for tensor in self.tensors.values())


class Snapshot:
    """Host memory for one copy of this rank's pieces; each copy overwrites the one before."""

    def __init__(self, layout: ZeroLayout, ema: ShardedEMA) -> None:
        """Allocate it.

        Args:
            layout: where the master weights and moments are.
            ema: the average of the encoder.
        """
        self._layout, self._ema = layout, ema
        numel = (1 + len(_MOMENTS)) * sum(piece.numel for piece in _own(layout, layout.pieces))
        numel += sum(piece.numel for piece in _own(layout, ema.pieces))
        # the last element is Adam's step; pinned, so that copies from a GPU are asynchronous
        self._host = layout.scratch(numel + 1, "checkpoint")
        self._host.zero_()  # touch every page now, not in the first save

    def take(self) -> Copied:
        """Copy the state as it is after the work queued so far; on a GPU the copy itself is only queued."""
        tensors: dict[str, Tensor] = {}
        starts: dict[str, int] = {}
        filled = 0

        def add(key: str, piece: Piece, values: Tensor) -> None:
            nonlocal filled
            tensors[key], starts[key] = self._host.narrow(0, filled, piece.numel), piece.start
            tensors[key].copy_(values, non_blocking=True)  # in stream order: before the next step overwrites it
            filled += piece.numel

        layout, ema = self._layout, self._ema
        for piece in _own(layout, layout.pieces):
            add(f"master/{piece.name}", piece, layout.view(layout.master(piece.slot), piece))
            moments = layout.moments(piece.slot)
            for key in _MOMENTS if moments else ():
                add(f"{key}/{piece.name}", piece, layout.view(moments[key], piece))
        for piece in _own(layout, ema.pieces):
            add(f"ema/encoder.{piece.name}", piece, ema.layout.view(ema.average[piece.slot], piece))
        adam = self._host[-1:]
        adam.copy_(layout.moments(0).get("step", torch.zeros(())).reshape(1), non_blocking=True)
        ready = None
        if layout.engine.device.type == "cuda":
            ready = torch.cuda.Event()
            ready.record()
        return Copied(tensors, starts, ready, adam)


def _own(layout: ZeroLayout, pieces: list[Piece]) -> list[Piece]:
    """The pieces that this rank writes: its own under ZeRO; an equal part of each where every rank holds everything."""
    if not layout.replicated:
        return [piece for piece in pieces if piece.numel]
    rank, ranks, parts = dist.get_rank(), dist.get_world_size(), []
    for piece in pieces:
        low, high = piece.numel * rank // ranks, piece.numel * (rank + 1) // ranks
        if high > low:
            parts.append(replace(piece, start=piece.start + low, numel=high - low, offset=piece.offset + low))
    return parts
