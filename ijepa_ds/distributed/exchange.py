"""Small exchanges between ranks, in host memory, over a gloo group. They never wait for a GPU and need no DeepSpeed."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed as dist

PATIENCE = timedelta(days=30)  # in a collective; hangs are found by `cluster.watch`, which knows what is waited for
Group = Any  # of torch.distributed
T = TypeVar("T")
R = TypeVar("R")


@functools.cache
def host_group() -> Group:
    """The gloo group of all ranks. The first call creates it, so every rank must make that call."""
    return dist.new_group(backend="gloo", timeout=PATIENCE)


def gather_on_first(value: T, group: Group = None) -> list[T] | None:
    """`value` of every rank, in rank order, on rank 0; None on the others.

    A rank sends one message, and rank 0 receives one from each. `torch.distributed.gather_object` sends the sizes of all to
    all first.

    Args:
        value: any picklable object.
        group: all ranks, over gloo; `host_group()` when None.
    """
    group, text = group or host_group(), pickle.dumps(value)
    mine = torch.zeros(int(max_over_ranks(len(text), group)), dtype=torch.uint8)
    mine[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    every = [torch.empty_like(mine) for _ in range(dist.get_world_size())] if dist.get_rank() == 0 else None
    dist.gather(mine, every, dst=0, group=group)
    # `loads` stops at the end of the value and ignores the zeros behind it
    return [pickle.loads(part.numpy().tobytes()) for part in every] if every is not None else None


def broadcast_object(value: Any, group: Group = None) -> Any:
    """Rank 0's `value`, on every rank; what the other ranks pass is ignored."""
    values = [value]
    dist.broadcast_object_list(values, src=0, group=group or host_group())
    return values[0]


def decide(value: T, choose: Callable[[list[T]], R], group: Group = None) -> R:
    """What rank 0 makes of the values of all ranks, on every rank.

    Args:
        value: any picklable object.
        choose: called on rank 0 with the values in rank order; it must not raise. Only its result is sent to every rank.
        group: all ranks, over gloo; `host_group()` when None.
    """
    every = gather_on_first(value, group)
    return broadcast_object(None if every is None else choose(every), group)


def gather_objects(value: T, group: Group = None) -> list[T]:
    """`value` of every rank, in rank order, on every rank: for small tables at start; `decide` sends less."""
    return decide(value, lambda every: every, group)


def max_over_ranks(value: float, group: Group = None) -> float:
    """The largest `value` of all ranks: one all-reduce of 8 bytes."""
    largest = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group or host_group())
    return largest.item()


def host_barrier() -> None:
    """Wait for all ranks."""
    dist.barrier(group=host_group())
