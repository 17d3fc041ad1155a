"""The multi-block mask sampler of the published runs.

Sizes, positions, relaxation and truncation follow the published code's distribution (Assran et al., CVPR 2023);
docs/masks.md lists its peculiarities.
Shapes: n images, M targets, C contexts, N patches.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from ijepa_ds import counter
from ijepa_ds.errors import UserError
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
from ijepa_ds.masks.thin import THIN, context_share
from ijepa_ds.masks.unbiased import Unbiased

_SIDES = 12  # grids that are tried for an advice
_ATTEMPTS = 20  # draws of a context block before it may overlap one more target


class Published:
    """The sampler of the published runs: contexts are truncated in raster order, in groups of images."""

    random_context = False

    def __init__(self, cfg: MasksConfig, grid: int, seed: int, batch_size: int) -> None:
        """Prepare for a run with settings in which `problems` found nothing."""
        self.cfg, self.grid, self.seed, self.batch_size = cfg, grid, seed, batch_size
        self._latest: tuple[tuple[int, int], Plan] | None = None  # (step, group) and its plan

    def plan(self, step: int, first: int, count: int) -> Plan:
        """Plan positions first .. first + count - 1 of a step's global batch.

        Raises:
            ValueError: The positions belong to two truncation groups.
        """
        size = self.cfg.truncation_group
        group, start = divmod(first, size)
        if start + count > size:
            raise UserError(_across_groups(size, count))
        if self._latest is None or self._latest[0] != (step, group):
            self._latest = (step, group), self._plan_group(step, group)
        whole, rows = self._latest[1], slice(start, start + count)
        return replace(whole, target_first=whole.target_first[rows], available=whole.available[rows])

    def _plan_group(self, step: int, group: int) -> Plan:
        """Plan a whole truncation group; positions beyond the batch only affect the common context length."""
        cfg, grid, m = self.cfg, self.grid, self.cfg.num_targets
        drawn = counter.uniform_np(self.seed, counter.STREAM_MASK_SIZE, np.array([step]), 2)[0].tolist()
        target, block = self._sizes(drawn[0], drawn[1])
        numbers = self._numbers(step, group)
        draw = counter.uniform_np(self.seed, counter.STREAM_MASK, numbers, 2 * (m + cfg.num_contexts))
        draw = draw.reshape(len(numbers), -1, 2)
        target_corners = corners(draw[:, :m], target, grid - 1)
        available = block_mask(corners(draw[:, m:], block, grid - 1), block, grid)  # [n, C, N]
        if not cfg.allow_overlap:
            target_masks = block_mask(target_corners, target, grid)  # [n, M, N]
            available &= ~target_masks.any(1, keepdims=True)
        patches = np.count_nonzero(available, axis=-1)  # [n, C]
        if not cfg.allow_overlap:
            self._relax(numbers, target_masks, block, available, patches)
        return Plan(target, first_patch(target_corners, grid), available, int(patches.min()))

    def _sizes(self, target: float, context: float) -> tuple[Size, Size]:
        """Return the step's target and context sizes; one number in [0, 1) drives both scale and aspect of a target."""
        cfg, n = self.cfg, self.grid**2
        aspect = interpolate(cfg.target_aspect, target)
        return (
            block_size(n * interpolate(cfg.target_scale, target), aspect, self.grid - 1),
            block_size(n * interpolate(cfg.context_scale, context), 1.0, self.grid - 1),
        )

    def _relax(
        self, numbers: np.ndarray, target_masks: np.ndarray, block: Size, available: np.ndarray, patches: np.ndarray
    ) -> None:
        """Redraw contexts with at most `min_keep` patches; updates `available` and `patches` in place.

        After 20 failed draws the context may overlap the last target, after 20 more the one before it, and so on.
        In the end it may overlap all targets; `problems` checked that the whole block is large enough.
        """
        cfg = self.cfg
        rows, columns = np.nonzero(patches <= cfg.min_keep)
        for attempt in range(1, _ATTEMPTS * cfg.num_targets + 1):
            if not len(rows):
                return
            seed = counter.fold(self.seed, attempt)
            draw = counter.uniform_np(seed, counter.STREAM_MASK, numbers[rows], 2 * cfg.num_contexts)
            draw = draw.reshape(len(rows), -1, 2)[np.arange(len(rows)), columns]
            excluded = target_masks[rows, : cfg.num_targets - attempt // _ATTEMPTS].any(1)
            visible = block_mask(corners(draw, block, self.grid - 1), block, self.grid) & ~excluded
            available[rows, columns] = visible
            patches[rows, columns] = left = np.count_nonzero(visible, axis=-1)
            short = left <= cfg.min_keep
            rows, columns = rows[short], columns[short]

    def _numbers(self, step: int, group: int) -> np.ndarray:
        """Return a group's global sample numbers; positions beyond the batch get unique negative numbers."""
        size = self.cfg.truncation_group
        position = np.arange(group * size, (group + 1) * size)
        beyond = position - self.batch_size
        return np.where(beyond < 0, step * self.batch_size + position, -1 - step * size - beyond)

    @staticmethod
    def problems(cfg: MasksConfig, grid: int, advise: bool = True) -> list[str]:
        """List the settings that can never be satisfied on this grid, where the published code loops for ever.

        `advise`: search for settings that can, and name them.
        """
        targets = possible_sizes(grid, cfg.target_scale, cfg.target_aspect, grid - 1, coupled=True)
        contexts = possible_sizes(grid, cfg.context_scale, (1.0, 1.0), grid - 1, coupled=True)
        (h, w), (height, width) = min(targets, key=math.prod), min(contexts, key=math.prod)
        where, minimum = f"on a {grid} x {grid} grid", f"masks.min_keep = {cfg.min_keep}"
        found = []
        if h * w <= cfg.min_keep:
            found.append(
                f"masks.target_scale {cfg.target_scale} and masks.target_aspect {cfg.target_aspect} make "
                f"target blocks of {h} x {w} = {h * w} patches {where}, but a target needs more than "
                f"{minimum}."
            )
        if height * width <= cfg.min_keep:
            found.append(
                f"masks.context_scale {cfg.context_scale} makes context blocks of {height} x {width} patches "
                f"{where}, but a context needs more than {minimum}."
            )
        elif not cfg.allow_overlap:
            left, (h, w) = min_context_patches(contexts, targets, grid - 1)
            if left <= cfg.min_keep:
                found.append(
                    f"target blocks of {h} x {w} patches leave a context at most {left} patches {where}, but "
                    f"it needs more than {minimum}."
                )
        if found and advise:
            advice = _way_out(cfg, grid)
            found = [f"{text} {advice}" for text in found]
        if cfg.context_tokens is not None:
            found.append(
                "masks.context_tokens has no effect with masks.sampler published, which truncates contexts to the "
                "shortest of masks.truncation_group images. Remove it, or set masks.sampler to unbiased."
            )
        return found

    @staticmethod
    def micro_batch_problems(cfg: MasksConfig, batch_size: int, micro_batch: int) -> list[str]:
        """List the reasons why the global batch cannot be split into micro-batches of this size."""
        size = cfg.truncation_group
        inside = size % micro_batch == 0 or batch_size <= size
        return [] if inside else [_across_groups(size, micro_batch)]


def _way_out(cfg: MasksConfig, grid: int) -> str:
    """Advice for settings that are impossible on a grid, as far as it gives a run whose contexts are large enough.

    A lower `min_keep` is no advice: it makes the settings possible, and contexts of a few patches, which teach nothing.
    """
    possible = [side for side in range(grid + 1, 2 * grid + 12) if not Published.problems(cfg, side, advise=False)]
    larger = next((side for side in possible[:_SIDES] if _is_healthy(Published, cfg, side)), None)
    smaller = replace(cfg, sampler="unbiased", min_keep=MasksConfig.min_keep, truncation_group=MasksConfig.truncation_group)
    words = []
    if larger:
        words.append(
            f"use at least {larger} x {larger} patches: smaller ones (model.patch_size) or larger crops (data.crop_size)"
        )
    if _is_healthy(Unbiased, smaller, grid):
        words.append("set masks.sampler to unbiased and remove masks.min_keep and masks.truncation_group")
    text = ", or ".join(words)
    if not words:
        text = "return masks.target_scale, masks.target_aspect, masks.context_scale and masks.min_keep to their defaults"
        default = MasksConfig()
        if replace(smaller, sampler="published") == default:
            return "Use smaller patches (model.patch_size) or larger crops (data.crop_size)."
        if Published.problems(default, grid, advise=False):
            return f"{text[0].upper()}{text[1:]}. Then: {_way_out(default, grid)}"
    return f"{text[0].upper()}{text[1:]}."


def _is_healthy(planner: type[Published] | type[Unbiased], cfg: MasksConfig, grid: int) -> bool:
    problems = Published.problems(cfg, grid, advise=False) if planner is Published else planner.problems(cfg, grid)
    return not problems and context_share(planner(cfg, grid, 0, cfg.truncation_group), grid) >= THIN


def _across_groups(size: int, micro_batch: int) -> str:
    """Return the message for a micro-batch that spans two truncation groups."""
    return (
        f"masks.truncation_group is {size}, so a micro-batch of {micro_batch} images spans two groups, whose "
        "contexts differ in length. Make masks.truncation_group a "
        "multiple of the micro-batch, or change optimization.max_micro_batch."
    )
