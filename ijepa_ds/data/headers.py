"""Inspection of image files: the header, and a check that the file is complete."""

from __future__ import annotations

import io
import os
from typing import Any, BinaryIO

from ijepa_ds.data.image_header import RASTERS, Header, read_header
from ijepa_ds.data.pillow import check_pixels, decode
from ijepa_ds.errors import ContentError

_BYTES_A_PIXEL, _METADATA = 16, 64 << 20  # limits of a file: larger ones do not fit into memory beside the pixels
READ_ERRORS = (OSError, ValueError, MemoryError)  # of an image that cannot be read
_PNG_END = b"IEND\xaeB`\x82"


def part_of(descriptor: int, offset: int, num_bytes: int) -> io.BufferedReader:
    """Return a file object over a byte range of an open file."""
    return io.BufferedReader(Slice(descriptor, offset, num_bytes), 4096)


class Slice(io.RawIOBase):
    """A file object over a byte range of an open file, for example a member of a tar."""

    name = "image"  # pydicom asks for it

    def __init__(self, descriptor: int, offset: int, num_bytes: int) -> None:
        """Expose `num_bytes` bytes from `offset`; the caller closes `descriptor`."""
        self._descriptor, self._offset, self._num_bytes, self._at = descriptor, offset, num_bytes, 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position, at least 0, and return it."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._num_bytes}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer and return the number of bytes read."""
        size = max(0, min(len(buffer), self._num_bytes - self._at))
        content = os.pread(self._descriptor, size, self._offset + self._at)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


def inspect(file: BinaryIO, num_bytes: int, max_pixels: int, layout: str | None = None) -> Header:
    """Read an image's size and format from its header.

    A file without its format's end marker is decoded once, which finds truncated files. Damage in the middle is not
    detected; `ijepa-ds data check` finds it.

    Args:
        file: The image; closed at the end.
        num_bytes: Length of the image.
        max_pixels: Refuse larger images.
        layout: Of NumPy arrays, `hwc` or `chw`.

    Returns:
        Its header.

    Raises:
        ContentError: The image cannot be used; the text has the reason.
        OSError: The read fails.
    """
    if num_bytes == 0:
        raise ContentError("empty file")
    with file:
        header = read_header(file, layout)
        check_pixels(header.width, header.height, max_pixels)
        if header.kind in RASTERS:  # read in parts
            return header
        most = _BYTES_A_PIXEL * max_pixels + _METADATA
        if num_bytes > most:
            raise ContentError(f"{num_bytes:,} bytes, more than the {most:,} that data.max_pixels = {max_pixels} allows")
        file.seek(0)
        if not _has_end(file, file.read(16), num_bytes):
            file.seek(0)
            decode(file.read(), max_pixels)
    return header


def _has_end(file: BinaryIO, head: bytes, num_bytes: int) -> bool:
    if head[:4] == b"RIFF":
        return num_bytes >= int.from_bytes(head[4:8], "little") + 8
    end = {b"\xff\xd8": b"\xff\xd9", b"\x89P": _PNG_END}.get(head[:2], b"")
    file.seek(-min(len(end), num_bytes), os.SEEK_END)
    return file.read() == end
