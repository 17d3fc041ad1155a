"""Multi-block masks: which patches the encoder sees and which patches the predictor predicts.

`build_sampler(...).sample(...)` is a pure function of (seed, step, position), so a run gets the same masks for any
world size, micro-batch and restart. It never waits for the device. Source: Assran et al., CVPR 2023, section 3.
Shapes: B images, C contexts, M targets, Kc and Kt patches in each, N = grid * grid patches in raster order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ijepa_ds import counter
from ijepa_ds.errors import UserError
from ijepa_ds.masks.blocks import Planner, Size
from ijepa_ds.masks.published import Published
from ijepa_ds.masks.settings import MasksConfig
from ijepa_ds.masks.unbiased import Unbiased

SAMPLERS: dict[str, type[Planner]] = {"published": Published, "unbiased": Unbiased}  # masks.sampler


@dataclass(frozen=True)
class Masks:
    """Patch indices of one micro-batch, ascending in every list, on the device of the model.

    Attributes:
        context: int64 [B, C, Kc], the patches that the context encoder sees.
        targets: int64 [B, M, Kt], the patches that the predictor predicts; every list is a full rectangle.
    """

    context: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Sampler:
    """Draws the masks of a run.

    Attributes:
        planner: Plans block sizes and positions on the host.
        grid: Patches along the grid's side.
        seed: The run's seed.
        batch_size: Images in a global batch.
    """

    planner: Planner
    grid: int
    seed: int
    batch_size: int

    def sample(self, step: int, first_position: int, count: int, device: torch.device | str) -> Masks:
        """Draw the masks of consecutive positions of a step's global batch.

        Args:
            step: Optimizer step, from 0.
            first_position: First position in the global batch.
            count: Number of positions, B.
            device: Where the index tensors are built.

        Returns:
            Masks of B images of equal lengths. The unbiased sampler uses one context length for the whole run,
            the published one a length for each truncation group.

        Raises:
            ValueError: Positions are outside the batch, or in two truncation groups.
        """
        if first_position < 0 or count < 1 or first_position + count > self.batch_size:
            raise UserError(
                f"positions {first_position} to {first_position + count - 1} are not inside the global batch "
                f"of {self.batch_size} images (optimization.batch_size)"
            )
        plan = self.planner.plan(step, first_position, count)
        targets = _rectangles(_to_device(plan.target_first, device), plan.target_size, self.grid)
        keep = _to_device(plan.available, device)
        if self.planner.random_context:
            first = step * self.batch_size + first_position
            keep = _choose(keep, plan.context_length, self.seed, first)
        return Masks(context=_first_of(keep, plan.context_length), targets=targets)


def build_sampler(cfg: MasksConfig, grid: int, seed: int, batch_size: int) -> Sampler:
    """Build the sampler named by `cfg.sampler`.

    Args:
        cfg: The mask settings.
        grid: Patches along the grid's side (crop size / patch size).
        seed: The run's seed.
        batch_size: Images in a global batch, over all ranks and micro-batches.

    Raises:
        ValueError: `check` finds the settings impossible on this grid.
    """
    problems = check(cfg, grid)
    if problems:
        raise UserError("\n".join(problems))
    return Sampler(SAMPLERS[cfg.sampler](cfg, grid, seed, batch_size), grid, seed, batch_size)


def check(cfg: MasksConfig, grid: int, batch_size: int | None = None, micro_batch: int | None = None) -> list[str]:
    """List the mask settings that cannot work on a grid.

    Args:
        cfg: The mask settings.
        grid: Patches along the grid's side.
        batch_size: Images in a global batch; checked together with `micro_batch`.
        micro_batch: Images per device and forward pass.

    Returns:
        One message per problem, each naming the key to change; empty if every step can be sampled.
    """
    found = []
    if cfg.sampler not in SAMPLERS:
        found.append(f"masks.sampler is {cfg.sampler!r}, expected one of: {', '.join(SAMPLERS)}")
    if grid < 2:
        found.append(f"the grid is {grid} x {grid} patches: lower model.patch_size or raise data.crop_size")
    for key in ("context_scale", "target_scale"):
        low, high = getattr(cfg, key)
        if not 0 < low <= high <= 1:
            found.append(f"masks.{key} is {(low, high)}, expected two ascending shares above 0 and at most 1")
    low, high = cfg.target_aspect
    if not 0 < low <= high:
        found.append(f"masks.target_aspect is {(low, high)}, expected two ascending ratios above 0")
    least = {"num_contexts": 1, "num_targets": 1, "min_keep": 0, "truncation_group": 1, "context_tokens": 1}
    for key, minimum in least.items():
        value = getattr(cfg, key)
        if value is not None and value < minimum:
            found.append(f"masks.{key} is {value}, expected at least {minimum}")
    if found:
        return found
    sampler = SAMPLERS[cfg.sampler]
    if batch_size is not None and micro_batch is not None:
        found += sampler.micro_batch_problems(cfg, batch_size, micro_batch)
    return found + sampler.problems(cfg, grid)


def take(x: Tensor, indices: Tensor) -> Tensor:
    """Gather patches from every image.

    Args:
        x: [B, N, D].
        indices: int64 [B, K].

    Returns:
        [B, K, D].
    """
    return x.gather(1, indices[..., None].expand(-1, -1, x.shape[-1]))


def _to_device(array: np.ndarray, device: torch.device | str) -> Tensor:
    """Copy from numpy without blocking; an asynchronous copy to a CUDA device needs pinned memory."""
    host = torch.from_numpy(array)
    if torch.device(device).type != "cuda":
        return host.to(device)
    return torch.empty(array.shape, dtype=host.dtype, pin_memory=True).copy_(host).to(device, non_blocking=True)


def _rectangles(first: Tensor, size: Size, grid: int) -> Tensor:
    """Return the patch indices of blocks from their top left patches: int64 [B, M] to [B, M, Kt]."""
    rows = torch.arange(size[0], device=first.device) * grid
    offsets = rows[:, None] + torch.arange(size[1], device=first.device)
    return first[..., None] + offsets.flatten()


def _choose(available: Tensor, length: int, seed: int, first_number: int) -> Tensor:
    """Choose a uniform random subset of `length` available patches of every context: bool [B, C, N]."""
    number = torch.arange(available.shape[0], device=available.device) + first_number
    draws = available.shape[1] * available.shape[2]
    score = counter.uniform(seed, counter.STREAM_MASK_KEEP, number, draws).view(available.shape)
    score = score.masked_fill(~available, 2.0)
    highest = score.topk(length, largest=False, sorted=False).values.amax(-1, keepdim=True)
    return score <= highest


def _first_of(keep: Tensor, length: int) -> Tensor:
    """Return the indices of the first `length` marked patches of every context: bool [B, C, N] to int64 [B, C, length]."""
    count = keep.cumsum(-1)  # the k-th marked patch is the first position with count k
    ranks = torch.arange(1, length + 1, device=keep.device).expand(*keep.shape[:-1], -1)
    return torch.searchsorted(count, ranks.contiguous())
