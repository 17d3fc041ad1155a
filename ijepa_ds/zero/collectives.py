"""Calls, bytes and host seconds of every collective that DeepSpeed issues.

Bytes are the size of the message, as `plan` and NCCL's tests count them: the reduced tensor of an all-reduce, the whole
result of an all-gather, the whole input of a reduce-scatter.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from deepspeed import comm
from torch import Tensor

# DeepSpeed's method -> (kind, the argument whose bytes are counted, its position)
_METHODS = {
    "all_reduce": ("all_reduce", "tensor", 0),
    "all_reduce_coalesced": ("all_reduce", "tensors", 0),
    "reduce": ("reduce", "tensor", 0),
    "broadcast": ("broadcast", "tensor", 0),
    "all_gather": ("all_gather", "tensor_list", 0),
    "all_gather_into_tensor": ("all_gather", "output_tensor", 0),
    "all_gather_coalesced": ("all_gather", "output_tensors", 0),
    "reduce_scatter": ("reduce_scatter", "input_list", 1),
    "reduce_scatter_tensor": ("reduce_scatter", "input_tensor", 1),
    "all_to_all_single": ("all_to_all", "output", 0),
}


@dataclass
class Traffic:
    """Totals of one kind of collective on this rank."""

    calls: int = 0
    bytes: int = 0
    seconds: float = 0.0  # host time in the call and in waiting; on CUDA only the launch


class Collectives:
    """Counts collectives inside a `with` block; `totals` has a `Traffic` for each kind.

    Raises:
        RuntimeError: on entry, if there is no process group.
    """

    def __init__(self) -> None:
        self.totals: dict[str, Traffic] = {}
        self._inside = False
        self._backend: Any = None

    def __enter__(self) -> Collectives:
        """Replace the backend's methods by counting ones."""
        self._backend = comm.comm.cdb
        if self._backend is None:
            raise RuntimeError("no process group yet: call distributed.world.initialise_distributed first")
        for method, (kind, name, position) in _METHODS.items():
            setattr(self._backend, method, self._counted(getattr(self._backend, method), kind, name, position))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Restore the backend's methods."""
        for method in _METHODS:
            delattr(self._backend, method)  # the class's method is visible again

    @property
    def bytes(self) -> int:
        """Bytes of all kinds."""
        return sum(traffic.bytes for traffic in self.totals.values())

    @property
    def seconds(self) -> float:
        """Host seconds of all kinds."""
        return sum(traffic.seconds for traffic in self.totals.values())

    def _counted(self, function: Callable[..., Any], kind: str, name: str, position: int) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if self._inside:  # a coalesced call may issue single ones
                return function(*arguments, **named)
            traffic = self.totals.setdefault(kind, Traffic())
            traffic.calls += 1
            traffic.bytes += _bytes(named[name] if name in named else arguments[position])
            self._inside, start = True, time.perf_counter()
            try:
                work = function(*arguments, **named)
            finally:
                self._inside = False
                traffic.seconds += time.perf_counter() - start
            return work if work is None or not hasattr(work, "wait") else _Work(work, traffic)

        return call


class _Work:
    """A pending collective; the time spent in `wait` is counted."""

    def __init__(self, work: Any, traffic: Traffic) -> None:
        self._work, self._traffic = work, traffic

    def wait(self, *arguments: Any, **named: Any) -> Any:
        """Wait as the wrapped object does."""
        start = time.perf_counter()
        try:
            return self._work.wait(*arguments, **named)
        finally:
            self._traffic.seconds += time.perf_counter() - start

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(_bytes(item) for item in value)
