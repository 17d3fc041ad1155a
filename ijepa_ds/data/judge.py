"""One judgement of an image for the scan, the check and both loaders: readable or not, and by which decoder.

Pillow decides whether a file is readable and what its pixels are. DALI decodes the files on which it agrees.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np

from ijepa_ds.data.image_header import RASTERS
from ijepa_ds.data.jpeg_check import jpeg_damage
from ijepa_ds.data.pillow import checked_header, decode
from ijepa_ds.data.planes import planes_of, read_numbers
from ijepa_ds.data.values import PLAIN, Values

MEDIAN, MEAN = 2.0, 2.0  # largest differences of two decoders' pixels, of 255


class Judgement(NamedTuple):
    """Why a file is unreadable (empty: readable), and how DALI differs (empty: it does not, or it was not asked)."""

    reason: str
    dali: str = ""


class Judge:
    """Judges files; several threads may call it."""

    def __init__(self, max_pixels: int, *, strict: bool = False, with_dali: bool = False, values: Values = PLAIN) -> None:
        """Prepare.

        Args:
            max_pixels: Larger images are unreadable.
            strict: Every warning of libjpeg counts, also about bytes that no pixel needs.
            with_dali: Compare DALI's pixels, if DALI is installed.
            values: How images become channels: their ranges are checked too. RGB: TIFF and NumPy files of any channels are
                decoded, as training says which it uses.
        """
        self._max_pixels, self._strict, self._values = max_pixels, strict, values
        self._own = threading.local()
        self.compares = with_dali and _dali_is_installed()

    def judge(self, content: bytes, by_pillow: bool = False) -> Judgement:
        """Judge a file; `by_pillow`: its header already says that Pillow decodes it."""
        try:
            header = checked_header(content, self._max_pixels, self._values.layout)
            if not self._values.plain:
                planes_of(read_numbers(content, self._values, None, self._max_pixels), self._values)
            elif header.kind in RASTERS or header.depth == "uint16":
                read_numbers(content, self._values, None, self._max_pixels)
            if header.kind in RASTERS:
                return Judgement("")
            pixels = np.asarray(decode(content, self._max_pixels))
        except ValueError as error:
            return Judgement(str(error))
        damage = jpeg_damage(content, self._strict)
        if damage:
            return Judgement(f"damaged: {damage}")
        return Judgement("", self._differs(content, pixels) if self.compares and not by_pillow else "")

    def _differs(self, content: bytes, pixels: np.ndarray) -> str:
        from ijepa_ds.data.dali_one import DaliDecoder, failure

        if not hasattr(self._own, "decoder"):
            self._own.decoder = DaliDecoder()
        try:
            return difference(self._own.decoder.decode(content), pixels)
        except RuntimeError as error:
            return failure(error)


def difference(ours: np.ndarray, right: np.ndarray) -> str:
    """Return how two decodings of a file differ, uint8 [H, W, 3] each; empty if they agree."""
    if ours.shape != right.shape:
        return f"other size: {ours.shape[1]}x{ours.shape[0]}, expected {right.shape[1]}x{right.shape[0]}"
    apart = np.abs(ours.astype(np.int16) - right)
    median, mean = float(np.median(apart)), float(apart.mean())
    return f"other pixels: median difference {median:g}, mean {mean:.1f} of 255" if median > MEDIAN or mean > MEAN else ""


def _dali_is_installed() -> bool:
    try:
        import ijepa_ds.data.dali_one  # noqa: F401
    except ImportError:
        return False
    return True
