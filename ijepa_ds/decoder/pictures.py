"""Images for training a decoder: the encoder's input and the decoder's target."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ijepa_ds.data.pillow import MAX_PIXELS
from ijepa_ds.data.reading import ImageFiles
from ijepa_ds.data.scan import ScanOptions
from ijepa_ds.data.sources import open_source
from ijepa_ds.data.transforms import load_eval_images, normalize
from ijepa_ds.weights import Source

_KEPT = 1 << 30  # maximum bytes of decoded images cached in memory


def open_images(source: str, option: str, options: ScanOptions) -> ImageFiles:
    """The readable images of a source (a folder, a list, tars, an index).

    Raises:
        ValueError: there are none; the message names `option`.
    """
    try:
        index = open_source(source, options)
    except ValueError as error:
        raise ValueError(str(error).replace("data.source", option, 1)) from error
    return ImageFiles(index, index.readable())


def encoder_input(pixels: Tensor, source: Source) -> Tensor:
    """uint8 [B, S, S, 3] -> normalised float32 [B, 3, E, E], with E the encoder's training size."""
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


class Pictures:
    """Images by number, read as for evaluation; cached if all of them fit in memory."""

    def __init__(self, images: Sequence[str], size: int, max_pixels: int = MAX_PIXELS, threads: int = 2) -> None:
        """Prepare; `size` is the side in pixels, images of more than `max_pixels` are unreadable."""
        self.images, self.size, self.threads, self.max_pixels = images, size, threads, max_pixels
        fits = 3 * size**2 * len(images) <= _KEPT
        self._kept = np.empty((len(images), size, size, 3), dtype=np.uint8) if fits else None
        self._known = np.zeros(len(images), dtype=bool)

    def read(self, numbers: np.ndarray) -> Tensor:
        """Images uint8 [B, size, size, 3] of int [B].

        Raises:
            ValueError: naming an image that cannot be read.
        """
        if self._kept is None:
            return self._load(numbers)
        new = np.unique(numbers[~self._known[numbers]])
        if len(new):
            self._kept[new] = self._load(new).numpy()
            self._known[new] = True
        return torch.from_numpy(self._kept[numbers])

    def _load(self, numbers: np.ndarray) -> Tensor:
        chosen = [self.images[i] for i in numbers]
        return torch.from_numpy(load_eval_images(chosen, self.size, self.threads, self.max_pixels))


def image_numbers(step: int, batch: int, total: int, seed: int) -> np.ndarray:
    """The images of a step, int64 [batch] below `total`; every image once an epoch."""
    positions = np.arange(step * batch, (step + 1) * batch)
    chosen = np.empty(batch, dtype=np.int64)
    for epoch in np.unique(positions // total):
        here = positions // total == epoch
        chosen[here] = np.random.default_rng((seed, int(epoch))).permutation(total)[positions[here] % total]
    return chosen


def training_batches(
    pictures: Pictures, batch: int, seed: int, start: int, rank: int = 0, world_size: int = 1
) -> Generator[tuple[np.ndarray, Tensor], None, None]:
    """Yield a rank's share of the batch of every step, from `start` on, without end.

    The images of step n are a function of (seed, n). The next batch is read in a background thread.

    Yields:
        numbers int64 [B], images uint8 [B, size, size, 3], with B = batch / world_size.
    """
    share = slice(rank * batch // world_size, (rank + 1) * batch // world_size)

    def read(step: int) -> tuple[np.ndarray, Tensor]:
        numbers = image_numbers(step, batch, len(pictures.images), seed)[share]
        return numbers, pictures.read(numbers)

    with ThreadPoolExecutor(1, thread_name_prefix="decoder-data") as pool:
        ahead, step = pool.submit(read, start), start
        while True:
            current, step = ahead.result(), step + 1
            ahead = pool.submit(read, step)
            yield current
