"""Process groups of any size of which only one rank exists: to measure what one rank's host does in a large cluster."""

from __future__ import annotations

import os

import torch.distributed


def pretend_world(ranks: int) -> None:
    """Make this process rank 0 of `ranks` ranks by PyTorch's `fake` backend: collectives return at once and move nothing.

    Values are meaningless afterwards. Call it before anything else joins a process group.

    Args:
        ranks: number of ranks, 1 or more.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore  # registers the backend

    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    torch.distributed.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
