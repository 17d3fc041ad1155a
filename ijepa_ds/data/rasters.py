"""TIFF, NumPy and DICOM files: their headers, and windows of them, for which only the parts that they touch are read."""

from __future__ import annotations

import io
import logging
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ijepa_ds.errors import ContentError

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
NPY_START, ZIP_START = b"\x93NUMPY", b"PK\x03\x04"
_DEPTHS = ("uint8", "uint16", "uint32", "int8", "int16", "int32", "float16", "float32", "float64")
_MOST_CHANNELS = 255
logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # its complaints are the reasons of our errors
_PHOTOMETRIC = {0: "its zero is white", 3: "a palette", 4: "a mask", 5: "separated inks (CMYK)", 8: "CIE L*a*b* colours"}
_REDUCED = 1  # bit of NewSubfileType: a smaller version of the first page, as cloud-optimised GeoTIFFs have


class Raster(NamedTuple):
    """Size in pixels, channels, and type of the numbers (numpy's name)."""

    height: int
    width: int
    channels: int
    depth: str


class Window(NamedTuple):
    """Part of a raster, [h, w, C] of the file's type; the value that the file declares as no data, and the range it shows."""

    pixels: np.ndarray
    nodata: float | None = None
    shown: tuple[float, float] | None = None


def read_raster(file: BinaryIO, layout: str | None = None) -> Raster:
    """Return the size and type of a TIFF or NumPy file, whose pixels are all there.

    Args:
        file: at any position.
        layout: `hwc` or `chw`, of NumPy arrays.

    Raises:
        ContentError: It cannot be used; the text has the reason and the page.
    """
    if is_dicom(file):
        return _dicom().read(file, pixels=False)[0]
    if _start(file) not in TIFF_STARTS:
        with _array(file, layout) as array:
            return array.raster
    with _page(file) as page:
        ends = [offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
        if max(ends, default=0) > file.seek(0, os.SEEK_END):
            raise ContentError("truncated: the file ends before its last pixels")
        return _raster_of(page)


def read_window(
    file: BinaryIO, layout: str | None, window: Sequence[int] | np.ndarray | None = None, channels: Sequence[int] | None = None
) -> tuple[Raster, Window]:
    """Read a window.

    Args:
        file: at any position.
        layout: `hwc` or `chw`, of NumPy arrays.
        window: (top, left, height, width) in pixels; None: the whole.
        channels: those to read, in this order; None: all.

    Raises:
        ContentError: It cannot be used; the text has the reason.
    """
    if is_dicom(file):
        raster, part = _dicom().read(file, window)
        return raster, part._replace(pixels=part.pixels[..., _chosen(raster, channels)])
    if _start(file) not in TIFF_STARTS:
        with _array(file, layout) as array:
            return array.raster, Window(array.read(_inside(array.raster, window), _chosen(array.raster, channels)))
    with _page(file) as page:
        raster = _raster_of(page)
        pixels = _tiff_window(page, raster, _inside(raster, window), _chosen(raster, channels))
        return raster, Window(pixels, _nodata(page))


def is_dicom(file: BinaryIO) -> bool:
    """Whether a file starts as DICOM files do; it is then at its start."""
    file.seek(0)
    start = file.read(132)
    file.seek(0)
    return start[128:] == b"DICM"


def _dicom() -> Any:
    from ijepa_ds.data import dicom  # late: it needs the classes above

    return dicom


def _start(file: BinaryIO) -> bytes:
    file.seek(0)
    start = file.read(4)
    file.seek(0)
    return start


def _inside(raster: Raster, window: Sequence[int] | np.ndarray | None) -> tuple[int, int, int, int]:
    top, left, height, width = (int(value) for value in window) if window is not None else (0, 0, raster.height, raster.width)
    if top < 0 or left < 0 or top + height > raster.height or left + width > raster.width:
        raise ContentError(f"{raster.width}x{raster.height} pixels, smaller than when it was indexed")
    return top, left, height, width


def _chosen(raster: Raster, channels: Sequence[int] | None) -> list[int]:
    chosen = list(range(raster.channels)) if channels is None else list(channels)
    if max(chosen) >= raster.channels:
        raise ContentError(f"{raster.channels} channels, no channel {max(chosen)} (data.channels; the first is 0)")
    return chosen


def _checked(raster: Raster) -> Raster:
    if raster.depth not in _DEPTHS:
        raise ContentError(f"{raster.depth} values; expected integers of 8, 16 or 32 bits, or floats")
    if min(raster[:3]) < 1 or raster.channels > _MOST_CHANNELS:
        raise ContentError(f"{raster.width}x{raster.height} pixels with {raster.channels} channels, of 1 to {_MOST_CHANNELS}")
    return raster


@contextmanager
def _page(file: BinaryIO) -> Iterator[Any]:
    """The one page of a TIFF."""
    from tifffile import TiffFile  # late: RGB images do not need it

    try:
        with TiffFile(file, _multifile=False) as tiff:
            for number, page in enumerate(tiff.pages):
                if number and not int(getattr(page, "subfiletype", 0)) & _REDUCED:
                    raise ContentError(f"page {number + 1} of {len(tiff.pages)}: a TIFF of several pages; one image a file")
            if (frames := int((tiff.imagej_metadata or {}).get("images", 1))) > 1:
                raise ContentError(f"page 2 of {frames}: an ImageJ stack of several pages; one image a file")
            yield tiff.pages[0]
    except (ContentError, MemoryError, SystemError):
        raise
    except Exception as error:  # of many types, for damaged bytes
        if isinstance(error, OSError) and error.errno is not None:  # of reading the file: it says nothing about the bytes
            raise
        raise ContentError(f"damaged: {error}") from error


def _raster_of(page: Any) -> Raster:
    photometric, compression = int(page.photometric), int(page.compression)
    if photometric in _PHOTOMETRIC or photometric == 6 and compression not in (6, 7):
        what = _PHOTOMETRIC.get(photometric, "YCbCr colours")
        raise ContentError(f"page 1: a TIFF with {what}, which is not supported: convert it to gray, RGB or plain channels")
    if page.imagedepth != 1 or page.dtype is None:
        what = "a volume" if page.imagedepth != 1 else f"{page.bitspersample} bits a sample"
        raise ContentError(f"page 1: a TIFF with {what}, which is not supported")
    return _checked(Raster(page.imagelength, page.imagewidth, page.samplesperpixel, page.dtype.name))


def _nodata(page: Any) -> float | None:
    """The value that GDAL's tag declares as no data; None: none, or one that the type of the pixels cannot hold.

    tifffile replaces such values, and texts that it cannot read, by 0, which is a real value in most images.
    """
    tag = page.tags.get("GDAL_NODATA")
    try:
        value = float(str(tag.value).strip("\0 ").replace(",", ".")) if tag else None
    except ValueError:
        return None
    if value is None or page.dtype.kind == "f":
        return value
    held = np.iinfo(page.dtype)
    return value if value.is_integer() and held.min <= value <= held.max else None


def _tiff_window(page: Any, raster: Raster, window: tuple[int, int, int, int], chosen: list[int]) -> np.ndarray:
    """Decode the tiles or strips that a window touches: [h, w, len(chosen)]."""
    top, left, height, width = window
    rows, columns = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, raster.width)
    down, across = -(-raster.height // rows), -(-raster.width // columns)
    separate = int(page.planarconfig) == 2 and raster.channels > 1
    with np.errstate(over="ignore"):  # a value that float32 cannot hold is infinite
        empty = np.float64(_nodata(page) or 0.0).astype(page.dtype)
    made = np.full((height, width, len(chosen)), empty, page.dtype)
    for plane in sorted(set(chosen)) if separate else [0]:
        for row in range(top // rows, -(-(top + height) // rows)):
            for column in range(left // columns, -(-(left + width) // columns)):
                number = (plane * down + row) * across + column
                segment = _segment(page, number)
                if segment is None:  # sparse
                    continue
                y, x = row * rows, column * columns
                first_y, first_x = max(top, y), max(left, x)
                last_y, last_x = min(top + height, y + rows, raster.height), min(left + width, x + columns, raster.width)
                part = segment[first_y - y : last_y - y, first_x - x : last_x - x]
                if part.shape[:2] != (last_y - first_y, last_x - first_x):
                    raise ContentError("damaged: a strip or tile has fewer pixels than the header says")
                place = (slice(first_y - top, last_y - top), slice(first_x - left, last_x - left))
                if separate:
                    for at in [at for at, channel in enumerate(chosen) if channel == plane]:
                        made[(*place, at)] = part[..., 0]
                else:
                    made[place] = part[..., chosen]
    return made


def _segment(page: Any, number: int) -> np.ndarray | None:
    """A decoded strip or tile, [h, w, samples]; None: a sparse file leaves it out."""
    offset, count = page.dataoffsets[number], page.databytecounts[number]
    if not count:
        return None
    handle = page.parent.filehandle
    handle.seek(offset)
    content = handle.read(count)
    if len(content) < count:
        raise ContentError("truncated: the file ends before its last pixels")
    tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
    decoded = page.decode(content, number, **tables)[0]
    return None if decoded is None else decoded[0]


def _npy_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and type of a .npy file; `file` is then at its first number.

    numpy evaluates the header as Python, which fails at random in threads of Python 3.11 ("AST constructor recursion depth
    mismatch"): good images would count as damaged.
    """
    version = np.lib.format.read_magic(file)
    length = int.from_bytes(file.read(2 if version == (1, 0) else 4), "little")
    header = file.read(length).decode("latin1")
    order = re.search(r"'fortran_order':\s*(True|False)", header)
    shape = re.search(r"'shape':\s*\(([\d,\s]*)\)", header)
    kind = re.search(r"'descr':\s*'([^']*)'", header)
    if not (order and shape):
        raise ContentError("damaged header")
    if not kind or "O" in kind[1]:
        raise ContentError("an array of Python objects or records, not of numbers")
    return tuple(int(size) for size in shape[1].split(",") if size.strip()), order[1] == "True", np.dtype(kind[1])


class _Array:
    """An array in an open file."""

    def __init__(self, file: BinaryIO, layout: str | None) -> None:
        self.shape, self.fortran, self.dtype = _npy_header(file)
        self.file, self.first = file, file.tell()
        if len(self.shape) not in (2, 3):
            raise ContentError(f"an array of shape {list(self.shape)}; expected [H, W, C], [C, H, W] or [H, W]")
        if layout is None:
            raise ContentError("a NumPy array: data.arrays says how arrays are stored, hwc or chw")
        self.by_channel = layout == "chw" and len(self.shape) == 3
        sizes = self.shape if len(self.shape) == 3 else (*self.shape, 1)
        height, width, channels = (sizes[1], sizes[2], sizes[0]) if self.by_channel else sizes
        self.raster = _checked(Raster(height, width, channels, self.dtype.newbyteorder("=").name))

    def check_whole(self) -> None:
        """Check that the file has all numbers."""
        if self.file.seek(0, os.SEEK_END) < self.first + int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize:
            raise ContentError("truncated: the file ends before its last pixels")

    def read(self, window: tuple[int, int, int, int], chosen: list[int]) -> np.ndarray:
        """[h, w, len(chosen)] of the machine's byte order."""
        top, left, height, width = window
        r = self.raster
        if self.fortran:
            whole = self._numbers(0, r.height * r.width * r.channels).reshape(self.shape, order="F")
            whole = np.moveaxis(whole, 0, -1) if self.by_channel else whole.reshape(r.height, r.width, r.channels)
            part = whole[top : top + height, left : left + width][..., chosen]
        elif self.by_channel:
            planes = [self._numbers((c * r.height + top) * r.width, height * r.width) for c in chosen]
            part = np.stack([plane.reshape(height, r.width)[:, left : left + width] for plane in planes], axis=-1)
        else:
            line = r.width * r.channels
            rows = self._numbers(top * line, height * line).reshape(height, r.width, r.channels)
            part = rows[:, left : left + width][..., chosen]
        return part.astype(self.dtype.newbyteorder("="))

    def _numbers(self, first: int, count: int) -> np.ndarray:
        self.file.seek(self.first + first * self.dtype.itemsize)
        content = self.file.read(count * self.dtype.itemsize)
        if len(content) < count * self.dtype.itemsize:
            raise ContentError("truncated: the file ends before its last pixels")
        return np.frombuffer(content, self.dtype)


@contextmanager
def _array(file: BinaryIO, layout: str | None) -> Iterator[_Array]:
    """The array of a .npy file, or the only one of a .npz."""
    try:
        if _start(file) == ZIP_START:
            with zipfile.ZipFile(file) as packed:
                names = packed.namelist()
                if len(names) != 1:
                    raise ContentError(f"{len(names)} arrays in one file ({', '.join(names[:5])}); expected one")
                file = io.BytesIO(packed.read(names[0]))
        array = _Array(file, layout)
        array.check_whole()
        yield array
    except (ContentError, MemoryError, SystemError):
        raise
    except Exception as error:  # of many types, for damaged bytes
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ContentError(f"damaged: {error}") from error
