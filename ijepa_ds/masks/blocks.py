"""Rectangular blocks of patches: sizes, positions and coverage, in numpy on the host.

The host plans the masks, because tensors on the device need static shapes and the plan fixes the lengths of the
index lists. `masks.sampler` then builds the index tensors on the device.
Shapes: n images, M targets, C contexts, a grid of G x G patches, N = G * G patches in raster order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from ijepa_ds.masks.settings import MasksConfig

Size = tuple[int, int]  # height, width in patches
_MAX_TABLE_GRID = 32  # larger grids compute block masks instead of looking them up (docs/LOG.md)


@dataclass(frozen=True)
class Plan:
    """Block sizes, block positions and context length for n images.

    Attributes:
        target_size: Height and width of every target block, in patches.
        target_first: int64 [n, M], index of each target block's top left patch.
        available: bool [n, C, N], the patches a context may keep.
        context_length: Patches kept in every context, Kc; at least as many are available in every context.
    """

    target_size: Size
    target_first: np.ndarray
    available: np.ndarray
    context_length: int


class Planner(Protocol):
    """A masking strategy: one row of `masks.sampler.SAMPLERS`."""

    random_context: bool  # a context keeps a random subset of its available patches, or the first in raster order

    def __init__(self, cfg: MasksConfig, grid: int, seed: int, batch_size: int) -> None:
        """Prepare for a run with settings in which `problems` found nothing."""

    def plan(self, step: int, first: int, count: int) -> Plan:
        """Plan positions first .. first + count - 1 of a step's global batch."""

    @staticmethod
    def problems(cfg: MasksConfig, grid: int) -> list[str]:
        """List the settings that can never be satisfied on this grid, each with the key to change."""

    @staticmethod
    def micro_batch_problems(cfg: MasksConfig, batch_size: int, micro_batch: int) -> list[str]:
        """List the reasons why the global batch cannot be split into micro-batches of this size."""


def interpolate(limits: tuple[float, float], fraction: float) -> float:
    """Return the point at `fraction`, 0 .. 1, between the lower and the upper limit."""
    return limits[0] + fraction * (limits[1] - limits[0])


def block_size(patches: float, aspect: float, largest: int) -> Size:
    """Return the height and width of a block, in patches.

    The area is truncated to whole patches, then each side is rounded on its own (published runs).

    Args:
        patches: Area in patches.
        aspect: Height / width.
        largest: Longest side allowed.
    """
    area = int(patches)
    return (
        min(round(math.sqrt(area * aspect)), largest),
        min(round(math.sqrt(area / aspect)), largest),
    )


def possible_sizes(
    grid: int, scale: tuple[float, float], aspect: tuple[float, float], largest: int, *, coupled: bool
) -> set[Size]:
    """Return every block size that the scales produce with positive probability.

    Args:
        grid: Patches along the grid's side.
        scale: Lower and upper share of the grid's patches.
        aspect: Lower and upper height / width.
        largest: Longest side allowed.
        coupled: One random number drives scale and aspect (published runs); else they are independent.
    """
    sizes = set()
    for area, aspects in _possible_areas(grid * grid, scale, aspect, coupled):
        sizes |= _sizes_of_area(area, aspects, largest)
    return sizes


def _possible_areas(
    n: int, scale: tuple[float, float], aspect: tuple[float, float], coupled: bool
) -> Iterator[tuple[int, tuple[float, float]]]:
    """Yield every area in whole patches, with the lower and upper aspect that blocks of this area can have."""
    width = scale[1] - scale[0]
    for area in range(int(n * scale[0]), int(n * scale[1]) + 1):
        # the fractions of the scale range for which int(n * scale) is this area
        low = max(0.0, (area / n - scale[0]) / width) if width else 0.0
        high = min(1.0, ((area + 1) / n - scale[0]) / width) if width else 1.0
        if low < high:
            yield area, (interpolate(aspect, low), interpolate(aspect, high)) if coupled else aspect


def _sizes_of_area(area: int, aspects: tuple[float, float], largest: int) -> set[Size]:
    """Return the sizes of blocks of one area, for all aspects in a range.

    A side rounds from k to k + 1 where its exact length is k + 1/2. The height sqrt(area * aspect) reaches that at
    aspect = (k + 1/2)^2 / area, the width sqrt(area / aspect) at aspect = area / (k + 1/2)^2. Between two
    neighbouring jumps the size is constant, so one aspect from each interval, its midpoint, finds every size.
    Example: area 20, aspects 0.8 .. 1.2. The height jumps from 4 to 5 at 4.5^2 / 20 = 1.01, the width from 5 to 4
    at 20 / 4.5^2 = 0.99, so the sizes are 4 x 5, 4 x 4 and 5 x 4.
    """
    halves = [(k + 0.5) ** 2 for k in range(largest)]
    jumps = [half / area for half in halves if area] + [area / half for half in halves]
    points = sorted({*aspects, *(jump for jump in jumps if aspects[0] < jump < aspects[1])})
    if len(points) == 1:  # the range is a single aspect
        points *= 2
    return {block_size(area + 0.5, (a + b) / 2, largest) for a, b in itertools.pairwise(points)}


def min_context_patches(contexts: set[Size], targets: set[Size], side: int) -> tuple[int, Size]:
    """Return the fewest patches that any pair of sizes leaves to a context under the best placement.

    The best placement stacks all targets in one corner and puts the context in the opposite corner.

    Args:
        contexts: Sizes of context blocks.
        targets: Sizes of target blocks.
        side: Side of the square that contains the blocks, in patches.

    Returns:
        The number of patches, and the target size of that pair.
    """

    def patches_left(context: Size, target: Size) -> int:
        shared = [max(0, c + t - side) for c, t in zip(context, target, strict=True)]
        return math.prod(context) - math.prod(shared)

    return min((patches_left(context, target), target) for context in contexts for target in targets)


def corners(draw: np.ndarray, size: Size, side: int) -> np.ndarray:
    """Place blocks uniformly in a square.

    Args:
        draw: float64 [..., 2], uniform in [0, 1).
        size: Height and width of the blocks.
        side: Side of the square.

    Returns:
        int64 [..., 2], top and left; top + height and left + width reach at most `side`.
    """
    return (draw * (side + 1 - np.array(size))).astype(np.int64)


def block_mask(corner: np.ndarray, size: Size, grid: int) -> np.ndarray:
    """Mark the patches that blocks cover.

    Args:
        corner: int64 [..., 2], top and left.
        size: Height and width of the blocks.
        grid: Patches along the grid's side, G.

    Returns:
        bool [..., N].
    """
    if grid <= _MAX_TABLE_GRID:
        return _mask_table(size, grid)[corner[..., 0], corner[..., 1]]
    return _block_mask(corner, size, grid)


def _block_mask(corner: np.ndarray, size: Size, grid: int) -> np.ndarray:
    line = np.arange(grid)
    offset = line - corner[..., None]  # [..., 2, G]
    inside = (offset >= 0) & (offset < np.array(size)[:, None])
    block = inside[..., 0, :, None] & inside[..., 1, None, :]
    return block.reshape(*corner.shape[:-1], grid * grid)


@lru_cache(maxsize=64)  # a run uses few sizes; at most 1 MB each
def _mask_table(size: Size, grid: int) -> np.ndarray:
    """Return the masks of a block of h x w patches at every position: bool [G - h + 1, G - w + 1, N]."""
    positions = np.indices((grid - size[0] + 1, grid - size[1] + 1)).transpose(1, 2, 0)
    return _block_mask(positions, size, grid)


def first_patch(corner: np.ndarray, grid: int) -> np.ndarray:
    """Return the raster indices of the blocks' top left patches: int64 [..., 2] to int64 [...]."""
    return corner[..., 0] * grid + corner[..., 1]
