"""Writes values into the weights that ZeRO computes with, so that the next forward pass uses them."""

from __future__ import annotations

from typing import Any

import torch
from deepspeed import comm as dist
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from torch import Tensor, nn


def place_buffers(model: nn.Module, device: torch.device) -> None:
    """Move buffers to the device: `zero.Init` places parameters only, and DeepSpeed does not move buffers afterwards."""
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(device))


@torch.no_grad()
def publish_partitions(pairs: list[tuple[Any, Tensor]]) -> None:
    """Overwrite this rank's stage-3 partitions, without communication.

    Args:
        pairs: a partitioned parameter and the values of its local partition, 1-D, padding included.
    """
    for parameter, _ in pairs:
        if parameter.ds_status == ZeroParamStatus.AVAILABLE:
            # DeepSpeed keeps small parameters gathered: drop the full copy, which is stale now.
            parameter.partition(has_been_updated=False)
        parameter.ds_secondary_tensor = None  # hpZ's copy within the node is stale, too; the next gather rebuilds it
    torch._foreach_copy_([p.ds_tensor.data.view(-1) for p, _ in pairs], [value for _, value in pairs])


def own_share(flat: Tensor, numel: int, group: Any) -> Tensor:
    """This rank's part, `[numel]`, of a flat buffer that the ranks of `group` divide in order."""
    return flat.narrow(0, dist.get_rank(group) * numel, numel)


@torch.no_grad()
def gather_flat(flat: Tensor, share: Tensor | None, group: Any) -> None:
    """Fill a replicated flat buffer from all ranks' shares: one all-gather in the buffer's type.

    Args:
        flat: the buffer, 1-D, the same size on every rank.
        share: this rank's part, 1-D; None if the buffer has it already.
        group: process group that divides the buffer.
    """
    world = dist.get_world_size(group)
    local = own_share(flat, flat.numel() // world if share is None else share.numel(), group)
    if share is not None:
        local.copy_(share)
    if world > 1:
        dist.all_gather_into_tensor(flat, local, group=group)  # in place
