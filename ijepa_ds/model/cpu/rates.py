"""Speed of linear layers on this CPU, in float32 and in bfloat16.

CPU flags do not tell which type is faster: with AVX-512 BF16 but without AMX, bfloat16 can take twice as long as float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from ijepa_ds.model.cpu.tuning import tune

_FLOPS = 2.5e8  # of one matrix product
_TOKENS = (64, 1024)  # rows of a product: at least, at most
_SECONDS = 0.02  # for each type
_REPEATS = (3, 50)


class Rates(NamedTuple):
    """FLOPs a second of a linear layer's forward and backward pass."""

    float32: float
    bfloat16: float

    @property
    def faster(self) -> str:
        """The faster type: "float32" or "bfloat16"."""
        return "bfloat16" if self.bfloat16 > self.float32 else "float32"

    def __str__(self) -> str:
        """Both rates in GFLOP/s."""
        return f"float32 {self.float32 / 1e9:.0f} GFLOP/s, bfloat16 {self.bfloat16 / 1e9:.0f} GFLOP/s on this CPU"


def measure_rates(width: int, hidden: int, clock: Callable[[], float] = time.perf_counter) -> Rates:
    """Time one MLP layer in both types, with the kernels that `tune` chooses; about 50 ms.

    Args:
        width: input features (the encoder's width).
        hidden: output features (its MLP's hidden width).
        clock: seconds.
    """
    low, high = _TOKENS
    tokens = int(min(high, max(low, _FLOPS // (2 * width * hidden))))
    return Rates(*(_rate(tokens, width, hidden, dtype, clock) for dtype in (torch.float32, torch.bfloat16)))


def _rate(tokens: int, width: int, hidden: int, dtype: torch.dtype, clock: Callable[[], float]) -> float:
    """FLOPs a second: the best of a few passes after a first one."""
    generator = torch.Generator().manual_seed(0)  # the global generator keeps its state
    layer = nn.utils.skip_init(nn.Linear, width, hidden, dtype=dtype)
    tune(layer, dtype)
    x, gradient = (torch.randn(tokens, n, generator=generator).to(dtype) for n in (width, hidden))
    x.requires_grad_()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=generator)

    def seconds() -> float:
        began = clock()
        layer(x).backward(gradient)
        return clock() - began

    spent = seconds()
    best, least, most = float("inf"), *_REPEATS
    for repeat in range(most):
        best = min(best, taken := seconds())
        spent += taken
        if spent > _SECONDS and repeat + 1 >= (least if spent < 5 * _SECONDS else 1):
            break
    return 3 * 2.0 * tokens * width * hidden / best
