"""Conversion of decoded images to RGB."""

from __future__ import annotations

import numpy as np
from PIL import Image

_DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's modes of 16-bit grayscale PNGs
_ROWS = 1 << 20  # pixels converted at a time


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any image to RGB; 16-bit values are scaled, whereas Pillow's `convert` clips them."""
    if image.mode not in _DEEP:
        return image.convert("RGB")
    deep = np.asarray(image)
    shallow = np.empty(deep.shape, dtype=np.uint8)
    step = max(1, _ROWS // max(1, deep.shape[1]))
    for first in range(0, len(deep), step):  # in parts: the integers take eight bytes each
        part = deep[first : first + step].astype(np.int64).clip(0, 65535)
        shallow[first : first + step] = (part * 255 + 32767) // 65535
    return Image.fromarray(shallow).convert("RGB")
