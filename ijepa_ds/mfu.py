"""Model FLOPs utilisation: the method's matrix products against what this device's matrix products reach, measured at start."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from ijepa_ds.config import Config
from ijepa_ds.config_sizes import Size, size_of
from ijepa_ds.cpu_linear import onednn_is_faster, product

_SIDES = {"cpu": 1024, "cuda": 8192}  # of the square matrices multiplied
_TRIES = 4  # the best counts, the first warms up


def training_flops(cfg: Config, context: int, target: int) -> float:
    """FLOPs of one image's step: matrix products only, an addition and a multiplication count two, nothing computed twice.

    Numerator of MFU as Chowdhery et al. 2022 (appendix B) define it.

    Args:
        cfg: the run.
        context: patches kept in a context.
        target: patches of a target block.
    """
    model, size, masks = cfg.model, size_of(cfg.model), cfg.masks
    narrow = Size(model.predictor.width, model.predictor.depth, model.predictor.heads or size.heads, 4 * model.predictor.width)
    patches, pairs = cfg.grid**2, masks.num_contexts * masks.num_targets
    embedding = 2.0 * patches * 3 * model.patch_size**2 * size.width
    seen = masks.num_contexts * _blocks(size, context + size.registers)
    told = pairs * _blocks(narrow, context + target)
    between = 2.0 * size.width * narrow.width * (masks.num_contexts * context + pairs * target)
    return embedding + _blocks(size, patches + size.registers) + 3 * (embedding + seen + told + between)


def _blocks(size: Size, tokens: int) -> float:
    """Forward FLOPs of a stack of blocks for one sequence."""
    linear = 4 * size.width**2 + (3 if size.swiglu else 2) * size.width * size.mlp_hidden
    return size.depth * (2.0 * tokens * linear + 4.0 * tokens * tokens * size.width)


@torch.no_grad()
def measured_peak(device: torch.device, dtype: torch.dtype, clock: Callable[[], float] = time.perf_counter) -> float:
    """FLOPs a second (of `clock`) of a large square matrix product here and now; waits for the device."""
    side = _SIDES.get(device.type, _SIDES["cpu"])
    left, right = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    multiply = product if device.type == "cpu" and dtype == torch.float32 and onednn_is_faster() else torch.matmul
    for _ in range(_TRIES):
        started = clock()
        result = multiply(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, clock() - started)
    del result
    return 2.0 * side**3 / best
