"""Which image goes into which shard, and the reading of the images that are written."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from ijepa_ds.data.headers import READ_ERRORS
from ijepa_ds.data.reading import Reader
from ijepa_ds.errors import UserError

_WINDOW = 64  # prefetched images
_THREADS = 8


class Plan(NamedTuple):
    """Which image goes where: three numbers an image, as headers are made when they are written.

    Attributes:
        positions: int64 [m], the readable images in the source, in order.
        containers: int32 [m], the number of each one's container: its tar, or its row group among those of all files.
        offsets: int64 [m], of each one's bytes in its tar, or of its row in its row group.
        firsts: int64 [k + 1], where each shard begins in `positions`; the last is m.
    """

    positions: np.ndarray
    containers: np.ndarray
    offsets: np.ndarray
    firsts: np.ndarray

    def members(self, shard: int) -> slice:
        """The images of a shard, as places in `positions`."""
        return slice(int(self.firsts[shard]), int(self.firsts[shard + 1]))


def contents(reader: Reader, positions: list[int]) -> Iterator[tuple[int, bytes]]:
    """Yield the images at some positions with their bytes, read ahead on threads.

    Raises:
        UserError: An image is no longer readable.
    """

    def read(position: int) -> bytes:
        try:
            return reader.read(position)
        except READ_ERRORS as error:
            raise UserError(
                f"{reader.display_path(position)!r} is no longer readable: {error}; index the source again, or exclude "
                "it with `ijepa-ds data check --fix-index`"
            ) from error

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="read") as pool:
        for first in range(0, len(positions), _WINDOW):
            window = positions[first : first + _WINDOW]
            yield from zip(window, pool.map(read, window), strict=True)
