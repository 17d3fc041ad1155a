"""DICOM files of one frame (the extra `dicom`: pydicom): floats after the rescale slope and intercept."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

from ijepa_ds.data.rasters import Raster, Window
from ijepa_ds.errors import ContentError

_INSTALL = "a DICOM file, which pydicom reads: pip install 'ijepa_ds[dicom]'"
_DEFLATED = b"1.2.840.10008.1.2.1.99"
warnings.filterwarnings("ignore", module=r"pydicom\b")  # about metadata that no pixel needs; not safe to set around a call


def read(file: BinaryIO, window: Sequence[int] | np.ndarray | None = None, pixels: bool = True) -> tuple[Raster, Window | None]:
    """Read a DICOM file.

    Args:
        file: at any position.
        window: (top, left, height, width) in pixels; None: the whole. A file is always decoded as a whole.
        pixels: False: only the header.

    Returns:
        size, one channel, float32; and the numbers float32 [h, w, 1] with the value of padding, and the range of the file's
        window (0028,1050 and 0028,1051) as `Window.shown`.

    Raises:
        ContentError: It cannot be used, or pydicom is not installed; the text has the reason.
    """
    try:
        import pydicom
    except ImportError as error:
        raise ContentError(_INSTALL) from error
    file.seek(0)
    if _DEFLATED in file.read(1024):  # pydicom would inflate all of it at once, whatever its size
        raise ContentError("a DICOM of a deflated syntax, which is not supported")
    file.seek(0)
    try:
        data = pydicom.dcmread(file, stop_before_pixels=not pixels)
        raster = _checked(data, file)
        if not pixels:
            return raster, None
        numbers = data.pixel_array.astype(np.float32)
        if numbers.shape != (raster.height, raster.width):
            raise ContentError(f"decodes to {list(numbers.shape)}, which is not what its header says")
        slope, intercept = _number(data, "RescaleSlope", 1.0), _number(data, "RescaleIntercept", 0.0)
        numbers = numbers * np.float32(slope) + np.float32(intercept)
        top, left, height, width = window if window is not None else (0, 0, *numbers.shape)
        padding = None if "PixelPaddingValue" not in data else float(np.float32(slope * data.PixelPaddingValue + intercept))
        return raster, Window(numbers[top : top + height, left : left + width, None], padding, _shown(data))
    except (ContentError, MemoryError):
        raise
    except Exception as error:  # of many types, for damaged bytes
        if isinstance(error, OSError) and error.errno is not None:  # of reading the file: it says nothing about the bytes
            raise
        raise ContentError(f"damaged: {error}") from error


def _checked(data: Any, file: BinaryIO) -> Raster:
    """The size of a file whose header can be used; `file` is behind it."""
    frames = int(data.get("NumberOfFrames") or 1)
    if frames > 1:
        raise ContentError(f"frame 2 of {frames}: a DICOM of several frames; one image a file")
    if "Rows" not in data or "Columns" not in data:
        raise ContentError("a DICOM without an image, such as a report or a directory")
    kind = str(data.get("PhotometricInterpretation", "unknown"))
    if kind != "MONOCHROME2" or int(data.get("SamplesPerPixel", 1)) != 1:
        raise ContentError(f"a DICOM with {kind}, which is not supported: convert it to MONOCHROME2")
    if "ModalityLUTSequence" in data:
        raise ContentError("a DICOM with a modality lookup table instead of a rescale slope, which is not supported")
    syntax = data.file_meta.TransferSyntaxUID
    if syntax.is_compressed:
        _check_decoder(syntax)
    elif "PixelData" not in data:  # only the header was read
        needed = int(data.Rows) * int(data.Columns) * int(data.BitsAllocated) // 8
        if file.tell() + needed > file.seek(0, os.SEEK_END):
            raise ContentError("truncated: the file ends before its last pixels")
    if min(int(data.Rows), int(data.Columns)) < 1:
        raise ContentError(f"{data.Columns}x{data.Rows} pixels")
    return Raster(int(data.Rows), int(data.Columns), 1, "float32")


def _check_decoder(syntax: Any) -> None:
    from pydicom.pixels import get_decoder

    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise ContentError(f"a DICOM compressed as {syntax.name}, which pydicom does not decode") from error
    if not decoder.is_available:
        needs = "; ".join(decoder.missing_dependencies)
        raise ContentError(f"a DICOM compressed as {syntax.name}, for which no decoder is installed ({needs})")


def _number(data: Any, name: str, default: float) -> float:
    value = data.get(name)
    return default if value is None or value == "" else float(value)


def _shown(data: Any) -> tuple[float, float] | None:
    """Lowest and highest value of the first window, after the rescale (DICOM PS3.3, C.11.2.1.2); None: there is none."""
    centre, width = data.get("WindowCenter"), data.get("WindowWidth")
    if centre in (None, "") or width in (None, "") or data.get("VOILUTFunction", "LINEAR") not in ("LINEAR", "LINEAR_EXACT"):
        return None
    first, wide = (float(value if isinstance(value, int | float | str) else value[0]) for value in (centre, width))
    if wide <= 0 or wide < 1 and data.get("VOILUTFunction") != "LINEAR_EXACT":
        return None  # not allowed
    if data.get("VOILUTFunction") == "LINEAR_EXACT":
        return first - wide / 2, first + wide / 2
    return first - 0.5 - (wide - 1) / 2, first - 0.5 + (wide - 1) / 2
