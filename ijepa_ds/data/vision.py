"""The image loader without DALI: Pillow on threads, with the same samples and the same pixels up to rounding.

It is also the loader of all images that are not RGB of 8 bits (`values`), which DALI does not read.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ijepa_ds.config import DataConfig
from ijepa_ds.data.ahead import Content, ReadAhead
from ijepa_ds.data.pillow import MAX_PIXELS, decode_window
from ijepa_ds.data.planes import planes_of, read_numbers, stacked
from ijepa_ds.data.samples import SamplePlan, Samples
from ijepa_ds.data.values import Values
from ijepa_ds.errors import ContentError

logger = logging.getLogger(__name__)
_TOLD = frozenset(10**power for power in range(12))  # numbers of filled samples that the log has


def read_crop(
    content: bytes,
    window: np.ndarray,
    flip: bool,
    crop_size: int,
    max_pixels: int = MAX_PIXELS,
    layout: str | None = None,
) -> np.ndarray:
    """Decode an image, crop a window, resize it with torchvision's bilinear filter and optionally mirror it.

    Args:
        content: The file's bytes; EXIF orientation is ignored.
        window: (top, left, height, width) in pixels.
        flip: Mirror left to right.
        crop_size: Side of the result in pixels.
        max_pixels: As `data.max_pixels`.
        layout: As `data.arrays`.

    Returns:
        uint8 [crop_size, crop_size, 3].

    Raises:
        ValueError: The image cannot be used; the text has the reason.
    """
    crop = decode_window(content, window, max_pixels, layout).resize((crop_size, crop_size), Image.Resampling.BILINEAR)
    return np.asarray(crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else crop)


class VisionBackend:
    """Micro-batches decoded by Pillow."""

    name = "torchvision"

    def __init__(self, plan: SamplePlan, cfg: DataConfig, device: torch.device) -> None:
        """Decode the samples of `plan` on `cfg.threads` threads, into pinned memory if `device` is a GPU."""
        self._plan, self._cfg, self._values = plan, cfg, Values.of(cfg)
        self._filled, self._lock = 0, threading.Lock()  # samples with values that had to be filled
        self._pin = device.type == "cuda"
        self._pool = ThreadPoolExecutor(cfg.threads, thread_name_prefix="decode")
        self._map = self._pool.map if cfg.threads > 1 else map  # a single thread: the loader's own is faster
        self._ahead = ReadAhead(plan, cfg.readers)

    def batch(self, micro: int) -> Tensor:
        """Return a micro-batch in main memory: uint8 [B, S, S, 3], or float32 [B, S, S, C] in 0 .. 1 of other images.

        Raises:
            ValueError: Too many images are unreadable.
        """
        samples, contents = self._ahead.batch(micro)
        side, count = self._cfg.crop_size, len(samples.indices)
        dtype = torch.uint8 if self._values.plain else torch.float32
        images = torch.empty(count, side, side, self._values.count, dtype=dtype, pin_memory=self._pin)
        todo = list(range(count))
        while todo:
            failures = list(self._map(partial(self._decode, samples, contents, images.numpy()), todo))
            failed = [(position, failure) for position, failure in zip(todo, failures, strict=True) if failure]
            for position, failure in failed:
                self._plan.reject(int(samples.indices[position]), failure)
            todo = [position for position, _ in failed]
            if todo:
                samples, contents = self._ahead.batch(micro)
        return images

    def close(self) -> None:
        """End the threads."""
        self._ahead.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _decode(self, samples: Samples, contents: list[Future[Content]], images: np.ndarray, position: int) -> str | None:
        """Fill one position of the batch; return the error text if the image is unreadable."""
        cfg, window, flip = self._cfg, samples.windows[position], bool(samples.flips[position])
        try:
            content = contents[position].result()
            if self._values.plain:
                assert isinstance(content, bytes)
                images[position] = read_crop(content, window, flip, cfg.crop_size, cfg.max_pixels, cfg.arrays)
            else:
                images[position] = self._values_of(content, samples, position)
        except ContentError as error:
            return str(error)
        return None

    def _values_of(self, content: Content, samples: Samples, position: int) -> np.ndarray:
        """The crop of an image of other channels, float32 [S, S, C]."""
        side, window = self._cfg.crop_size, samples.windows[position]
        if isinstance(content, bytes):
            content = read_numbers(content, self._values, window, self._cfg.max_pixels)
        planes, filled = planes_of(content, self._values)
        if filled:
            self._count_filled(int(samples.indices[position]), filled)
        crop = stacked([plane.resize((side, side), Image.Resampling.BILINEAR) for plane in planes])
        return crop[:, ::-1] if samples.flips[position] else crop

    def _count_filled(self, index: int, values: int) -> None:
        with self._lock:
            self._filled += 1
            samples = self._filled
        if samples in _TOLD:
            path = self._plan.reader.display_path(index)
            logger.warning(
                "samples with values without data, filled with data.mean: %d, such as %r (%d)", samples, path, values
            )
