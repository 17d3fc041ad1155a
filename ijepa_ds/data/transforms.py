"""From pixels to what the encoder takes, on its device; and the deterministic reading for evaluation."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ijepa_ds.data.headers import FORMATS, READ_ERRORS
from ijepa_ds.data.pixels import to_rgb
from ijepa_ds.data.reading import ImageFile

_RESIZE_SHARE = 256 / 224  # the field's evaluation: shorter side to 256, the central 224 of it


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Turn pixels into network input where they are, without the host waiting for the device.

    The arithmetic is in float32: in bfloat16 the difference to the mean would lose bits before it is scaled.

    Args:
        images: uint8 [B, H, W, 3].
        mean: Of each channel, of pixels in 0 .. 1.
        std: Of each channel.
        dtype: Of the result.

    Returns:
        [B, 3, H, W], contiguous, (pixel / 255 - mean) / std.
    """
    scale, shift = _scale_and_shift(tuple(mean), tuple(std), images.device)
    batch, height, width, channels = images.shape
    pixels = torch.empty(batch, channels, height, width, device=images.device)
    pixels.copy_(images.permute(0, 3, 1, 2))  # converts and transposes in one pass
    return pixels.mul_(scale).add_(shift).to(dtype)


@lru_cache(maxsize=16)  # a copy to the GPU waits for it: once, not every step
def _scale_and_shift(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    centre, spread = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (mean, std))
    return (1 / (255 * spread)).float().to(device), (-centre / spread).float().to(device)


def resize_centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to 256/224 of `size` (bicubic) and cut the centre, as torchvision does.

    An image that already has that size is only turned to RGB: small images are not enlarged and cut.
    """
    image = to_rgb(image)
    if image.size == (size, size):
        return image
    shorter = round(size * _RESIZE_SHARE)
    width, height = image.size
    target = (shorter, int(shorter * height / width)) if width <= height else (int(shorter * width / height), shorter)
    image = image.resize(target, Image.Resampling.BICUBIC)
    left, top = round((target[0] - size) / 2), round((target[1] - size) / 2)
    return image.crop((left, top, left + size, top + size))


def load_eval_images(images: Sequence[str], size: int, threads: int) -> np.ndarray:
    """Read images for evaluation, in order, as many as fit in memory (3 * size**2 bytes each).

    Args:
        images: n paths, or `ImageFile` of an index.
        size: Side of the result in pixels.
        threads: Decoding threads.

    Returns:
        uint8 [n, size, size, 3].

    Raises:
        ValueError: naming a file that cannot be read: an evaluation with other images is another evaluation.
    """
    pixels = np.empty((len(images), size, size, 3), dtype=np.uint8)

    def read(position: int) -> None:
        item = images[position]
        try:
            content = item.read() if isinstance(item, ImageFile) else Path(item).read_bytes()
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                pixels[position] = np.asarray(resize_centre_crop(image, size))
        except READ_ERRORS as error:
            raise ValueError(f"cannot read the evaluation image {str(item)!r}: {error}") from error

    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        for _ in pool.map(read, range(len(images))):
            pass
    return pixels
