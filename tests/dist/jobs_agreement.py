"""What the ranks of the pool run to test small exchanges."""

from __future__ import annotations

import errno
from typing import Any


def exchanges() -> dict[str, Any]:
    """Every exchange once; errors of `agree` as (type, text)."""
    from torch import distributed as dist

    from ijepa_ds.distributed import exchange
    from ijepa_ds.distributed.agreement import Agreement, agree
    from ijepa_ds.distributed.world import initialise_distributed
    from ijepa_ds.errors import CheckpointError, StorageError, UserError

    initialise_distributed()
    rank = dist.get_rank()

    def failure(failing: tuple[int, ...], error: Exception, **options: Any) -> tuple[str, str]:
        def work() -> None:
            if rank in failing:
                raise error

        try:
            agree(work, **options)
        except (UserError, CheckpointError, StorageError) as found:
            return type(found).__name__, str(found)
        return "", ""

    agreement = Agreement()
    agreement.post(rank, 5 - rank)
    found = {
        "result": agree(lambda: f"of rank {rank}"),
        "on rank 1": failure((1,), CheckpointError("broken")),
        "on both": failure((0, 1), UserError(f"from rank {rank}")),
        "of a file": failure((0,), FileNotFoundError(errno.ENOENT, "no such file")),
        "of the storage": failure((1,), OSError(errno.EIO, "no answer")),
        "also": failure((1,), RuntimeError("memory"), errors=(RuntimeError,)),
        "none": failure((), ValueError("never")),
        "maxima": agreement.wait(),
        "first": exchange.broadcast_object({"rank": rank}),
        "on first": exchange.gather_on_first(rank),
        "on all": exchange.gather_objects(rank),
        "max": exchange.max_over_ranks(rank * 2.5),
    }
    exchange.host_barrier()
    return found
