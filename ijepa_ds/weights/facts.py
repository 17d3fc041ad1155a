"""What is known about weights beside their values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ijepa_ds.config import Config
from ijepa_ds.config.sizes import Size
from ijepa_ds.data.transforms import normalize, resize_centre_crop

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class WeightsError(ValueError):
    """Weights that cannot be used; the text names the file, what was found and what to do."""


@dataclass(frozen=True)
class Transform:
    """From a picture to what an encoder takes, as in evaluation: no augmentation.

    Attributes:
        size: side of the result in pixels.
        mean: of each channel, of pixels in 0 .. 1.
        std: of each channel.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, image: Image.Image) -> Tensor:
        """Shorter side to 256/224 of `size`, the centre of it, normalised: float32 [3, size, size]."""
        pixels = torch.from_numpy(np.asarray(resize_centre_crop(image, self.size)).copy())
        return normalize(pixels[None], self.mean, self.std, torch.float32)[0]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """About one encoder.

    Attributes:
        source: the path that was read.
        kind: run, export, published, timm or hugging face.
        which: target, context, untrained, or unlabelled (the file does not say).
        step: optimiser steps it was trained for; None when the file does not say.
        size: its shape.
        patch_size: pixels.
        image_size: pixels; what it takes.
        position_grid: patches along a side of the images that it learnt positions on.
        mean: of each channel, of pixels in 0 .. 1, as in training.
        std: of each channel.
        eps: of its LayerNorms.
        config: of the run, where the source knows it.
        notes: what had to be assumed or was changed, a sentence each.
    """

    source: str
    kind: str
    which: str
    step: int | None
    size: Size
    patch_size: int
    image_size: int
    position_grid: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    eps: float = 1e-6
    config: Config | None = None
    notes: tuple[str, ...] = ()

    @property
    def transform(self) -> Transform:
        """What turns a picture into the encoder's input."""
        return Transform(self.image_size, self.mean, self.std)
