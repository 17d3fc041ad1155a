"""The file format of an image index.

An index is one file, read through the page cache that all processes of a machine share:

    magic, length of the header   16 bytes
    header                        JSON: containers, classes, unreadable images, sizes of the tables
    entries                       64 bytes an image (ENTRY), in order
    names                         the bytes of all names, concatenated
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ijepa_ds.errors import UserError
from ijepa_ds.storage import Storage

ENTRY = np.dtype(
    [
        ("name", "<i8"),  # offset in the names
        ("name_length", "<i4"),
        ("container", "<i4"),
        ("offset", "<i8"),  # in a tar: of the first byte; in a row group: of the row
        ("num_bytes", "<i8"),
        ("mtime_ns", "<i8"),
        ("width", "<i4"),  # as stored; width and height are 0 if the image is unreadable
        ("height", "<i4"),
        ("label", "<i4"),  # index into classes; -1: none
        ("format", "<i4"),  # index into image_header.KINDS, BY_PILLOW, and the form of the numbers (`forms`)
        ("checksum", "<u8"),  # 0: not computed
    ]
)
KIND = 0xFF  # bits of `format`
BY_PILLOW = 0x100  # added to `format`: Pillow decodes the image in every loader
MAGIC = b"IJEPAIX1"
_ALIGN = 4096


@dataclass(frozen=True)
class Container:
    """A folder, a tar, or a row group of a parquet file, that contains images.

    Attributes:
        path: Absolute path; in an index file, relative to it if the container is below its folder.
        fingerprint: Digest of a file's length, first and last bytes (`tars.fingerprint`); empty for a folder.
        column: The column of images in a parquet file; empty for a folder or tar.
        group: Number of the row group.
        row: Number of its first row in the file.
    """

    path: str
    fingerprint: str = ""
    column: str = ""
    group: int = 0
    row: int = 0

    def plain(self) -> dict[str, str | int]:
        """Return the attributes that differ from their defaults, as JSON values."""
        return {name: value for name, value in asdict(self).items() if value or name == "path"}

    def relative_to(self, folder: Path) -> Container:
        """Return the container with a path relative to `folder` if it is below it, else unchanged."""
        path = Path(self.path)
        return replace(self, path=str(path.relative_to(folder))) if path.is_relative_to(folder) else self

    def below(self, folder: Path) -> Container:
        """Return the container with an absolute path; a relative path starts at `folder`."""
        return replace(self, path=os.path.normpath(folder / self.path))


@dataclass(frozen=True)
class Part:
    """One source of a mix.

    Attributes:
        source: Path or pattern.
        count: Number of its images.
        weight: Relative share of the samples; None: proportional to `count`.
    """

    source: str
    count: int
    weight: float | None


class IndexFile:
    """An open index file for reads of single entries; it waits while the storage fails, and closes with its last reference.

    Attributes:
        entries: Byte offset of the entries.
        names: Byte offset of the names.
        descriptor: The open file.
    """

    def __init__(self, path: Path, entries: int, names: int) -> None:
        """Open the file at `path`."""
        self._path, self.entries, self.names = path, entries, names
        self._storage = Storage()
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._num_bytes = os.fstat(self.descriptor).st_size

    def read(self, num_bytes: int, offset: int) -> bytes:
        """Read `num_bytes` bytes from `offset`.

        Raises:
            StorageError: The storage failed for too long.
        """
        return self._storage.call(
            lambda: os.pread(self.descriptor, num_bytes, offset),
            repr(str(self._path)),
            fault=lambda _: True,
            reopen=self._reopen,
        )

    def _reopen(self) -> None:
        """Replace the descriptor, which a file server may have forgotten (ESTALE), unless the file is another one now."""
        with suppress(OSError):  # the next read fails as before
            fresh = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if os.fstat(fresh).st_size == self._num_bytes:
                    os.dup2(fresh, self.descriptor, inheritable=False)
            finally:
                os.close(fresh)

    def __del__(self) -> None:
        """Close the file."""
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class Tables(NamedTuple):
    """The contents of an index file: header, ENTRY [n], uint8 [bytes of all names], and the file they are mapped from."""

    header: dict[str, Any]
    entries: np.ndarray
    names: np.ndarray
    file: IndexFile


def write_tables(path: Path, header: Mapping[str, Any], entries: np.ndarray, names: np.ndarray) -> None:
    """Write an index file, to a temporary file that is then renamed.

    Args:
        path: Absolute path of the file.
        header: JSON values; the lengths of the tables are added here.
        entries: ENTRY [n].
        names: uint8 [bytes of all names].
    """
    text = json.dumps({**header, "entries": len(entries), "names": len(names)}).encode()
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(partial, "wb") as file:
            file.write(MAGIC + len(text).to_bytes(8, "little") + text)
            for table in (entries, names):
                file.write(bytes(-file.tell() % _ALIGN))
                np.ascontiguousarray(table).tofile(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def map_tables(path: Path) -> Tables:
    """Map an index file into memory; only its header is read.

    Raises:
        ValueError: The file is not an index, or is truncated.
    """
    with open(path, "rb") as file:
        num_bytes = os.fstat(file.fileno()).st_size
        head = file.read(16)
        if head[:8] != MAGIC:
            raise UserError(f"{path} is not an index of this version; make it with `ijepa-ds data index SRC --out {path}`")
        length = int.from_bytes(head[8:], "little")
        text = file.read(length)
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        header = json.loads(text)
        first = _aligned(16 + length)
        second = _aligned(first + header["entries"] * ENTRY.itemsize)
        expected = second + header["names"]
    except (ValueError, KeyError, TypeError):
        expected = num_bytes + 1
    if num_bytes < expected:
        raise UserError(f"{path} is cut short: make it again with `ijepa-ds data index`")
    return Tables(
        header,
        np.frombuffer(mapping, ENTRY, header["entries"], first if header["entries"] else 0),
        np.frombuffer(mapping, np.uint8, header["names"], second if header["names"] else 0),
        IndexFile(path, first, second),
    )


def _aligned(offset: int) -> int:
    return offset + -offset % _ALIGN
