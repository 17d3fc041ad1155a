"""A mapping of tensors that are read on access and not cached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from torch import Tensor


class LazyTensors(Mapping[str, Tensor]):
    """Tensors by name; every access calls the tensor's reader."""

    def __init__(self, readers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._readers = dict(readers)

    def __getitem__(self, name: str) -> Tensor:
        """Read a tensor."""
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._readers)

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self._readers)

    def __contains__(self, name: object) -> bool:
        """Whether the name exists; nothing is read."""
        return name in self._readers


def prefixed(inner: Mapping[str, Tensor], prefix: str) -> LazyTensors:
    """Entries whose names start with `prefix`, with the prefix removed."""
    return LazyTensors({name[len(prefix) :]: partial(inner.__getitem__, name) for name in inner if name.startswith(prefix)})
