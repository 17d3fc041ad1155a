"""What ranks tell each other beside training: failures before it starts, and a few numbers a step.

All of it goes over a gloo group of its own, in host memory: nothing here waits for a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from ijepa_ds.distributed.world import gather_objects, host_group
from ijepa_ds.errors import CheckpointError

T = TypeVar("T")


def agree(work: Callable[[], T]) -> T:
    """Do something on every rank that may fail on any; when it fails on one, every rank raises the same error.

    Raises:
        CheckpointError, ValueError: the first rank's; ValueError also stands for an OSError.
    """
    result, problem = None, None
    try:
        result = work()
    except (ValueError, OSError, CheckpointError) as error:
        problem = (isinstance(error, CheckpointError), str(error))
    problems = gather_objects(problem)
    first = next((found for found in problems if found), None)
    if first:
        of_checkpoint, text = first
        where = [str(rank) for rank, found in enumerate(problems) if found]
        if len(where) < len(problems) and where != ["0"]:
            text = f"{text}\n(on rank {', '.join(where)} only)"
        raise CheckpointError(text) if of_checkpoint else ValueError(text)
    return result  # type: ignore[return-value]


class Agreement:
    """Numbers of which every rank learns the largest, once a step, at the same step everywhere.

    `post` starts one all-reduce of a few bytes and returns; `wait` gives the result. Between the two the rank works on.
    """

    def __init__(self) -> None:
        self._numbers = torch.zeros(0, dtype=torch.int64)
        self._work: torch.distributed.Work | None = None

    def post(self, *numbers: int) -> None:
        """Tell the others; every rank posts as many numbers, and as often."""
        self._numbers = torch.tensor(numbers, dtype=torch.int64)
        if torch.distributed.get_world_size() > 1:
            self._work = torch.distributed.all_reduce(
                self._numbers, op=torch.distributed.ReduceOp.MAX, group=host_group(), async_op=True
            )

    def wait(self) -> list[int]:
        """The largest of what any rank posted, number by number."""
        if self._work:
            self._work.wait()
            self._work = None
        return self._numbers.tolist()
