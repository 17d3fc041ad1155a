"""Several ranks that share the images of an evaluation: each does a run of them, rank 0 gets all. Needs no DeepSpeed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
_PATIENCE = timedelta(days=2)  # the others wait while rank 0 fits classifiers
_ROWS = 1 << 24  # values sent at a time: 64 MiB


@dataclass(frozen=True)
class World:
    """Who is at work.

    Attributes:
        rank: this process, from 0.
        local_rank: among those of this machine.
        size: how many there are.
    """

    rank: int = 0
    local_rank: int = 0
    size: int = 1

    def share(self, total: int) -> range:
        """The items of `total` that are this rank's: one run of them, each item on exactly one rank."""
        return range(self.rank * total // self.size, (self.rank + 1) * total // self.size)


ALONE = World()


def join() -> World:
    """Join the other ranks, if a launcher (`deepspeed --module ijepa_ds.evals`) started some.

    Raises:
        ValueError: the launcher told this process only half of what it must know.
    """
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    given = [name for name in names if name in os.environ]
    if not given:
        return ALONE
    if len(given) < len(names):
        raise ValueError(f"{', '.join(given)} set but not {', '.join(sorted({*names} - {*given}))}: a broken launcher?")
    world = World(*(int(os.environ[name]) for name in names))
    if world.size > 1 and not dist.is_initialized():
        # gloo: what travels are pooled features, which are on the host anyway
        dist.init_process_group("gloo", timeout=_PATIENCE)
    return world


def leave() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def agree(work: Callable[[], T], world: World) -> T:
    """Do something on every rank that may fail on any; when it fails on one, every rank raises the same error.

    Raises:
        ValueError: with the message of the first rank that failed.
    """
    if world.size == 1:
        return work()
    result, problem = None, None
    try:
        result = work()
    except (ValueError, OSError, RuntimeError) as error:
        problem = str(error)
    problems: list[str | None] = [None] * world.size
    dist.all_gather_object(problems, problem)
    first = next((text for text in problems if text), None)
    if first:
        raise ValueError(first)
    return result  # type: ignore[return-value]


def gather_rows(rows: Tensor, total: int, world: World) -> Tensor | None:
    """Put the ranks' shares together on rank 0, in the order of the items.

    Args:
        rows: [n, ...] on the CPU, the results of `world.share(total)`; all dimensions but the first agree.
        total: items over all ranks.
        world: the ranks.

    Returns:
        [total, ...] on rank 0, None on the others.

    Raises:
        ValueError: a rank has another number of rows than its share.
    """
    mine = world.share(total)
    if len(rows) != len(mine):
        raise ValueError(f"rank {world.rank} has {len(rows)} results for its {len(mine)} of {total} images")
    if world.size == 1:
        return rows
    step = max(1, _ROWS // max(1, rows[:1].numel()))
    if world.rank:
        for part in rows.contiguous().split(step):
            dist.send(part.contiguous(), dst=0)
        return None
    whole = rows.new_empty(total, *rows.shape[1:])
    whole[: len(rows)] = rows
    for other in range(1, world.size):
        share = World(other, 0, world.size).share(total)
        for part in whole[share.start : share.stop].split(step):
            dist.recv(part, src=other)
    return whole
