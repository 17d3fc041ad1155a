"""Reading of image files: waits for storage that fails, and checks against the index."""

from __future__ import annotations

import hashlib
import io
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, TypeVar, overload

import numpy as np

from ijepa_ds.data.headers import part_of
from ijepa_ds.data.image_header import KINDS, RASTERS, read_header
from ijepa_ds.data.index import ImageIndex
from ijepa_ds.data.index_file import KIND
from ijepa_ds.data.rasters import Raster
from ijepa_ds.data.values import PLAIN, Values
from ijepa_ds.errors import ContentError, is_fault
from ijepa_ds.storage import TIMEOUT, Storage

if TYPE_CHECKING:
    from ijepa_ds.data.row_groups import RowGroups

T = TypeVar("T")
PARQUET_CACHE = 1024  # MiB; the default of data.parquet_cache
_OPEN_TARS = 128  # per reader; up to 16 times as many where a process may open many files


def read_range(descriptor: int, offset: int, num_bytes: int) -> bytes:
    """Read exactly `num_bytes` bytes from `offset`.

    Raises:
        ContentError: The file ends before.
        OSError: The read fails.
    """
    content = os.pread(descriptor, num_bytes, offset)
    while len(content) < num_bytes:  # above 2 GiB, or interrupted
        more = os.pread(descriptor, num_bytes - len(content), offset + len(content))
        if not more:
            raise ContentError(f"ends after {len(content)} of {num_bytes} bytes")
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

    def __init__(self, index: ImageIndex, storage_timeout: float = TIMEOUT, parquet_cache: int = PARQUET_CACHE) -> None:
        """Prepare to read; files are opened on demand.

        Args:
            index: The images.
            storage_timeout: Seconds for which a read is repeated while the storage fails.
            parquet_cache: As `data.parquet_cache`.
        """
        self._index = index
        self.storage = Storage(storage_timeout)
        self._tars: OrderedDict[int, _Tar] = OrderedDict()
        self._opening: dict[int, threading.Lock] = {}
        self._most = max(_OPEN_TARS, min(16 * _OPEN_TARS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))
        self._lock = threading.Lock()
        self._groups: RowGroups | None = None
        if any(container.column for container in index.containers):
            from ijepa_ds.data.row_groups import RowGroups  # late: pyarrow takes half a second

            self._groups = RowGroups(parquet_cache << 20)

    def display_path(self, position: int) -> str:
        """Return the path of an image for messages."""
        return self._index.display_path(position)

    def read(self, position: int) -> bytes:
        """Read the bytes of an image; while the storage fails, wait and open the file again.

        Raises:
            ContentError: The image changed since it was indexed, cannot be opened, or was unreadable then.
            StorageError: The storage failed for too long.
        """
        if position in self._index.bad:
            raise ContentError(self._index.bad[position])
        entry = self._index.rows([position])[0]
        container = int(entry["container"])
        content = self._patiently(lambda: self._bytes(position, entry, container), position, container)
        checksum = int(entry["checksum"])
        if checksum and digest(content) != checksum:
            raise ContentError("other bytes than when it was indexed (checksum)")
        if KINDS[int(entry["format"]) & KIND] != "NPY":  # its size depends on data.arrays; reading it compares
            _check_size(entry, *read_header(io.BytesIO(content))[:2])
        return content

    def read_raster(self, position: int, use: Callable[[BinaryIO], tuple[Raster, T]]) -> T | None:
        """Read part of a TIFF or NumPy file; waits and errors are those of `read`.

        Args:
            position: Of the image.
            use: Reads from the file; returns what the file is, and the result.

        Returns:
            The result; None for other files, and for those that are only read as a whole: of parquet, or with a checksum.
        """
        entry = self._index.rows([position])[0]
        container = int(entry["container"])
        place = self._index.containers[container]
        if (
            KINDS[int(entry["format"]) & KIND] not in RASTERS
            or place.column
            or entry["checksum"]
            or position in self._index.bad
        ):
            return None

        def attempt() -> T:
            with self._opened(position, entry, container) as file:
                raster, result = use(file)
            _check_size(entry, raster.width, raster.height)
            return result

        return self._patiently(attempt, position, container)

    def _patiently(self, attempt: Callable[[], T], position: int, container: int) -> T:
        try:
            return self.storage.call(
                attempt,
                repr(self._index.display_path(position)),
                fault=lambda error: is_fault(error) or self._is_lost(container),
                reopen=lambda: self._forget(container),
            )
        except OSError as error:
            raise ContentError(error.strerror or str(error)) from error

    @contextmanager
    def _opened(self, position: int, entry: np.void, container: int) -> Iterator[BinaryIO]:
        offset, num_bytes = int(entry["offset"]), int(entry["num_bytes"])
        if self._index.containers[container].fingerprint:
            tar = self._tar(container)
            yield part_of(tar.descriptor, offset, num_bytes)
            return
        descriptor = os.open(self._index.path(position), os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check_length(os.fstat(descriptor).st_size, num_bytes)
            yield part_of(descriptor, 0, num_bytes)
        finally:
            os.close(descriptor)

    def _bytes(self, position: int, entry: np.void, container: int) -> bytes:
        offset, num_bytes = int(entry["offset"]), int(entry["num_bytes"])
        if self._groups is not None and self._index.containers[container].column:
            content = self._groups.read(self._index.containers[container], offset)
            if len(content) != num_bytes:
                raise ContentError(f"{len(content)} bytes, but {num_bytes} when it was indexed")
            return content
        if self._index.containers[container].fingerprint:
            tar = self._tar(container)
            return read_range(tar.descriptor, offset, num_bytes)
        descriptor = os.open(self._index.path(position), os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check_length(os.fstat(descriptor).st_size, num_bytes)
            return read_range(descriptor, 0, num_bytes)
        finally:
            os.close(descriptor)

    def _is_lost(self, container: int) -> bool:
        """Whether a whole folder or tar cannot be opened, as after the loss of a mount: no fault of a single image."""
        place = self._index.containers[container]
        return bool(place.fingerprint) or not os.path.isdir(place.path)

    def _tar(self, container: int) -> _Tar:
        with self._lock:
            tar = self._tars.get(container)
            if tar is not None:
                self._tars.move_to_end(container)
                return tar
            opening = self._opening.setdefault(container, threading.Lock())
        with opening:  # an open of a network disk takes milliseconds: only threads that need the same tar wait for it
            with self._lock:
                tar = self._tars.get(container)
            if tar is None:
                tar = _Tar(self._index.containers[container].path)
            with self._lock:
                self._tars[container] = tar
                self._opening.pop(container, None)
                if len(self._tars) > self._most:
                    self._tars.popitem(last=False)
            return tar

    def _forget(self, container: int) -> None:
        """Close a tar, whose descriptor a file server may have forgotten (ESTALE)."""
        with self._lock:
            self._tars.pop(container, None)
        if self._groups is not None:
            self._groups.forget(self._index.containers[container].path)


def _check_length(now: int, num_bytes: int) -> None:
    if now != num_bytes:
        raise ContentError(f"{now} bytes, but {num_bytes} when it was indexed" if now else "empty file")


def _check_size(entry: np.void, width: int, height: int) -> None:
    if (width, height) != (entry["width"], entry["height"]):
        raise ContentError(f"{width}x{height} pixels, but {entry['width']}x{entry['height']} when it was indexed")


def _state(path: str | bytes) -> bytes:
    status = os.stat(path)
    return b"\0%d %d" % (status.st_size, status.st_mtime_ns)


class ImageFile(str):
    """The display path of an image, with a `read` method for its bytes, its `name` below the source, and its `values`."""

    name: str
    values: Values = PLAIN
    read: Callable[[], bytes]  # raises the errors of `Reader.read`

    @classmethod
    def of(cls, reader: Reader, index: ImageIndex, position: int) -> ImageFile:
        """Return the image at a position."""
        file = cls(index.display_path(position))
        file.name, file.read = os.fsdecode(index.name(position)), partial(reader.read, position)
        file.values = index.values
        return file


class ImageFiles(Sequence[ImageFile]):
    """A lazy sequence of the images at some positions of an index."""

    def __init__(self, index: ImageIndex, positions: np.ndarray) -> None:
        """List the images at `positions`, int64 [n]."""
        self._reader, self._index, self._positions = Reader(index), index, positions

    @property
    def checksum(self) -> str:
        """Of the index: names and sizes."""
        return self._index.checksum

    def index_of(self, labels: np.ndarray, classes: Sequence[str]) -> ImageIndex:
        """Return an index of these images alone, with other classes: `labels` int [n], positions in `classes`."""
        return self._index.only(self._positions, labels, classes)

    def subset(self, chosen: np.ndarray) -> ImageFiles:
        """Return the images at some places of this sequence, int64 [k]."""
        return ImageFiles(self._index, self._positions[chosen])

    def identity(self) -> str:
        """Return a digest of these images in their order: where they are, and sizes and times of their files as they are now.

        Raises:
            OSError: A file is gone.
        """
        total, tars = hashlib.sha256(), dict[int, bytes]()
        for position, entry in zip(self._positions.tolist(), self._index.rows(self._positions.tolist()), strict=True):
            container = int(entry["container"])
            place = self._index.containers[container]
            if place.fingerprint and container not in tars:
                tars[container] = os.fsencode(f"{place.path}\0{place.fingerprint}\0{place.column}\0{place.group}") + _state(
                    place.path
                )
            path = self._index.path(position)
            file = tars[container] if place.fingerprint else os.fsencode(path) + _state(path)
            total.update(file + b"\0%d %d\0" % (entry["offset"], entry["num_bytes"]) + self._index.name(position) + b"\n")
        return total.hexdigest()

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
