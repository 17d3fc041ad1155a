"""Small exchanges between ranks, in host memory, over a gloo group. They never wait for a GPU and need no DeepSpeed."""

from __future__ import annotations

import functools
from datetime import timedelta
from typing import Any

import torch
from torch import distributed as dist

PATIENCE = timedelta(days=30)  # in a collective; hangs are found by `cluster.watch`, which knows what is waited for
Group = Any  # of torch.distributed


@functools.cache
def host_group() -> Group:
    """The gloo group of all ranks. The first call creates it, so every rank must make that call."""
    return dist.new_group(backend="gloo", timeout=PATIENCE)


def gather_objects(value: Any, group: Group = None) -> list[Any]:
    """`value` of every rank, in rank order, on every rank.

    Args:
        value: any picklable object.
        group: all ranks, over gloo; `host_group()` when None.
    """
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value, group=group or host_group())
    return gathered


def gather_on_first(value: Any) -> list[Any] | None:
    """`value` of every rank, in rank order, on rank 0; None on the others."""
    gathered = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, gathered, dst=0, group=host_group())
    return gathered


def broadcast_object(value: Any) -> Any:
    """Rank 0's `value`, on every rank; what the other ranks pass is ignored."""
    values = [value]
    dist.broadcast_object_list(values, src=0, group=host_group())
    return values[0]


def max_over_ranks(value: float, group: Group = None) -> float:
    """The largest `value` of all ranks: one all-reduce of 8 bytes."""
    largest = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group or host_group())
    return largest.item()


def host_barrier() -> None:
    """Wait for all ranks."""
    dist.barrier(group=host_group())
