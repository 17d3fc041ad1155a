"""The header of an image file: size, format, and whether DALI is known to decode it differently from Pillow.

Pillow on libjpeg-turbo and libpng defines the right pixels. Files of the kinds below go through Pillow also in the DALI
loader (docs/reading.md, "Decoders").
"""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from typing import BinaryIO, NamedTuple

from PIL import Image

from ijepa_ds.data.rasters import NPY_START, TIFF_STARTS, ZIP_START, read_raster
from ijepa_ds.errors import ContentError

# Pillow warns about metadata and about large images, for which we check data.max_pixels. Not `catch_warnings` around each
# call: it is not safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\b")

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # decoded by both loaders
RASTERS = ("TIFF", "NPY", "DICOM")  # decoded by `rasters`
KINDS = (*FORMATS, *RASTERS)
NOT_AN_IMAGE = "not a JPEG, PNG, WebP, BMP, TIFF or DICOM image"

PNG_START = b"\x89PNG\r\n\x1a\n"
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = frozenset(range(0xD0, 0xD8)) | {0x01}
_LOSSLESS = frozenset({0xC3, 0xC7, 0xCB, 0xCF})
_HIERARCHICAL = frozenset({0xC5, 0xC6, 0xCD, 0xCE})
_ADOBE = 0xEE
_LARGE_CHUNK = 1 << 16  # bytes of a PNG's text or profile
_PNG_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # by type of colour; a palette has none
_MODES = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}
_PLAIN_BMP = frozenset({8, 24, 32})  # bits a pixel


class Header(NamedTuple):
    """Size in pixels as stored, one of `KINDS`, and whether DALI does not decode the file.

    `channels` and `depth` (numpy's type) are those of the numbers in the file; 0 and empty for palettes, inks and less than
    8 bits.
    """

    width: int
    height: int
    kind: str
    by_pillow: bool = False
    channels: int = 0
    depth: str = ""


def read_header(file: BinaryIO, layout: str | None = None) -> Header:
    """Return the header of the image in `file`; `layout` is that of NumPy arrays (`rasters.read_raster`).

    Raises:
        ContentError: The file is not a readable image; the text has the reason.
    """
    file.seek(0)
    head = file.read(132)
    if head[:8] == PNG_START and head[12:16] == b"IHDR":
        return _png(file, head)
    if head[:2] == b"\xff\xd8":
        file.seek(2)
        return _jpeg(file) or _by_pillow(file)
    if head[:4] in TIFF_STARTS or head[:6] == NPY_START or layout and head[:4] == ZIP_START:
        raster = read_raster(file, layout)
        kind = "TIFF" if head[:4] in TIFF_STARTS else "NPY"
        return Header(raster.width, raster.height, kind, True, raster.channels, raster.depth)
    if head[128:] == b"DICM":
        raster = read_raster(file)
        return Header(raster.width, raster.height, "DICOM", True, raster.channels, raster.depth)
    if head[:2] == b"BM":
        return _by_pillow(file)._replace(by_pillow=not _plain_bmp(head))
    if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X":
        return _by_pillow(file)._replace(by_pillow=bool(head[20] & 0x02))  # animated
    return _by_pillow(file)._replace(by_pillow=False)


def _png(file: BinaryIO, head: bytes) -> Header:
    width, height = struct.unpack(">II", head[16:24])
    if not (width and height):
        raise ContentError("damaged header: no pixels")
    if struct.pack(">I", zlib.crc32(head[12:29])) != head[29:33]:
        raise ContentError("damaged header: its checksum is wrong")
    odd, at, depth = False, 33, {8: "uint8", 16: "uint16"}.get(head[24], "")
    channels = _PNG_CHANNELS.get(head[25], 0) if depth else 0
    while True:  # chunks before the pixels
        file.seek(at)
        start = file.read(8)
        length, name = int.from_bytes(start[:4], "big"), start[4:]
        if len(start) < 8 or name in (b"IDAT", b"IEND"):
            return Header(width, height, "PNG", odd, channels, depth if channels else "")
        if name in (b"acTL", b"fcTL") or length > _LARGE_CHUNK:
            odd = True
        elif zlib.crc32(name + file.read(length)).to_bytes(4, "big") != file.read(4):
            odd = True
        at += 12 + length


def _jpeg(file: BinaryIO) -> Header | None:
    """Return the header from a JPEG's markers, or None if they do not lead to a frame."""
    adobe: int | None = None  # its colour transform
    while True:
        pair = file.read(2)
        while len(pair) == 2 and pair[0] == 0xFF and pair[1] == 0xFF:  # markers may be padded with 0xFF
            pair = pair[1:] + file.read(1)
        if len(pair) < 2 or pair[0] != 0xFF:
            return None
        if pair[1] in _WITHOUT_LENGTH:
            continue
        segment = file.read(14 if pair[1] == _ADOBE else 8)
        if len(segment) < 8:
            return None
        length = (segment[0] << 8) | segment[1]
        if pair[1] in _START_OF_FRAME:
            return _frame(pair[1], segment, adobe)
        if length < 2:
            return None
        if pair[1] == _ADOBE and segment[2:7] == b"Adobe" and length >= 14:
            adobe = segment[13]
        file.seek(length - len(segment), os.SEEK_CUR)


def _frame(marker: int, segment: bytes, adobe: int | None) -> Header | None:
    precision, components = segment[2], segment[7]
    height, width = (segment[3] << 8) | segment[4], (segment[5] << 8) | segment[6]
    if marker in _LOSSLESS or marker in _HIERARCHICAL:
        kind = "lossless" if marker in _LOSSLESS else "hierarchical"
        raise ContentError(f"{kind} JPEG, which is not supported: convert it, for example to PNG")
    if precision != 8:
        raise ContentError(f"JPEG of {precision} bits a sample, which is not supported: convert it, for example to PNG")
    if not (width and height):
        return None
    rgb = components == 3 and adobe == 0
    by_pillow = rgb or components == 4 and adobe is None or components not in (1, 3, 4)
    known = components in (1, 3)
    return Header(width, height, "JPEG", by_pillow, components if known else 0, "uint8" if known else "")


def _plain_bmp(head: bytes) -> bool:
    if len(head) < 54 or struct.unpack("<I", head[14:18])[0] < 40:
        return False
    first, length = struct.unpack("<II", head[10:18])  # of the pixels, of the header
    bits, compression = struct.unpack("<HI", head[28:34])
    colours = (struct.unpack("<I", head[46:50])[0] or 256) if bits == 8 else 0
    return bits in _PLAIN_BMP and compression == 0 and first >= 14 + length + 4 * colours


def _by_pillow(file: BinaryIO) -> Header:
    file.seek(0)
    try:
        with Image.open(file, formats=FORMATS) as image:
            channels = _MODES.get(image.mode, 0)
            kind = "JPEG" if image.format == "MPO" else image.format or ""
            return Header(*image.size, kind, True, channels, "uint8" if channels else "")
    except Image.UnidentifiedImageError:
        file.seek(0)
        start = file.read(4)
        known = start[:2] in (b"\xff\xd8", b"BM") or start in (PNG_START[:4], b"RIFF")
        raise ContentError("damaged header" if known else NOT_AN_IMAGE) from None
    except Exception as error:  # of many types, for damaged bytes
        if isinstance(error, OSError) and error.errno is not None:  # of reading the file: it says nothing about the bytes
            raise
        raise ContentError(f"damaged header: {error}") from error
