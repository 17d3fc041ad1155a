"""Denominators of two shares (numerator: `flops`): MFU by the data sheet's peak, `matmul_share` by a measured product."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from ijepa_ds.model.cpu.linear import onednn_is_faster, product
from ijepa_ds.model.peaks import data_sheet_of

_SIDES = {"cpu": (256, 1024), "cuda": (8192,)}  # of the square matrices multiplied
_SLOW = 0.01  # seconds; if a small product takes longer (an emulated type), larger ones would take seconds
_TRIES = 4  # we report the best; the first warms up


def data_sheet_peak(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return the data sheet's FLOPs a second of this device, or None: a CPU, or a GPU whose data sheet is not known."""
    if device.type != "cuda":
        return None
    return data_sheet_of(torch.cuda.get_device_name(device), dtype.itemsize)


@torch.no_grad()
def measured_peak(device: torch.device, dtype: torch.dtype, clock: Callable[[], float] = time.perf_counter) -> float:
    """Measure the FLOPs a second of a large square matrix product; waits for the device.

    Args:
        device: Where to run.
        dtype: Type of the matrices.
        clock: Returns seconds.
    """
    rate = 0.0
    for side in _SIDES.get(device.type, _SIDES["cpu"]):
        seconds = _fastest_product(side, device, dtype, clock)
        rate = 2.0 * side**3 / seconds
        if seconds > _SLOW:
            break
    return rate


def _fastest_product(side: int, device: torch.device, dtype: torch.dtype, clock: Callable[[], float]) -> float:
    """Return the seconds of the fastest of a few products of random matrices."""
    # random values: a GPU multiplies constants with less power, and may run faster than on real data
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(side, side, device=device, dtype=dtype, generator=generator) for _ in range(2))
    best = float("inf")
    multiply = product if device.type == "cpu" and dtype == torch.float32 and onednn_is_faster() else torch.matmul
    for _ in range(_TRIES):
        started = clock()
        result = multiply(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, clock() - started)
    del result
    return max(best, 1e-9)  # a coarse clock may not have advanced
