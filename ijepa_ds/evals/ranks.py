"""Several ranks evaluate one encoder: each computes a share of the features, rank 0 gathers them. Needs no DeepSpeed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

from ijepa_ds.cluster.meeting import meet
from ijepa_ds.distributed import agreement
from ijepa_ds.distributed.environment import START_TIMEOUT, launcher_world
from ijepa_ds.distributed.exchange import Group

T = TypeVar("T")
_PATIENCE = timedelta(days=2)  # the others wait while rank 0 fits classifiers
_ROWS = 1 << 24  # values sent at a time: 64 MiB


@dataclass(frozen=True)
class World:
    """The ranks of an evaluation.

    Attributes:
        rank: this process, from 0.
        local_rank: among the processes of this host.
        size: number of ranks.
        group: over gloo; None: the default group.
    """

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    group: Group = None

    def share(self, total: int) -> range:
        """This rank's contiguous part of `total` items; every item belongs to exactly one rank."""
        return range(self.rank * total // self.size, (self.rank + 1) * total // self.size)


ALONE = World()


def join() -> World:
    """Create the process group if a launcher (`deepspeed --module ijepa_ds.evals`) started several ranks.

    Raises:
        ValueError: the launcher set only some of the environment variables.
        NetworkError: names the ranks that have not come.
    """
    found = launcher_world()
    if found is None:
        return ALONE
    world = World(*found)
    if world.size > 1 and not dist.is_initialized():
        meeting = meet(world.rank, world.size, START_TIMEOUT)  # the group below uses its store
        # gloo: only pooled features are sent, and they are in host memory
        dist.init_process_group("gloo", timeout=_PATIENCE)
        del meeting
    return world


def leave() -> None:
    """Destroy the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def agree(work: Callable[[], T], world: World) -> T:
    """`distributed.agreement.agree` for evaluations: also for RuntimeError, because no watch ends the other ranks.

    Raises:
        ValueError, CheckpointError: the error of the first rank that failed. A single rank raises its own.
    """
    if world.size == 1:
        return work()
    return agreement.agree(work, (ValueError, OSError, RuntimeError), world.group or dist.group.WORLD)


def gather_rows(rows: Tensor, total: int, world: World) -> Tensor | None:
    """Concatenate the ranks' shares on rank 0, in the order of the items.

    Args:
        rows: [n, ...] on the CPU, one row for each item of `world.share(total)`.
        total: number of items over all ranks.
        world: the ranks.

    Returns:
        [total, ...] on rank 0, None on the others.

    Raises:
        ValueError: the number of rows differs from that of the share.
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
