"""Rectangles of patches and what a mask sampler decides with them. Numpy, on the host.

The host must know the lengths of the index lists, else tensors on the device have no static shapes; and what
decides the lengths is small. So the host decides, and `masks` builds the index tensors on the device.
Letters: n images, M targets, C contexts, G patches along the grid's side, N = G * G patches in raster order.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from ijepa_ds.masks.settings import MasksConfig

Size = tuple[int, int]  # height, width in patches
_TABLED = 32  # largest grid whose blocks are looked up instead of computed (docs/LOG.md)


@dataclass(frozen=True)
class Plan:
    """The decisions for n images.

    Attributes:
        target_size: Height and width of every target block, in patches.
        target_first: int64 [n, M], number of each target block's top left patch.
        available: bool [n, C, N], the patches a context may see, before it is cut.
        context_length: Patches kept in every context, Kc; every context has at least as many available.
    """

    target_size: Size
    target_first: np.ndarray
    available: np.ndarray
    context_length: int


class Planner(Protocol):
    """A mask strategy: one row of `masks.SAMPLERS`."""

    keeps_at_random: bool  # which available patches stay: a random choice, or the first in raster order

    def __init__(self, cfg: MasksConfig, grid: int, seed: int, batch_size: int) -> None:
        """Prepare for a run; `problems` has found nothing."""

    def plan(self, step: int, first: int, count: int) -> Plan:
        """Decide for positions first .. first + count - 1 of a step's global batch."""

    @staticmethod
    def problems(cfg: MasksConfig, grid: int) -> list[str]:
        """Say what can never be satisfied on this grid, and which key to change."""

    @staticmethod
    def micro_batch_problems(cfg: MasksConfig, batch_size: int, micro_batch: int) -> list[str]:
        """Say why the global batch cannot be planned in such micro-batches."""


def between(limits: tuple[float, float], share: float) -> float:
    """Go `share` of the way, 0 .. 1, from the lower limit to the upper one."""
    return limits[0] + share * (limits[1] - limits[0])


def block_size(patches: float, aspect: float, largest: int) -> Size:
    """Shape a block of about `patches` patches and this height / width, no side longer than `largest`.

    As in the published runs: whole patches first, then each side rounded by itself.
    """
    area = int(patches)
    return (
        min(round(math.sqrt(area * aspect)), largest),
        min(round(math.sqrt(area / aspect)), largest),
    )


def possible_sizes(
    grid: int, scale: tuple[float, float], aspect: tuple[float, float], largest: int, *, together: bool
) -> set[Size]:
    """List every size the scales can produce.

    Args:
        grid: Patches along the grid's side.
        scale: Lower and upper share of the grid's patches.
        aspect: Lower and upper height / width.
        largest: Longest side allowed.
        together: One random number drives scale and aspect (published); else they are independent.

    Returns:
        The sizes of positive probability. Between two aspects at which a side jumps by a patch the size is
        constant, so one point of every such interval is tried.
    """
    n = grid * grid
    width = scale[1] - scale[0]
    sizes = set()
    for area in range(int(n * scale[0]), int(n * scale[1]) + 1):
        low = max(0.0, (area / n - scale[0]) / width) if width else 0.0
        high = min(1.0, ((area + 1) / n - scale[0]) / width) if width else 1.0
        if low >= high:
            continue
        ends = (between(aspect, low), between(aspect, high)) if together else aspect
        halves = [(k + 0.5) ** 2 for k in range(largest)]
        jumps = [half / area for half in halves if area] + [area / half for half in halves]
        points = sorted({*ends, *(jump for jump in jumps if ends[0] < jump < ends[1])})
        if len(points) == 1:
            points *= 2
        sizes |= {block_size(area + 0.5, (a + b) / 2, largest) for a, b in itertools.pairwise(points)}
    return sizes


def smallest_room(contexts: set[Size], targets: set[Size], side: int) -> tuple[int, Size]:
    """Count what the least lucky pair of sizes leaves of a context when its targets are placed best.

    Args:
        contexts: Sizes of context blocks.
        targets: Sizes of target blocks.
        side: Side of the square in which blocks may lie.

    Returns:
        Patches left with all targets stacked at the corner opposite to the context, and that target size.
    """

    def room(context: Size, target: Size) -> int:
        shared = [max(0, c + t - side) for c, t in zip(context, target, strict=True)]
        return math.prod(context) - math.prod(shared)

    return min((room(context, target), target) for context in contexts for target in targets)


def corners(draw: np.ndarray, size: Size, side: int) -> np.ndarray:
    """Place blocks uniformly in a square.

    Args:
        draw: float64 [..., 2] in [0, 1).
        size: Height and width of the blocks.
        side: Side of the square.

    Returns:
        int64 [..., 2], top and left; top + height and left + width reach at most `side`.
    """
    return (draw * (side + 1 - np.array(size))).astype(np.int64)


def covered(corner: np.ndarray, size: Size, grid: int) -> np.ndarray:
    """Mark the patches of blocks.

    Args:
        corner: int64 [..., 2], top and left.
        size: Height and width of the blocks.
        grid: Patches along the grid's side, G.

    Returns:
        bool [..., N].
    """
    if grid <= _TABLED:
        return _every_block(size, grid)[corner[..., 0], corner[..., 1]]
    return _covered(corner, size, grid)


def _covered(corner: np.ndarray, size: Size, grid: int) -> np.ndarray:
    line = np.arange(grid)
    offset = line - corner[..., None]  # [..., 2, G]
    inside = (offset >= 0) & (offset < np.array(size)[:, None])
    block = inside[..., 0, :, None] & inside[..., 1, None, :]
    return block.reshape(*corner.shape[:-1], grid * grid)


@lru_cache(maxsize=64)  # a run meets few sizes, again and again; at most 1 MB each
def _every_block(size: Size, grid: int) -> np.ndarray:
    """The patches of a block at every place: bool [G - h + 1, G - w + 1, N]."""
    places = np.indices((grid - size[0] + 1, grid - size[1] + 1)).transpose(1, 2, 0)
    return _covered(places, size, grid)


def first_patch(corner: np.ndarray, grid: int) -> np.ndarray:
    """Number the top left patches of blocks: int64 [..., 2] to int64 [...]."""
    return corner[..., 0] * grid + corner[..., 1]
