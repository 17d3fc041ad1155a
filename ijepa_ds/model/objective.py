"""Targets and losses; those beyond the published ones are in `docs/objective.md`.

Shapes: B images, N = G*G patches, D encoder width, K layers, T values of a target, C contexts and M target blocks per
image, Kc / Kt patches in a context / a target block. Outputs of the target encoder are `[B, N, D]`, or with
`targets.layers` those of its blocks `[B, N, K, D]`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F

from ijepa_ds.config.objective import TargetsConfig
from ijepa_ds.masks.sampler import Masks, take


def compare(outputs: Tensor, prediction: Tensor, targets: Tensor, cfg: TargetsConfig) -> tuple[Tensor, Tensor]:
    """Return the published loss and the targets; a compiler makes few kernels of it (`compiling.compile_blocks`).

    Args:
        outputs: Of the target encoder.
        prediction: `[B, C, M, Kt, T]`.
        targets: int64 `[B, M, Kt]`, patch indices.
        cfg: What the targets are.

    Returns:
        The smooth L1 loss, a float32 scalar, and `targets_of`.
    """
    target = targets_of(outputs, targets, cfg)
    return F.smooth_l1_loss(prediction.float(), target[:, None].expand(prediction.shape)), target


def targets_of(outputs: Tensor, patches: Tensor, cfg: TargetsConfig) -> Tensor:
    """Return the targets of some patches, float32 `[B, M, Kt, T]`.

    Args:
        outputs: Of the target encoder.
        patches: int64 `[B, M, Kt]`, patch indices.
        cfg: Each layer is normalised by itself; then they are put side by side (T = K * D) or averaged (T = D).
    """
    (b, m, k), inner = patches.shape, outputs.shape[2:]
    x = take(outputs.flatten(2), patches.flatten(1)).reshape(b, m, k, *inner).float()
    if cfg.norm == "layer":
        x = F.layer_norm(x, x.shape[-1:])
    elif cfg.norm == "tanh":
        x = x.tanh()
    if cfg.layers:
        x = x.mean(dim=-2) if cfg.combine == "mean" else x.flatten(-2)
    return x


def context_loss(prediction: Tensor, outputs: Tensor, masks: Masks, grid: int, cfg: TargetsConfig) -> Tensor:
    """Return the loss on the context's own patches, a float32 scalar.

    It is the smooth L1 loss of each patch times `nearness`, averaged over contexts, target blocks and patches.

    Args:
        prediction: `[B, C, M, Kc, T]`: every target block is a sequence of its own, with its own prediction of the context.
        outputs: Of the target encoder.
        masks: Contexts `[B, C, Kc]` and targets `[B, M, Kt]`.
        grid: G.
        cfg: What the targets are.
    """
    target = targets_of(outputs, masks.context, cfg)[:, :, None]  # [B, C, 1, Kc, T]
    loss = F.smooth_l1_loss(prediction.float(), target.expand(prediction.shape), reduction="none").mean(dim=-1)
    return (loss * nearness(masks, grid)).mean()


def nearness(masks: Masks, grid: int) -> Tensor:
    """Return the weights of context patches, float32 `[B, C, M, Kc]`: 1 / sqrt(d).

    d is the distance to the nearest patch of the target block, in patches. It counts as 1 where a context overlaps the
    block.
    """
    first, last = masks.targets.amin(dim=-1)[:, None, :, None], masks.targets.amax(dim=-1)[:, None, :, None]  # a rectangle
    patch = masks.context[:, :, None]  # [B, C, 1, Kc]

    def outside(low: Tensor, at: Tensor, high: Tensor) -> Tensor:
        return torch.maximum(low - at, at - high).clamp(min=0)

    rows = outside(first // grid, patch // grid, last // grid)
    columns = outside(first % grid, patch % grid, last % grid)
    squared = (rows.square() + columns.square()).clamp(min=1)
    return squared.float().pow(-0.25)


def spread_terms(projected: Tensor) -> tuple[Tensor, Tensor]:
    """Return the variance and the covariance term of projected contexts, float32 scalars (VICReg, arXiv 2105.04906).

    With C the covariance matrix over all contexts of the global batch, divided by their number less one:

        variance = mean_i max(0, 1 - sqrt(C_ii + 1e-4))        covariance = sum_(i != j) C_ij^2 / P

    Every rank gets the same value. Two all-reduces, of P and P * P numbers; the backward pass has none.

    Args:
        projected: This rank's `[n, P]`; n is the same on every rank.
    """
    z = projected.float()
    total = len(z) * (dist.get_world_size() if dist.is_initialized() else 1)
    # the mean needs no gradient: the sum of centred values is 0, and with it the derivative by the mean
    centred = z - _over_ranks(z.detach().sum(dim=0)) / total
    covariance = _over_ranks(centred.T @ centred) / (total - 1)  # [P, P]
    variance = covariance.diagonal()
    hinge = (1 - (variance + 1e-4).sqrt()).relu().mean()
    apart = (covariance.square().sum() - variance.square().sum()) / len(variance)
    return hinge, apart


def _over_ranks(x: Tensor) -> Tensor:
    """Return the sum over ranks; its gradient on this rank is the exact one times the number of ranks.

    DeepSpeed averages the gradients of all ranks. The term is one number of the whole batch, not a mean of terms of ranks:
    the exact gradient is the sum.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return x
    total, mine = x.detach().clone(), x * dist.get_world_size()
    dist.all_reduce(total)
    return mine + (total - mine).detach()
