"""Normalisation of pixels on the device, and the deterministic preprocessing of evaluations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ijepa_ds.data.headers import READ_ERRORS
from ijepa_ds.data.pillow import MAX_PIXELS, decode, reason
from ijepa_ds.data.pixels import to_rgb
from ijepa_ds.data.planes import planes_of, read_numbers, stacked
from ijepa_ds.data.reading import ImageFile
from ijepa_ds.data.values import PLAIN, Values

_LONGEST = 16  # times the shorter side: the resized whole of longer images takes too much memory
UNREADABLE = "cannot read the evaluation image"
_RESIZE_SHARE = 256 / 224  # the usual ImageNet evaluation: resize the shorter side to 256, crop the central 224


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Normalise pixels on their device, without blocking the host.

    The arithmetic is in float32: in bfloat16 the difference from the mean would lose bits before scaling.

    Args:
        images: uint8 [B, H, W, C], or float32 in 0 .. 1.
        mean: Mean of each channel, for pixels in 0 .. 1.
        std: Standard deviation of each channel.
        dtype: Type of the result.

    Returns:
        [B, C, H, W], contiguous, (pixel - mean) / std with pixels in 0 .. 1.
    """
    most = 255 if images.dtype == torch.uint8 else 1
    scale, shift = _scale_and_shift(tuple(mean), tuple(std), most, images.device)
    batch, height, width, channels = images.shape
    pixels = torch.empty(batch, channels, height, width, device=images.device)
    pixels.copy_(images.permute(0, 3, 1, 2))  # converts and transposes in one pass
    return pixels.mul_(scale).add_(shift).to(dtype)


@lru_cache(maxsize=16)  # a copy to the GPU blocks; the cache avoids one per step
def _scale_and_shift(mean: tuple[float, ...], std: tuple[float, ...], most: int, device: torch.device) -> tuple[Tensor, Tensor]:
    centre, spread = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (mean, std))
    return (1 / (most * spread)).float().to(device), (-centre / spread).float().to(device)


def resize_centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to 256/224 of `size` (bicubic) and crop the centre, as torchvision does.

    An image that already has the final size is only converted to RGB; a plane (`planes`) stays what it is.

    Args:
        image: Any mode and size.
        size: Side of the result in pixels.
    """
    image = image if image.mode == "F" else to_rgb(image)
    if image.size == (size, size):
        return image
    shorter = round(size * _RESIZE_SHARE)
    width, height = image.size
    target = (shorter, int(shorter * height / width)) if width <= height else (int(shorter * width / height), shorter)
    left, top = round((target[0] - size) / 2), round((target[1] - size) / 2)
    if max(target) <= _LONGEST * shorter:
        return image.resize(target, Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    # Of a strip the centre is cut out first, in fractions of pixels: the resized whole of 60,000 x 1 pixels would take 16 GB.
    across, down = width / target[0], height / target[1]
    box = (left * across, top * down, min((left + size) * across, width), min((top + size) * down, height))
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def resize_whole(image: Image.Image, size: int) -> Image.Image:
    """Resize the whole image to a square (bilinear); the aspect ratio changes. CLEVR's labels count objects at the border too.

    Source: VISSL's configurations clevr_count and clevr_dist (`Resize: [224, 224]`, torchvision's default interpolation).

    Args:
        image: Any mode and size.
        size: Side of the result in pixels.
    """
    image = image if image.mode == "F" else to_rgb(image)
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BILINEAR)


class UnreadableError(ValueError):
    """An image of an evaluation cannot be read; the text names it and the reason."""


@contextmanager
def named_errors(item: str) -> Iterator[bytes]:
    """Read an image, and turn errors of its use into `UnreadableError`.

    Args:
        item: A path, or an `ImageFile` of an index.
    """
    try:
        yield item.read() if isinstance(item, ImageFile) else Path(item).read_bytes()
    except READ_ERRORS as error:
        raise UnreadableError(f"{UNREADABLE} {str(item)!r}: {reason(error)}") from error


def values_of(item: str, values: Values | None = None) -> Values:
    """How an image becomes channels: as `values` say, else its source, else RGB."""
    return values or (item.values if isinstance(item, ImageFile) else PLAIN)


def read_layers(
    item: str,
    max_pixels: int,
    values: Values | None = None,
    use: Callable[[Image.Image], Image.Image] = lambda layer: layer,
    filled: dict[str, int] | None = None,
) -> list[Image.Image]:
    """Read and decode an image by path or from a source: one RGB image, or a plane for each channel (`planes`).

    Args:
        item: A path, or an `ImageFile` of an index.
        max_pixels: Larger images are unreadable.
        values: How it becomes channels; None: as its source says, else RGB.
        use: Applied to each layer.
        filled: Receives how many values without data were filled, of an image with some.

    Raises:
        UnreadableError: Names the image.
    """
    values = values_of(item, values)
    with named_errors(item) as content:
        if values.plain:
            layers = [decode(content, max_pixels, values.layout)]
        else:
            layers, missing = planes_of(read_numbers(content, values, None, max_pixels), values)
            if missing and filled is not None:
                filled[str(item)] = missing
        return [use(layer) for layer in layers]


def joined(layers: Sequence[Image.Image]) -> np.ndarray:
    """Layers of one size as an array: uint8 [H, W, 3] of RGB, or float32 [H, W, C] in 0 .. 1."""
    return stacked(layers) if layers[0].mode == "F" else np.asarray(layers[0])


def load_eval_images(
    images: Sequence[str],
    size: int,
    threads: int,
    max_pixels: int = MAX_PIXELS,
    whole: bool = False,
    values: Values | None = None,
    filled: dict[str, int] | None = None,
) -> np.ndarray:
    """Read images for evaluation, in order; they take 3 * size**2 bytes of memory each, or 4 * C * size**2.

    Args:
        images: n paths, or `ImageFile`s of an index.
        size: Side of the result in pixels.
        threads: Decoding threads.
        max_pixels: Larger images are unreadable.
        whole: `resize_whole` instead of `resize_centre_crop`.
        values: How they become channels; None: as their source says, else RGB.
        filled: As in `read_layers`.

    Returns:
        uint8 [n, size, size, 3], or float32 [n, size, size, C] in 0 .. 1.

    Raises:
        UnreadableError: Names a file that cannot be read; evaluations leave it out (`evals.readable`).
    """
    kind = values_of(images[0], values) if len(images) else PLAIN
    pixels = np.empty((len(images), size, size, kind.count), dtype=np.uint8 if kind.plain else np.float32)
    resize = resize_whole if whole else resize_centre_crop

    def read(position: int) -> None:
        pixels[position] = joined(read_layers(images[position], max_pixels, kind, lambda layer: resize(layer, size), filled))

    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        for _ in pool.map(read, range(len(images))):
            pass
    return pixels
