"""Images of any channels as planes: one Pillow image of 32-bit floats in 0 .. 1 for each channel of the network.

Pillow then crops and resizes them by the code for RGB images.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ijepa_ds.data.image_header import RASTERS, Header
from ijepa_ds.data.pillow import MAX_PIXELS, checked_header, load, pixel_chunks
from ijepa_ds.data.rasters import Window, read_window
from ijepa_ds.data.values import Values
from ijepa_ds.errors import ContentError


def read_numbers(content: bytes, values: Values, window: np.ndarray | None = None, max_pixels: int = MAX_PIXELS) -> Window:
    """Decode the chosen channels of an image, or of a window.

    Args:
        content: the file's bytes.
        values: which channels.
        window: int [4] (top, left, height, width) in pixels; None: the whole image.
        max_pixels: as `data.max_pixels`.

    Raises:
        ContentError: the image cannot be used; the text has the reason.
    """
    header = checked_header(content, max_pixels, values.layout)
    if header.kind in RASTERS:
        return read_window(io.BytesIO(content), values.layout, window, values.chosen)[1]
    pixels = _decoded(content, header)
    if window is not None:
        top, left, height, width = window.tolist()
        pixels = pixels[top : top + height, left : left + width]
    if values.chosen is None:
        return Window(pixels)
    if max(values.chosen) >= pixels.shape[2]:
        raise ContentError(f"{pixels.shape[2]} channels, no channel {max(values.chosen)} (data.channels; the first is 0)")
    return Window(pixels[..., list(values.chosen)])


def _decoded(content: bytes, header: Header) -> np.ndarray:
    """The numbers of a JPEG, PNG, WebP or BMP as they are stored, [H, W, channels]; 16-bit ones as uint16."""
    if not header.channels:
        raise ContentError(f"a {header.kind} with a palette, inks, or less than 8 bits a channel: convert it to plain channels")
    if header.depth == "uint16":
        pixels = _png_of_16_bits(content)
    else:
        pixels = load(content, header, lambda image: np.asarray(image))
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.shape != (header.height, header.width, header.channels) or pixels.dtype != header.depth:
        raise ContentError(f"decodes to {pixels.dtype} {list(pixels.shape)}, which is not what its header says")
    return pixels


def _png_of_16_bits(content: bytes) -> np.ndarray:
    import imagecodecs  # late: only such files need it. Pillow drops the lower bits of colours

    try:
        return imagecodecs.png_decode(pixel_chunks(content, transparency=False))  # else it adds an alpha channel
    except Exception as error:  # its own, or of many types
        raise ContentError(f"damaged: {error or 'the compressed pixels cannot be decoded'}") from error


def planes_of(numbers: Window, values: Values) -> tuple[list[Image.Image], int]:
    """Scale decoded numbers.

    Args:
        numbers: of the chosen channels, [h, w, C].
        values: ranges, and what stands for no data.

    Returns:
        C images of mode F in 0 .. 1, and how many values without data were filled.

    Raises:
        ContentError: Another number of channels, or values outside the declared range.
    """
    channels = numbers.pixels.shape[2]
    if channels != values.count:
        raise ContentError(f"{channels} channels, but model.channels is {values.count} (data.channels chooses)")
    scaled = [values.scaled(numbers.pixels[..., at], at, numbers.nodata, numbers.shown) for at in range(channels)]
    return [Image.fromarray(np.ascontiguousarray(plane)) for plane, _ in scaled], sum(filled for _, filled in scaled)


def stacked(planes: Sequence[Image.Image]) -> np.ndarray:
    """Planes as an array, float32 [h, w, C] in 0 .. 1: bicubic resampling may exceed the range a little."""
    return np.stack([np.asarray(plane) for plane in planes], axis=-1).clip(0, 1)
