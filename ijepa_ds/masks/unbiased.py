"""Multi-block masks without the peculiarities of the published sampler; docs/masks.md describes the remaining bias.

Shapes: n images, M targets, C contexts, N patches.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from ijepa_ds import counter
from ijepa_ds.masks.blocks import (
    Plan,
    Size,
    block_mask,
    block_size,
    corners,
    first_patch,
    interpolate,
    min_context_patches,
    possible_sizes,
)
from ijepa_ds.masks.settings import MasksConfig

_REDRAWS = 16  # of an image whose contexts are too small, before the fallback placement
_DEFAULT_SHARE = 0.95  # share of images that reach the default context length at the first draw
_MIN_SHARE = 0.75  # a context length that fewer images reach is refused: the fallback would be common
_STEPS, _IMAGES = 64, 64  # steps and images per step simulated to estimate these shares


class Unbiased:
    """Multi-block masks in which any patch can be context or target and every context has the same length."""

    random_context = True

    def __init__(self, cfg: MasksConfig, grid: int, seed: int, batch_size: int, context_length: int | None = None) -> None:
        """Prepare for a run with settings in which `problems` found nothing.

        Args:
            cfg: The mask settings.
            grid: Patches along the grid's side.
            seed: The run's seed.
            batch_size: Images in a global batch.
            context_length: Patches kept in a context; None: `cfg.context_tokens`, or the longest length that 95 % of
                images reach at the first draw.
        """
        self.cfg, self.grid, self.seed, self.batch_size = cfg, grid, seed, batch_size
        self.context_length = context_length or cfg.context_tokens or max(1, _longest_context(cfg, grid, _DEFAULT_SHARE))

    def plan(self, step: int, first: int, count: int) -> Plan:
        """Plan positions first .. first + count - 1 of a step's global batch."""
        target, block = self._sizes(step)
        numbers = np.arange(count) + (step * self.batch_size + first)
        target_corners, available = self._draw(numbers, target, block, self.seed)
        rows = self._too_short(available, np.arange(count))
        for attempt in range(1, _REDRAWS + 1):
            if not len(rows):
                break
            seed = counter.fold(self.seed, attempt)
            target_corners[rows], available[rows] = self._draw(numbers[rows], target, block, seed)
            rows = self._too_short(available, rows)
        if len(rows):
            target_corners[rows], available[rows] = self._opposite_corners(numbers[rows], target, block)
        return Plan(target, first_patch(target_corners, self.grid), available, self.context_length)

    def _sizes(self, step: int) -> tuple[Size, Size]:
        """Return the step's target and context sizes; scale and log aspect are uniform and independent."""
        cfg, n = self.cfg, self.grid**2
        drawn = counter.uniform_np(self.seed, counter.STREAM_MASK_SIZE, np.array([step]), 3)[0].tolist()
        low, high = (math.log(aspect) for aspect in cfg.target_aspect)
        aspect = math.exp(interpolate((low, high), drawn[1]))
        return (
            block_size(n * interpolate(cfg.target_scale, drawn[0]), aspect, self.grid),
            block_size(n * interpolate(cfg.context_scale, drawn[2]), 1.0, self.grid),
        )

    def _draw(self, numbers: np.ndarray, target: Size, block: Size, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw target corners, int64 [n, M, 2], and the patches available to the contexts, bool [n, C, N]."""
        cfg, grid, m = self.cfg, self.grid, self.cfg.num_targets
        draw = counter.uniform_np(seed, counter.STREAM_MASK, numbers, 2 * (m + cfg.num_contexts))
        draw = draw.reshape(len(numbers), -1, 2)
        target_corners = corners(draw[:, :m], target, grid)
        available = block_mask(corners(draw[:, m:], block, grid), block, grid)
        if not cfg.allow_overlap:
            available &= ~block_mask(target_corners, target, grid).any(1, keepdims=True)
        return target_corners, available

    def _too_short(self, available: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the rows of images with a context that has fewer than `context_length` available patches."""
        return rows[np.count_nonzero(available[rows], axis=-1).min(1) < self.context_length]

    def _opposite_corners(self, numbers: np.ndarray, target: Size, block: Size) -> tuple[np.ndarray, np.ndarray]:
        """Fallback: stack an image's targets in one random corner of the grid and its contexts in the opposite one."""
        seed = counter.fold(self.seed, _REDRAWS + 1)
        far = counter.uniform_np(seed, counter.STREAM_MASK, numbers, 2)[:, None] >= 0.5  # bottom, right
        target_corners = np.where(far, self.grid - np.array(target), 0)  # [n, 1, 2]
        available = block_mask(np.where(far, 0, self.grid - np.array(block)), block, self.grid)
        if not self.cfg.allow_overlap:
            available &= ~block_mask(target_corners, target, self.grid)
        m, c = self.cfg.num_targets, self.cfg.num_contexts
        return target_corners.repeat(m, axis=1), available.repeat(c, axis=1)

    @staticmethod
    def problems(cfg: MasksConfig, grid: int) -> list[str]:
        """List the settings that can never be satisfied on this grid, each with the key to change."""
        h, w = min(_target_sizes(cfg, grid), key=math.prod)
        if h * w == 0:
            return [
                f"masks.target_scale {cfg.target_scale} and masks.target_aspect {cfg.target_aspect} make "
                f"target blocks of {h} x {w} patches on a {grid} x {grid} grid. Raise masks.target_scale, or "
                "use smaller patches (model.patch_size) or larger crops (data.crop_size)."
            ]
        longest, requested = _longest_context(cfg, grid, _MIN_SHARE), cfg.context_tokens or 1
        if requested > longest:
            return [
                f"masks.context_tokens is {requested}, expected at most {longest} for these scales on a "
                f"{grid} x {grid} grid: too few images have more patches available. Lower masks.context_tokens or "
                "masks.target_scale, or raise masks.context_scale."
                if longest
                else "the targets cover the whole context in too many images. Lower "
                "masks.target_scale or masks.num_targets, or raise masks.context_scale."
            ]
        return []

    @staticmethod
    def micro_batch_problems(cfg: MasksConfig, batch_size: int, micro_batch: int) -> list[str]:
        """Return an empty list: any micro-batch works."""
        return []


def _target_sizes(cfg: MasksConfig, grid: int) -> set[Size]:
    return possible_sizes(grid, cfg.target_scale, cfg.target_aspect, grid, coupled=False)


@functools.lru_cache(maxsize=256)
def _longest_context(cfg: MasksConfig, grid: int, share: float) -> int:
    """Return the longest context that this share of images reaches at the first draw and the fallback always reaches.

    The simulation uses a fixed seed, so the length depends on the settings alone.
    """
    trial = Unbiased(cfg, grid, seed=0, batch_size=_IMAGES, context_length=1)
    patches = []
    for step in range(_STEPS):
        numbers = np.arange(_IMAGES) + step * _IMAGES
        _, available = trial._draw(numbers, *trial._sizes(step), trial.seed)
        patches.append(np.count_nonzero(available, axis=-1).min(1))
    reached = int(np.quantile(np.concatenate(patches), 1 - share, method="lower"))
    contexts = possible_sizes(grid, cfg.context_scale, (1.0, 1.0), grid, coupled=True)
    if cfg.allow_overlap:
        return min(reached, *(math.prod(size) for size in contexts))
    return min(reached, min_context_patches(contexts, _target_sizes(cfg, grid), grid)[0])
