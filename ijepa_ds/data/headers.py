"""What an image file says about itself: its size, from its first bytes, and whether its end is there."""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # what both loaders decode; a GIF named .jpg is none of them
READ_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)  # Pillow's

_PNG_END = b"IEND\xaeB`\x82"
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = frozenset(range(0xD0, 0xD8)) | {0x01}


def read_size(path: bytes, max_pixels: int) -> tuple[int, int]:
    """Read an image's size from its header.

    A file whose last bytes are not its format's end is decoded once, so that truncated files are found here.
    Pixels damaged in the middle are not noticed (no decoder notices them either).

    Args:
        path: The file, as bytes: names need not be valid text.
        max_pixels: Refuse larger images.

    Returns:
        (width, height) as stored, before any EXIF orientation.

    Raises:
        ValueError: saying why the file cannot be used.
        OSError: when it cannot be read.
    """
    with open(path, "rb") as file:
        num_bytes = os.fstat(file.fileno()).st_size
        if num_bytes == 0:
            raise ValueError("empty file")
        head = file.read(16)
        file.seek(2)
        size = _jpeg_size(file) if head[:2] == b"\xff\xd8" else None
        if size is None:
            size = _pillow_size(file)
        width, height = size
        if width * height > max_pixels:
            raise ValueError(f"{width}x{height} pixels, more than data.max_pixels = {max_pixels}")
        if not _has_end(file, head, num_bytes):
            _decode(file)
    return width, height


def _jpeg_size(file: BinaryIO) -> tuple[int, int] | None:
    """Walk the markers after the start of a JPEG to its frame header; None: not found, ask Pillow."""
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


def _pillow_size(file: BinaryIO) -> tuple[int, int]:
    file.seek(0)
    try:
        with Image.open(file, formats=FORMATS) as image:
            return image.size
    except Image.UnidentifiedImageError:
        raise ValueError("not a JPEG, PNG, WebP or BMP image, whatever its name says") from None
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
