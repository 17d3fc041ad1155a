"""How much of an image the contexts of a run show: below a quarter of the patches the task teaches little."""

from __future__ import annotations

from ijepa_ds.masks.blocks import Planner

THIN = 0.25  # share of the patches
_STEPS = 256  # with 64, the published masks on 14 x 14, whose mean is 25.6 %, sometimes count as thin


def context_lengths(planner: Planner) -> list[int]:
    """Patches in a context at the first steps of a run, for its first image."""
    return [planner.plan(step, 0, 1).context_length for step in range(_STEPS)]


def context_share(planner: Planner, grid: int) -> float:
    """Mean share of the patches in a context."""
    lengths = context_lengths(planner)
    return sum(lengths) / len(lengths) / grid**2


def warning(planner: Planner, grid: int) -> str:
    """A line for the log if contexts are thin; else empty."""
    lengths = context_lengths(planner)
    if sum(lengths) >= THIN * grid**2 * len(lengths):
        return ""
    seen = f"{min(lengths)} to {max(lengths)}" if min(lengths) < max(lengths) else f"{lengths[0]}"
    return (
        f"contexts have {seen} of {grid**2} patches, less than a quarter, so the task teaches little: use a smaller "
        "model.patch_size, a larger data.crop_size, or masks.sampler: unbiased"
    )
