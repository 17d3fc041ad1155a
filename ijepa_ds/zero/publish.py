"""Writing new values into the weights that ZeRO computes with, so that its next pass sees them."""

from __future__ import annotations

from typing import Any

import torch
from deepspeed import comm as dist
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from torch import Tensor, nn


def place_buffers(model: nn.Module, device: torch.device) -> None:
    """Move tables and other buffers to the device: `zero.Init` places parameters only, and DeepSpeed then leaves the rest."""
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(device))


@torch.no_grad()
def publish_partitions(pairs: list[tuple[Any, Tensor]]) -> None:
    """Write this rank's stage-3 partitions, without communication.

    Args:
        pairs: a partitioned parameter, and the values of its partition on this rank (padding included), 1-D.
    """
    for parameter, _ in pairs:
        if parameter.ds_status == ZeroParamStatus.AVAILABLE:
            # A small parameter that DeepSpeed keeps gathered: drop the full copy, or it would hide the new values.
            parameter.partition(has_been_updated=False)
        parameter.ds_secondary_tensor = None  # hpZ's copy within the node: stale as well, rebuilt at the next gather
    torch._foreach_copy_([p.ds_tensor.data.view(-1) for p, _ in pairs], [value for _, value in pairs])


def own_share(flat: Tensor, numel: int, group: Any) -> Tensor:
    """This rank's part, `[numel]`, of a flat buffer that the ranks of `group` share out in order."""
    return flat.narrow(0, dist.get_rank(group) * numel, numel)


@torch.no_grad()
def gather_flat(flat: Tensor, share: Tensor | None, group: Any) -> None:
    """Fill a replicated flat buffer from every rank's `share` of it: one all-gather in the buffer's type.

    `share`: None if this rank's is in the buffer already.
    """
    world = dist.get_world_size(group)
    local = own_share(flat, flat.numel() // world if share is None else share.numel(), group)
    if share is not None:
        local.copy_(share)
    if world > 1:
        dist.all_gather_into_tensor(flat, local, group=group)  # in place: each rank's part lies where it belongs
