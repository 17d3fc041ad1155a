"""Speed of linear layers on this CPU, in float32 and in bfloat16.

CPU flags do not tell which type is faster: with AVX-512 BF16 but without AMX, bfloat16 can take twice as long as float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import nn

from ijepa_ds.model.cpu.tuning import tune

_WIDTH, _HIDDEN = 384, 1536  # the layer is at most this large: emulated bfloat16 reaches only about 1 GFLOP/s
_ROWS = 16  # of the first pass; fast passes are followed by larger ones
_FLOPS = 2.5e8  # of the largest matrix product
_SECONDS = 0.05  # for each type, at the largest shape; also the longest expected pass
_PASSES = 4  # at least


class Rates(NamedTuple):
    """FLOPs a second of a linear layer's forward and backward pass."""

    float32: float
    bfloat16: float

    @property
    def faster(self) -> Literal["float32", "bfloat16"]:
        """The faster type: "float32" or "bfloat16"."""
        return "bfloat16" if self.bfloat16 > self.float32 else "float32"

    def __str__(self) -> str:
        """Both rates in GFLOP/s."""
        return f"float32 {self.float32 / 1e9:.0f} GFLOP/s, bfloat16 {self.bfloat16 / 1e9:.0f} GFLOP/s on this CPU"


def measure_rates(width: int, hidden: int, clock: Callable[[], float] = time.perf_counter) -> Rates:
    """Time one MLP layer in both types, with the kernels that `tune` chooses.

    It takes less than a second. The best pass at the largest shape that is fast enough counts, so that passes that create
    kernels, or during which the core is busy, do not decide.

    Args:
        width: input features (the encoder's width).
        hidden: output features (its MLP's hidden width).
        clock: seconds.
    """
    width, hidden = min(width, _WIDTH), min(hidden, _HIDDEN)
    return Rates(*(_rate(width, hidden, dtype, clock) for dtype in (torch.float32, torch.bfloat16)))


def _rate(width: int, hidden: int, dtype: torch.dtype, clock: Callable[[], float]) -> float:
    """FLOPs a second of the best pass."""
    generator = torch.Generator().manual_seed(0)  # the global generator keeps its state
    layer = nn.utils.skip_init(nn.Linear, width, hidden, dtype=dtype)
    tune(layer, dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=generator)
    most = max(_ROWS, int(_FLOPS / (2 * width * hidden)))
    inputs, gradients = (torch.randn(most, n, generator=generator).to(dtype) for n in (width, hidden))

    def seconds(rows: int) -> float:
        x, gradient = inputs[:rows].requires_grad_(), gradients[:rows]
        layer.zero_grad()
        began = clock()
        layer(x).backward(gradient)
        return clock() - began

    def work(rows: int) -> float:
        return 3 * 2.0 * rows * width * hidden  # the product, and two in the backward pass

    rows, best = _ROWS, 0.0
    while True:
        seconds(rows)  # the first pass of a shape creates its kernels
        best = max(best, work(rows) / min(seconds(rows), seconds(rows)))
        larger = min(4 * rows, most)
        if larger == rows or work(larger) > _SECONDS * best:
            break
        rows = larger
    spent, passes = 0.0, 0
    while spent < _SECONDS or passes < _PASSES:
        taken = seconds(rows)
        spent, passes, best = spent + taken, passes + 1, max(best, work(rows) / taken)
    return best
