"""Reading of image files: retries on network file systems, and checks against the index."""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar, overload

import numpy as np

from ijepa_ds.data.image_header import read_header
from ijepa_ds.data.index import ImageIndex

logger = logging.getLogger(__name__)
T = TypeVar("T")

TRANSIENT = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.ECONNRESET})
WAITS = (0.1, 0.5, 2.0)  # seconds before each retry
_OPEN_TARS = 128  # per reader


def retry(work: Callable[[], T], what: str) -> T:
    """Call `work`, and retry after transient I/O errors.

    Args:
        work: The read.
        what: Its name in messages.

    Raises:
        OSError: A permanent error at once, a transient one after the last attempt.
    """
    for wait in (*WAITS, None):
        try:
            return work()
        except OSError as error:
            if error.errno not in TRANSIENT or wait is None:
                raise
            logger.warning("%s: %s; trying again in %.1f s", what, error.strerror, wait)
            time.sleep(wait)
    raise AssertionError("not reached")


def read_range(descriptor: int, offset: int, num_bytes: int) -> bytes:
    """Read exactly `num_bytes` bytes from `offset`.

    Raises:
        ValueError: The file ends before.
        OSError: The read fails.
    """
    content = os.pread(descriptor, num_bytes, offset)
    while len(content) < num_bytes:  # above 2 GiB, or interrupted
        more = os.pread(descriptor, num_bytes - len(content), offset + len(content))
        if not more:
            raise ValueError(f"ends after {len(content)} of {num_bytes} bytes")
        content += more
    return content


def digest(content: bytes) -> int:
    """Return a 64-bit checksum of an image's bytes, never 0."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") or 1


class _Tar:
    """An open tar that closes with its last reference."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class Reader:
    """A thread-safe reader of the images of an index."""

    def __init__(self, index: ImageIndex) -> None:
        """Prepare to read; files are opened on demand."""
        self._index = index
        self._tars: OrderedDict[int, _Tar] = OrderedDict()
        self._lock = threading.Lock()

    def display_path(self, position: int) -> str:
        """Return the path of an image for messages."""
        return self._index.display_path(position)

    def read(self, position: int) -> bytes:
        """Read the bytes of an image, with retries after transient errors.

        Raises:
            ValueError: The image changed since it was indexed, or was unreadable then.
            OSError: The read fails.
        """
        if position in self._index.bad:
            raise ValueError(self._index.bad[position])
        entry = self._index.rows([position])[0]
        content = retry(lambda: self._bytes(position, entry), repr(self._index.display_path(position)))
        checksum = int(entry["checksum"])
        if checksum and digest(content) != checksum:
            raise ValueError("other bytes than when it was indexed (checksum)")
        width, height = read_header(io.BytesIO(content))[:2]
        if (width, height) != (entry["width"], entry["height"]):
            raise ValueError(f"{width}x{height} pixels, but {entry['width']}x{entry['height']} when it was indexed")
        return content

    def _bytes(self, position: int, entry: object) -> bytes:
        offset, num_bytes, container = (int(entry[key]) for key in ("offset", "num_bytes", "container"))  # type: ignore[index]
        if self._index.containers[container].fingerprint:
            tar = self._tar(container)
            return read_range(tar.descriptor, offset, num_bytes)
        descriptor = os.open(self._index.path(position), os.O_RDONLY | os.O_CLOEXEC)
        try:
            now = os.fstat(descriptor).st_size
            if now != num_bytes:
                raise ValueError(f"{now} bytes, but {num_bytes} when it was indexed" if now else "empty file")
            return read_range(descriptor, 0, num_bytes)
        finally:
            os.close(descriptor)

    def _tar(self, container: int) -> _Tar:
        with self._lock:
            tar = self._tars.pop(container, None) or _Tar(self._index.containers[container].path)
            self._tars[container] = tar
            if len(self._tars) > _OPEN_TARS:
                self._tars.popitem(last=False)
            return tar


class ImageFile(str):
    """The display path of an image, with a `read` method that returns its bytes, and its `name` below the source."""

    name: str
    read: Callable[[], bytes]  # raises the errors of `Reader.read`

    @classmethod
    def of(cls, reader: Reader, index: ImageIndex, position: int) -> ImageFile:
        """Return the image at a position."""
        file = cls(index.display_path(position))
        file.name, file.read = os.fsdecode(index.name(position)), partial(reader.read, position)
        return file


class ImageFiles(Sequence[ImageFile]):
    """A lazy sequence of the images at some positions of an index."""

    def __init__(self, index: ImageIndex, positions: np.ndarray) -> None:
        """List the images at `positions`, int64 [n]."""
        self._reader, self._index, self._positions = Reader(index), index, positions

    def subset(self, chosen: np.ndarray) -> ImageFiles:
        """Return the images at some places of this sequence, int64 [k]."""
        return ImageFiles(self._index, self._positions[chosen])

    def __len__(self) -> int:
        """Return n."""
        return len(self._positions)

    @overload
    def __getitem__(self, index: int) -> ImageFile: ...
    @overload
    def __getitem__(self, index: slice) -> list[ImageFile]: ...
    def __getitem__(self, index: int | slice) -> ImageFile | list[ImageFile]:
        """Return one image, or a slice of them."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return ImageFile.of(self._reader, self._index, int(self._positions[index]))
