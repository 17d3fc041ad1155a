"""The decoder that defines the pixels of every image: Pillow, within the limit `data.max_pixels`."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from PIL import Image

from ijepa_ds.data.image_header import FORMATS, NOT_AN_IMAGE, PNG_START, RASTERS, Header, read_header
from ijepa_ds.data.pixels import to_rgb
from ijepa_ds.data.rasters import read_window
from ijepa_ds.data.values import ADVICE
from ijepa_ds.errors import ContentError

T = TypeVar("T")
_WORDS = ("truncated", "damaged", "more than")  # at the start of a reason
MAX_PIXELS = 100_000_000  # default of data.max_pixels
_PIXEL_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_DROPPED = frozenset({b"acTL", b"fcTL", b"fdAT", b"iCCP", b"zTXt", b"iTXt"})  # animation; what may be compressed
_LARGE_CHUNK = 1 << 16


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Check the number of pixels against the limit.

    Raises:
        ContentError: The image is larger.
    """
    if width * height > max_pixels:
        raise ContentError(f"{width}x{height} pixels, more than data.max_pixels = {max_pixels}")


def decode(content: bytes, max_pixels: int = MAX_PIXELS, layout: str | None = None) -> Image.Image:
    """Decode an image to RGB, without EXIF rotation.

    Args:
        content: The file's bytes.
        max_pixels: Refuse larger images before any pixel is decoded.
        layout: Of NumPy arrays, `hwc` or `chw`.

    Raises:
        ContentError: The image cannot be used; the text has the reason.
        MemoryError: This host is short of memory, which says nothing about the image.
    """
    header = checked_header(content, max_pixels, layout)
    return _raster_as_rgb(content, layout, None) if header.kind in RASTERS else load(content, header, to_rgb)


def checked_header(content: bytes, max_pixels: int, layout: str | None) -> Header:
    """Return the header of an image that is not too large; errors as in `decode`."""
    header = read_header(io.BytesIO(content), layout)
    check_pixels(header.width, header.height, max_pixels)
    return header


def load(content: bytes, header: Header, use: Callable[[Image.Image], T]) -> T:
    """Open an image with Pillow and return what `use` makes of it; errors as in `decode`."""
    try:
        with Image.open(io.BytesIO(pixel_chunks(content)), formats=FORMATS) as image:
            return use(image)
    except MemoryError as error:
        raise MemoryError(
            f"this host has not enough memory to decode an image of {header.width}x{header.height} pixels; a smaller "
            "data.max_pixels leaves large images out, fewer data.threads decode fewer at once"
        ) from error
    except Exception as error:  # Pillow raises errors of many types for damaged bytes
        text = reason(error)
        raise ContentError(text if text.startswith(_WORDS) else f"damaged: {text}") from error


def decode_window(content: bytes, window: np.ndarray, max_pixels: int, layout: str | None = None) -> Image.Image:
    """Decode an image and cut out a window, int [4] (top, left, height, width); errors as in `decode`."""
    if checked_header(content, max_pixels, layout).kind in RASTERS:
        return _raster_as_rgb(content, layout, window)
    top, left, height, width = window.tolist()
    return decode(content, max_pixels).crop((left, top, left + width, top + height))


def _raster_as_rgb(content: bytes, layout: str | None, window: np.ndarray | None) -> Image.Image:
    """A TIFF or NumPy file, or a window of it, if it is gray or RGB of 8 bits."""
    raster, part = read_window(io.BytesIO(content), layout, window)
    pixels = part.pixels
    if raster.depth != "uint8" or raster.channels not in (1, 3):
        raise ContentError(f"{raster.channels} channels of {raster.depth}: {ADVICE}")
    return Image.fromarray(pixels if raster.channels == 3 else pixels.repeat(3, axis=2))


def reason(error: BaseException) -> str:
    """Return the text of a read error in words, without the path, which messages print beside it."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    if isinstance(error, Image.UnidentifiedImageError):
        return f"damaged: {NOT_AN_IMAGE}, or its header is damaged"
    if isinstance(error, Image.DecompressionBombError):
        return "more than 178 million pixels, Pillow's own limit"
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return "truncated: the file ends before its last pixels"
    if "unrecognized data stream" in text:
        return "damaged: the compressed pixels do not fit the size in the header"
    if "broken data stream" in text or isinstance(error, zlib.error | struct.error):
        return "damaged: the compressed pixels cannot be decoded"
    if isinstance(error, OSError | ValueError) and text:
        return text
    return f"damaged: {text or 'it cannot be decoded'} ({type(error).__name__})"


def pixel_chunks(content: bytes, transparency: bool = True) -> bytes:
    """Return a PNG without chunks that pixels do not need, if one of them would stop Pillow; other files as they are.

    Pillow refuses large texts and profiles, and metadata with a wrong checksum. libpng ignores both. Of an animated PNG,
    the still picture remains. Without `transparency`, the colour that counts as transparent is dropped, too.
    """
    if content[:8] != PNG_START:
        return content
    kept, odd, at = [content[:8]], False, 8
    while at + 8 <= len(content):
        length, name = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        whole = content[at : at + 12 + length]
        if name == b"tRNS" and not transparency:
            odd = True
        elif name in _PIXEL_CHUNKS:
            kept.append(whole)
        elif length > _LARGE_CHUNK or name in _DROPPED:
            odd = True
        elif zlib.crc32(whole[4:-4]).to_bytes(4, "big") != whole[-4:]:
            odd = True
        if name == b"IEND":
            break
        at += 12 + length
    return b"".join(kept) if odd else content
