"""Process groups of any size of which only one rank exists: to measure what one rank's host does in a large cluster."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

import torch
import torch.distributed as dist


def pretend_world(ranks: int) -> None:
    """Make this process rank 0 of `ranks` ranks by PyTorch's `fake` backend: collectives return at once and move nothing.

    Values are meaningless afterwards. Call it before anything else joins a process group.

    Args:
        ranks: number of ranks, 1 or more.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore  # registers the backend

    from ijepa_ds.distributed.world import without_shared_buffers

    without_shared_buffers()

    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())


def backend_seconds(calls: Mapping[str, int], repeats: int = 10) -> float:
    """Processor seconds that the `fake` backend itself spends in these collectives; no real backend does.

    Its all-gather and reduce-scatter visit every rank's part of a buffer: milliseconds at thousands of ranks.

    Args:
        calls: name (`bench.traffic.Traffic`) -> number of calls; all-reduces and rooted reduces cost nothing here.
        repeats: calls that are timed.
    """
    world = dist.get_world_size()
    share, whole = torch.zeros(1), torch.zeros(world)
    total = 0.0
    for name, function, pair in (
        ("allgather_base", dist.all_gather_into_tensor, (whole, share)),
        ("reduce_scatter_base", dist.reduce_scatter_tensor, (share, whole)),
    ):
        began = time.process_time()
        for _ in range(repeats if calls.get(name) else 0):
            function(*pair)
        total += calls.get(name, 0) * (time.process_time() - began) / repeats
    return total
