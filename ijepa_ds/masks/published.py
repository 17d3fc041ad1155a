"""The multi-block sampler of the published runs, as a distribution, and what it can never satisfy.

Matched to the published code: sizes, corners, relaxations and the cut; docs/masks.md lists the oddities.
Letters: n images, M targets, C contexts, N patches.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from ijepa_ds import counter
from ijepa_ds.masks.blocks import Plan, Size, between, block_size, corners, covered, first_patch, possible_sizes, smallest_room
from ijepa_ds.masks.settings import MasksConfig

_FAILURES = 20  # failures of a context block before one target less is kept away from it


class Published:
    """The sampler of the published runs, as a distribution."""

    keeps_at_random = False

    def __init__(self, cfg: MasksConfig, grid: int, seed: int, batch_size: int) -> None:
        """Prepare for a run; `problems` has found nothing."""
        self.cfg, self.grid, self.seed, self.batch_size = cfg, grid, seed, batch_size
        self._latest: tuple[tuple[int, int], Plan] | None = None  # (step, group) and its plan

    def plan(self, step: int, first: int, count: int) -> Plan:
        """Decide for positions first .. first + count - 1 of a step's global batch.

        Raises:
            ValueError: The positions reach over the border of a truncation group.
        """
        size = self.cfg.truncation_group
        group, start = divmod(first, size)
        if start + count > size:
            raise ValueError(_across_groups(size, count))
        if self._latest is None or self._latest[0] != (step, group):
            self._latest = (step, group), self._plan_group(step, group)
        whole, rows = self._latest[1], slice(start, start + count)
        return replace(whole, target_first=whole.target_first[rows], available=whole.available[rows])

    def _plan_group(self, step: int, group: int) -> Plan:
        """Decide for a whole truncation group; positions beyond the batch count for the cut alone."""
        cfg, grid, m = self.cfg, self.grid, self.cfg.num_targets
        share = counter.uniform_np(self.seed, counter.STREAM_MASK_SIZE, np.array([step]), 2)[0].tolist()
        target, block = self._sizes(share[0], share[1])
        numbers = self._numbers(step, group)
        draw = counter.uniform_np(self.seed, counter.STREAM_MASK, numbers, 2 * (m + cfg.num_contexts))
        draw = draw.reshape(len(numbers), -1, 2)
        target_corners = corners(draw[:, :m], target, grid - 1)
        available = covered(corners(draw[:, m:], block, grid - 1), block, grid)  # [n, C, N]
        if not cfg.allow_overlap:
            hidden = covered(target_corners, target, grid)  # [n, M, N]
            available &= ~hidden.any(1, keepdims=True)
        patches = np.count_nonzero(available, axis=-1)  # [n, C]
        if not cfg.allow_overlap:
            self._relax(numbers, hidden, block, available, patches)
        return Plan(target, first_patch(target_corners, grid), available, int(patches.min()))

    def _sizes(self, share_target: float, share_context: float) -> tuple[Size, Size]:
        """Shape the step's targets and contexts; one number drives both scale and aspect."""
        cfg, n = self.cfg, self.grid**2
        aspect = between(cfg.target_aspect, share_target)
        return (
            block_size(n * between(cfg.target_scale, share_target), aspect, self.grid - 1),
            block_size(n * between(cfg.context_scale, share_context), 1.0, self.grid - 1),
        )

    def _relax(self, numbers: np.ndarray, hidden: np.ndarray, block: Size, available: np.ndarray, patches: np.ndarray) -> None:
        """Draw contexts with too few patches again, in place, and count them; after 20 failures the last target is let in.

        After 20 more the one before it, and so on. At the last level the whole block counts, which suffices.
        """
        cfg = self.cfg
        rows, columns = np.nonzero(patches <= cfg.min_keep)
        for attempt in range(1, _FAILURES * cfg.num_targets + 1):
            if not len(rows):
                return
            seed = counter.fold(self.seed, attempt)
            draw = counter.uniform_np(seed, counter.STREAM_MASK, numbers[rows], 2 * cfg.num_contexts)
            draw = draw.reshape(len(rows), -1, 2)[np.arange(len(rows)), columns]
            kept_away = hidden[rows, : cfg.num_targets - attempt // _FAILURES].any(1)
            visible = covered(corners(draw, block, self.grid - 1), block, self.grid) & ~kept_away
            available[rows, columns] = visible
            patches[rows, columns] = left = np.count_nonzero(visible, axis=-1)
            short = left <= cfg.min_keep
            rows, columns = rows[short], columns[short]

    def _numbers(self, step: int, group: int) -> np.ndarray:
        """Number a group's images: global sample numbers, and negative ones of their own beyond the batch."""
        size = self.cfg.truncation_group
        position = np.arange(group * size, (group + 1) * size)
        beyond = position - self.batch_size
        return np.where(beyond < 0, step * self.batch_size + position, -1 - step * size - beyond)

    @staticmethod
    def problems(cfg: MasksConfig, grid: int) -> list[str]:
        """Say what can never be satisfied on this grid; the published code hangs there for ever."""
        targets = possible_sizes(grid, cfg.target_scale, cfg.target_aspect, grid - 1, together=True)
        contexts = possible_sizes(grid, cfg.context_scale, (1.0, 1.0), grid - 1, together=True)
        (h, w), (height, width) = min(targets, key=math.prod), min(contexts, key=math.prod)
        place, least = f"on a {grid} x {grid} grid", f"masks.min_keep = {cfg.min_keep}"
        found = []
        if h * w <= cfg.min_keep:
            found.append(
                f"masks.target_scale {cfg.target_scale} and masks.target_aspect {cfg.target_aspect} make "
                f"target blocks of {h} x {w} = {h * w} patches {place}, but a target needs more than "
                f"{least}. Set masks.min_keep below {h * w}, raise masks.target_scale, or use smaller "
                "patches (model.patch_size) or larger crops (data.crop_size)."
            )
        if height * width <= cfg.min_keep:
            found.append(
                f"masks.context_scale {cfg.context_scale} makes context blocks of {height} x {width} patches "
                f"{place}, but a context needs more than {least}. Raise masks.context_scale or set "
                f"masks.min_keep below {height * width}."
            )
        elif not cfg.allow_overlap:
            room, (h, w) = smallest_room(contexts, targets, grid - 1)
            if room <= cfg.min_keep:
                found.append(
                    f"target blocks of {h} x {w} patches leave a context at most {room} patches {place}, but "
                    f"it needs more than {least}. Lower masks.target_scale or masks.min_keep, or raise "
                    "masks.context_scale."
                )
        if cfg.context_tokens is not None:
            found.append(
                "masks.context_tokens has no meaning for masks.sampler published, which cuts to the shortest "
                "of masks.truncation_group images. Remove it, or set masks.sampler to unbiased."
            )
        return found

    @staticmethod
    def micro_batch_problems(cfg: MasksConfig, batch_size: int, micro_batch: int) -> list[str]:
        """Say why the global batch cannot be planned in such micro-batches."""
        size = cfg.truncation_group
        inside = size % micro_batch == 0 or batch_size <= size
        return [] if inside else [_across_groups(size, micro_batch)]


def _across_groups(size: int, micro_batch: int) -> str:
    """Explain a micro-batch across the border of a truncation group."""
    return (
        f"masks.truncation_group is {size}, so a micro-batch of {micro_batch} images reaches over a "
        "group's border, and two groups have contexts of two lengths. Make masks.truncation_group a "
        "multiple of the micro-batch, or change optimization.max_micro_batch."
    )
