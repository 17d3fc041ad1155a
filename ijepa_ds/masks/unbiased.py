"""Multi-block masks without the published sampler's oddities; docs/masks.md says what is left of bias.

Letters: n images, M targets, C contexts, N patches.
"""

from __future__ import annotations

import math

import numpy as np

from ijepa_ds import counter
from ijepa_ds.masks.blocks import Plan, Size, between, block_size, corners, covered, first_patch, possible_sizes, smallest_room
from ijepa_ds.masks.settings import MasksConfig

_REDRAWS = 16  # further draws for an image whose contexts are too small, then the last resort
_ENOUGH = 0.95  # share of images whose first draw leaves enough, for the chosen context length
_TOO_FEW = 0.75  # below this share a context length is refused: the last resort would be common
_STEPS, _IMAGES = 64, 64  # steps and images a step that are simulated to know these shares


class Unbiased:
    """Multi-block masks in which every patch has both roles and every context the same length."""

    keeps_at_random = True

    def __init__(self, cfg: MasksConfig, grid: int, seed: int, batch_size: int, context_length: int | None = None) -> None:
        """Prepare for a run; `problems` has found nothing.

        Args:
            cfg: The mask settings.
            grid: Patches along the grid's side.
            seed: The run's seed.
            batch_size: Images in a global batch.
            context_length: Patches kept in a context; None: `cfg.context_tokens`, or the longest that 95 % of
                images reach at their first draw.
        """
        self.cfg, self.grid, self.seed, self.batch_size = cfg, grid, seed, batch_size
        self.context_length = context_length or cfg.context_tokens or max(1, _longest(cfg, grid, _ENOUGH))

    def plan(self, step: int, first: int, count: int) -> Plan:
        """Decide for positions first .. first + count - 1 of a step's global batch."""
        target, block = self._sizes(step)
        numbers = np.arange(count) + (step * self.batch_size + first)
        target_corners, available = self._draw(numbers, target, block, self.seed)
        rows = self._short(available, np.arange(count))
        for attempt in range(1, _REDRAWS + 1):
            if not len(rows):
                break
            seed = counter.fold(self.seed, attempt)
            target_corners[rows], available[rows] = self._draw(numbers[rows], target, block, seed)
            rows = self._short(available, rows)
        if len(rows):
            target_corners[rows], available[rows] = self._last_resort(numbers[rows], target, block)
        return Plan(target, first_patch(target_corners, self.grid), available, self.context_length)

    def _sizes(self, step: int) -> tuple[Size, Size]:
        """Shape the step's targets and contexts: scale and log aspect uniform and independent."""
        cfg, n = self.cfg, self.grid**2
        share = counter.uniform_np(self.seed, counter.STREAM_MASK_SIZE, np.array([step]), 3)[0].tolist()
        low, high = (math.log(aspect) for aspect in cfg.target_aspect)
        aspect = math.exp(between((low, high), share[1]))
        return (
            block_size(n * between(cfg.target_scale, share[0]), aspect, self.grid),
            block_size(n * between(cfg.context_scale, share[2]), 1.0, self.grid),
        )

    def _draw(self, numbers: np.ndarray, target: Size, block: Size, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw target corners, int64 [n, M, 2], and what stays available to the contexts, bool [n, C, N]."""
        cfg, grid, m = self.cfg, self.grid, self.cfg.num_targets
        draw = counter.uniform_np(seed, counter.STREAM_MASK, numbers, 2 * (m + cfg.num_contexts))
        draw = draw.reshape(len(numbers), -1, 2)
        target_corners = corners(draw[:, :m], target, grid)
        available = covered(corners(draw[:, m:], block, grid), block, grid)
        if not cfg.allow_overlap:
            available &= ~covered(target_corners, target, grid).any(1, keepdims=True)
        return target_corners, available

    def _short(self, available: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Keep the rows whose image has a context with fewer available patches than must stay."""
        return rows[np.count_nonzero(available[rows], axis=-1).min(1) < self.context_length]

    def _last_resort(self, numbers: np.ndarray, target: Size, block: Size) -> tuple[np.ndarray, np.ndarray]:
        """Stack an image's targets in one random corner of the grid and its contexts in the opposite one."""
        seed = counter.fold(self.seed, _REDRAWS + 1)
        far = counter.uniform_np(seed, counter.STREAM_MASK, numbers, 2)[:, None] >= 0.5  # bottom, right
        target_corners = np.where(far, self.grid - np.array(target), 0)  # [n, 1, 2]
        available = covered(np.where(far, 0, self.grid - np.array(block)), block, self.grid)
        if not self.cfg.allow_overlap:
            available &= ~covered(target_corners, target, self.grid)
        m, c = self.cfg.num_targets, self.cfg.num_contexts
        return target_corners.repeat(m, axis=1), available.repeat(c, axis=1)

    @staticmethod
    def problems(cfg: MasksConfig, grid: int) -> list[str]:
        """Say what can never be satisfied on this grid, and which key to change."""
        h, w = min(_unbiased_targets(cfg, grid), key=math.prod)
        if h * w == 0:
            return [
                f"masks.target_scale {cfg.target_scale} and masks.target_aspect {cfg.target_aspect} make "
                f"target blocks of {h} x {w} patches on a {grid} x {grid} grid. Raise masks.target_scale, or "
                "use smaller patches (model.patch_size) or larger crops (data.crop_size)."
            ]
        longest, asked = _longest(cfg, grid, _TOO_FEW), cfg.context_tokens or 1
        if asked > longest:
            return [
                f"masks.context_tokens must be at most {longest} for these scales on a {grid} x {grid} grid, "
                f"{asked} asked for: more is available to too few images. Lower masks.context_tokens or "
                "masks.target_scale, or raise masks.context_scale."
                if longest
                else "the targets leave the contexts no patch in too many images. Lower "
                "masks.target_scale or masks.num_targets, or raise masks.context_scale."
            ]
        return []

    @staticmethod
    def micro_batch_problems(cfg: MasksConfig, batch_size: int, micro_batch: int) -> list[str]:
        """Say why the global batch cannot be planned in such micro-batches: any can."""
        return []


def _unbiased_targets(cfg: MasksConfig, grid: int) -> set[Size]:
    """List the target sizes of the unbiased sampler."""
    return possible_sizes(grid, cfg.target_scale, cfg.target_aspect, grid, together=False)


def _longest(cfg: MasksConfig, grid: int, share: float) -> int:
    """Find the longest context that this share of images reaches at once and the last resort always.

    Simulated with a seed of its own, so that the length is a function of the settings alone.
    """
    trial = Unbiased(cfg, grid, seed=0, batch_size=_IMAGES, context_length=1)
    patches = []
    for step in range(_STEPS):
        numbers = np.arange(_IMAGES) + step * _IMAGES
        _, available = trial._draw(numbers, *trial._sizes(step), trial.seed)
        patches.append(np.count_nonzero(available, axis=-1).min(1))
    usual = int(np.quantile(np.concatenate(patches), 1 - share, method="lower"))
    contexts = possible_sizes(grid, cfg.context_scale, (1.0, 1.0), grid, together=True)
    if cfg.allow_overlap:
        return min(usual, *(math.prod(size) for size in contexts))
    return min(usual, smallest_room(contexts, _unbiased_targets(cfg, grid), grid)[0])
