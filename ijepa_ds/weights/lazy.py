"""Tensors that are read when asked for, and not kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from torch import Tensor


class LazyTensors(Mapping[str, Tensor]):
    """Names, and how the tensor of each is read."""

    def __init__(self, readers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._readers = dict(readers)

    def __getitem__(self, name: str) -> Tensor:
        """Read one."""
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._readers)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._readers)

    def __contains__(self, name: object) -> bool:
        """Whether there is one of that name; nothing is read."""
        return name in self._readers


def prefixed(inner: Mapping[str, Tensor], prefix: str) -> LazyTensors:
    """The entries whose names begin with `prefix`, without it."""
    return LazyTensors({name[len(prefix) :]: partial(inner.__getitem__, name) for name in inner if name.startswith(prefix)})
