"""Conversion of decoded images to RGB."""

from __future__ import annotations

import numpy as np
from PIL import Image

_DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's modes of 16-bit grayscale PNGs


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any image to RGB; 16-bit values are scaled, whereas Pillow's `convert` clips them."""
    if image.mode in _DEEP:
        deep = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((deep * 255 + 32767) // 65535).astype(np.uint8))
    return image.convert("RGB")
