"""Decoded images of any kind as red, green and blue."""

from __future__ import annotations

import numpy as np
from PIL import Image

_DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # what Pillow opens a 16-bit grayscale PNG as


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn any image into RGB; 16-bit values are scaled, where Pillow's `convert` would clip them."""
    if image.mode in _DEEP:
        deep = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((deep * 255 + 32767) // 65535).astype(np.uint8))
    return image.convert("RGB")
