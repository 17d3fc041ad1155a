"""The image loader without DALI: Pillow on threads, with the same samples and the same pixels up to rounding."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ijepa_ds.config import DataConfig
from ijepa_ds.data.ahead import ReadAhead
from ijepa_ds.data.pillow import MAX_PIXELS, decode_window
from ijepa_ds.data.samples import SamplePlan, Samples
from ijepa_ds.errors import ContentError


def read_crop(content: bytes, window: np.ndarray, flip: bool, crop_size: int, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image, crop a window, resize it with torchvision's bilinear filter and optionally mirror it.

    Args:
        content: The file's bytes; EXIF orientation is ignored.
        window: (top, left, height, width) in pixels.
        flip: Mirror left to right.
        crop_size: Side of the result in pixels.
        max_pixels: As `data.max_pixels`.

    Returns:
        uint8 [crop_size, crop_size, 3].

    Raises:
        ValueError: The image cannot be used; the text has the reason.
    """
    crop = decode_window(content, window, max_pixels).resize((crop_size, crop_size), Image.Resampling.BILINEAR)
    return np.asarray(crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else crop)


class VisionBackend:
    """Micro-batches decoded by Pillow."""

    name = "torchvision"

    def __init__(self, plan: SamplePlan, cfg: DataConfig, device: torch.device) -> None:
        """Decode the samples of `plan` on `cfg.threads` threads, into pinned memory if `device` is a GPU."""
        self._plan, self._cfg = plan, cfg
        self._pin = device.type == "cuda"
        self._pool = ThreadPoolExecutor(cfg.threads, thread_name_prefix="decode")
        self._map = self._pool.map if cfg.threads > 1 else map  # a single thread: the loader's own is faster
        self._ahead = ReadAhead(plan, cfg.readers)

    def batch(self, micro: int) -> Tensor:
        """Return a micro-batch, uint8 [B, S, S, 3] in main memory.

        Raises:
            ValueError: Too many images are unreadable.
        """
        samples, contents = self._ahead.batch(micro)
        side, count = self._cfg.crop_size, len(samples.indices)
        images = torch.empty(count, side, side, 3, dtype=torch.uint8, pin_memory=self._pin)
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

    def _decode(self, samples: Samples, contents: list[Future[bytes]], images: np.ndarray, position: int) -> str | None:
        """Fill one position of the batch; return the error text if the image is unreadable."""
        window, flip = samples.windows[position], bool(samples.flips[position])
        try:
            content = contents[position].result()
            images[position] = read_crop(content, window, flip, self._cfg.crop_size, self._cfg.max_pixels)
        except ContentError as error:
            return str(error)
        return None
