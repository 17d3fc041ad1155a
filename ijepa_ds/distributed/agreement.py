"""Agreement between ranks: errors that every rank raises together, and a few numbers exchanged once a step."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import distributed as dist

from ijepa_ds.distributed.exchange import Group, decide, host_group, max_over_ranks
from ijepa_ds.errors import CheckpointError, NetworkError, StorageError, UserError, agreed, exit_code, text_of
from ijepa_ds.exits import STOPPED

T = TypeVar("T")
_NAMED = 8  # hosts in a message
EXCHANGED: tuple[type[Exception], ...] = (UserError, OSError, CheckpointError, StorageError, NetworkError)


def agree(work: Callable[[], T], errors: tuple[type[Exception], ...] = EXCHANGED, group: Group = None) -> T:
    """Run `work` on every rank; if it fails on one, every rank raises the same error.

    A successful call costs one all-reduce of 8 bytes. After a failure, rank 0 gathers the messages and sends one to all.

    Args:
        work: called once on every rank.
        errors: exceptions that are exchanged. A rank raises any other one alone.
        group: all ranks, over gloo; `exchange.host_group()` when None.

    Returns:
        This rank's result.

    Raises:
        CheckpointError, StorageError: the error of the lowest failing rank, if it is one, or a fault of storage or network.
        UserError: the error of the lowest failing rank, whatever else it is.
    """
    result, problem = None, None
    try:
        result = work()
    except errors as error:
        problem = (_kind(error), text_of(error), socket.gethostname())
    if not max_over_ranks(problem is not None, group):
        return result  # type: ignore[return-value]
    kind, text = decide(problem, _first, group)
    raise agreed(kind(text))


_Problem = tuple[type[Exception], str, str]  # its kind, its text, the host


def _first(problems: Sequence[_Problem | None]) -> tuple[type[Exception], str]:
    """The error of the lowest failing rank; it names the failing ranks and their hosts unless all fail, or rank 0 alone."""
    failed = {rank: problem for rank, problem in enumerate(problems) if problem}
    kind, text, _ = failed[min(failed)]
    if len(failed) < len(problems) and list(failed) != [0]:
        hosts: dict[str, list[int]] = {}
        for rank, (_, _, host) in failed.items():
            hosts.setdefault(host, []).append(rank)
        named = [f"rank {', '.join(map(str, ranks))} on host {host}" for host, ranks in list(hosts.items())[:_NAMED]]
        more = f"; and {len(hosts) - _NAMED} more hosts" if len(hosts) > _NAMED else ""
        text = f"{text}\n(only {'; '.join(named)}{more})"
    return kind, text


def _kind(error: Exception) -> type[Exception]:
    """The type under which every rank raises an error: what has to happen next."""
    if isinstance(error, CheckpointError):
        return CheckpointError
    return StorageError if exit_code(error) == STOPPED else UserError


class Agreement:
    """The maximum over ranks of a few integers, exchanged once a step while the rank does other work.

    `post` starts one asynchronous all-reduce of a few bytes; `wait` returns its result.
    """

    def __init__(self) -> None:
        self._numbers = torch.zeros(0, dtype=torch.int64)
        self._work: dist.Work | None = None

    def post(self, *numbers: int) -> None:
        """Start the exchange; every rank posts equally many numbers, equally often."""
        self._numbers = torch.tensor(numbers, dtype=torch.int64)
        if dist.get_world_size() > 1:
            self._work = dist.all_reduce(self._numbers, op=dist.ReduceOp.MAX, group=host_group(), async_op=True)

    def wait(self) -> list[int]:
        """The maximum over ranks of each posted number."""
        if self._work:
            self._work.wait()
            self._work = None
        return self._numbers.tolist()
