"""Image headers: size and format from the first bytes of a file, and a check that the file is complete."""

from __future__ import annotations

import io
import os
import struct
import warnings
from typing import Any, BinaryIO

from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # decoded by both loaders
READ_ERRORS = (  # raised by Pillow
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = frozenset(range(0xD0, 0xD8)) | {0x01}


class Slice(io.RawIOBase):
    """A file object over a byte range of an open file, for example a member of a tar."""

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


def inspect(descriptor: int, offset: int, num_bytes: int, max_pixels: int) -> tuple[int, int, str]:
    """Read an image's size and format from its header.

    A file without its format's end marker is decoded once, which finds truncated files. Damage in the middle is not
    detected; `ijepa-ds data check` finds it.

    Args:
        descriptor: An open file.
        offset: First byte of the image in the file.
        num_bytes: Length of the image.
        max_pixels: Refuse larger images.

    Returns:
        Width and height in pixels as stored, before any EXIF orientation, and one of `FORMATS`.

    Raises:
        ValueError: The image cannot be used; the text has the reason.
        OSError: The read fails.
    """
    if num_bytes == 0:
        raise ValueError("empty file")
    with io.BufferedReader(Slice(descriptor, offset, num_bytes), 4096) as file:
        width, height, kind = size_and_format(file)
        check_pixels(width, height, max_pixels)
        file.seek(0)
        if not _has_end(file, file.read(16), num_bytes):
            _decode(file)
    return width, height, kind


def size_and_format(file: BinaryIO) -> tuple[int, int, str]:
    """Return width, height and format of the image in `file`.

    Raises:
        ValueError: The file is not a readable image; the text has the reason.
    """
    file.seek(0)
    head = file.read(24)
    if head[:8] == _PNG_START and head[12:16] == b"IHDR":
        width, height = struct.unpack(">II", head[16:24])
        if not (width and height):
            raise ValueError("damaged header: no pixels")
        return width, height, "PNG"
    file.seek(2)
    size = _jpeg_size(file) if head[:2] == b"\xff\xd8" else None
    return (*size, "JPEG") if size else _pillow_size(file)


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Check the number of pixels against the limit.

    Raises:
        ValueError: The image is larger.
    """
    if width * height > max_pixels:
        raise ValueError(f"{width}x{height} pixels, more than data.max_pixels = {max_pixels}")


def _jpeg_size(file: BinaryIO) -> tuple[int, int] | None:
    """Return the size from a JPEG's frame header, or None if the markers do not lead to one."""
    while True:
        pair = file.read(2)
        while len(pair) == 2 and pair[0] == 0xFF and pair[1] == 0xFF:  # markers may be padded with 0xFF
            pair = pair[1:] + file.read(1)
        if len(pair) < 2 or pair[0] != 0xFF:
            return None
        if pair[1] in _WITHOUT_LENGTH:
            continue
        segment = file.read(7)
        if len(segment) < 7:
            return None
        length = (segment[0] << 8) | segment[1]
        if pair[1] in _START_OF_FRAME:
            height, width = (segment[3] << 8) | segment[4], (segment[5] << 8) | segment[6]
            return (width, height) if width and height else None
        if length < 2:
            return None
        file.seek(length - 7, os.SEEK_CUR)


def _pillow_size(file: BinaryIO) -> tuple[int, int, str]:
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we check data.max_pixels instead
            with Image.open(file, formats=FORMATS) as image:
                return *image.size, image.format or ""
    except Image.UnidentifiedImageError:
        raise ValueError("not a JPEG, PNG, WebP or BMP image") from None
    except READ_ERRORS as error:
        raise ValueError(f"damaged header: {error}") from error


def _has_end(file: BinaryIO, head: bytes, num_bytes: int) -> bool:
    if head[:4] == b"RIFF":
        return num_bytes >= int.from_bytes(head[4:8], "little") + 8
    end = {b"\xff\xd8": b"\xff\xd9", b"\x89P": _PNG_END}.get(head[:2], b"")
    file.seek(-min(len(end), num_bytes), os.SEEK_END)
    return file.read() == end


def _decode(file: BinaryIO) -> None:
    file.seek(0)
    try:
        with Image.open(file, formats=FORMATS) as image:
            image.load()
    except READ_ERRORS as error:
        raise ValueError(f"truncated or damaged: {error}") from error


def check_pixels_strictly(content: bytes) -> None:
    """Decode an image and treat decoder warnings, which both loaders ignore, as errors.

    This finds JPEGs with zeroed bytes and JPEGs whose header has a wrong size.

    Raises:
        ValueError: The image is damaged; the text has the reason.
    """
    import simplejpeg  # late: only this check needs it

    if content[:2] != b"\xff\xd8":
        return _decode(io.BytesIO(content))
    try:
        simplejpeg.decode_jpeg(content, strict=True)
    except ValueError as error:
        raise ValueError(f"damaged: {error}") from error
