"""Images for a decoder: as the encoder takes them, and as the decoder draws them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ijepa_ds.data.reading import ImageFiles
from ijepa_ds.data.sources import open_source
from ijepa_ds.data.transforms import load_eval_images, normalize
from ijepa_ds.weights import Source


def images_of(source: str, option: str) -> ImageFiles:
    """The readable images of any source (a folder, a list, tars, an index).

    Raises:
        ValueError: there are none; the message calls the source by `option`.
    """
    try:
        index = open_source(source)
    except ValueError as error:
        raise ValueError(str(error).replace("data.source", option, 1)) from error
    return ImageFiles(index, index.readable())


def encoder_input(pixels: Tensor, source: Source) -> Tensor:
    """uint8 [B, S, S, 3] -> normalised float32 [B, 3, E, E], E the size the encoder was trained on."""
    size = source.grid * source.patch_size
    if pixels.shape[1] == size:
        return normalize(pixels, source.mean, source.std, torch.float32)
    resized = F.interpolate(pixels.permute(0, 3, 1, 2).float(), size=(size, size), mode="bicubic", antialias=True)
    back = resized.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    return normalize(back, source.mean, source.std, torch.float32)


def decoder_pixels(pixels: Tensor, size: int) -> Tensor:
    """uint8 [B, E, E, 3] -> uint8 [B, size, size, 3]."""
    if pixels.shape[1] == size:
        return pixels
    x = F.interpolate(pixels.permute(0, 3, 1, 2).float(), size=(size, size), mode="bicubic", antialias=True)
    return x.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def training_batches(images: Sequence[str], size: int, batch: int, seed: int, start: int) -> Generator[Tensor, None, None]:
    """Batches of every step from `start` on, for ever: uint8 [batch, size, size, 3].

    Which images step n has is a function of (seed, n); the next batch is read while the caller works on this one.
    """

    def read(step: int) -> Tensor:
        positions = range(step * batch, (step + 1) * batch)
        chosen = []
        for epoch in sorted({p // len(images) for p in positions}):
            order = np.random.default_rng((seed, epoch)).permutation(len(images))
            chosen += [images[int(order[p % len(images)])] for p in positions if p // len(images) == epoch]
        return torch.from_numpy(load_eval_images(chosen, size, threads=2))

    with ThreadPoolExecutor(1, thread_name_prefix="decoder-data") as pool:
        ahead = pool.submit(read, start)
        step = start
        while True:
            current, step = ahead.result(), step + 1
            ahead = pool.submit(read, step)
            yield current
