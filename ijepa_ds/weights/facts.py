"""Metadata of weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ijepa_ds.config import Config
from ijepa_ds.config.sizes import Size
from ijepa_ds.data.planes import planes_of
from ijepa_ds.data.rasters import Window
from ijepa_ds.data.scan import ScanOptions
from ijepa_ds.data.transforms import joined, normalize, resize_centre_crop
from ijepa_ds.data.values import PLAIN, Values
from ijepa_ds.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class WeightsError(UserError):
    """Weights cannot be used; the message names the file, what was found and what to do."""


def scan_options(config: Config | None, own_images: bool = False) -> ScanOptions:
    """How images are read for the weights of a run; `own_images`: they are the run's, so its columns and the like count."""
    if config is None:
        return ScanOptions()
    return ScanOptions.of(config.data) if own_images else ScanOptions(config.data.max_pixels, values=Values.of(config.data))


@dataclass(frozen=True)
class Transform:
    """Image transform for evaluation, without augmentation.

    Attributes:
        size: side of the output in pixels.
        mean: per channel, for pixels in 0 .. 1.
        std: per channel.
        values: how images become channels.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    values: Values = PLAIN

    def __call__(self, image: Image.Image | np.ndarray) -> Tensor:
        """Resize the shorter side to 256/224 of `size`, centre-crop, normalise: float32 [C, size, size].

        Args:
            image: an image, converted to RGB; for an encoder of other channels, or of deeper values, the numbers of the
                chosen channels as in the file, [H, W, C].
        """
        if self.values.plain != isinstance(image, Image.Image) or len(self.mean) != self.values.count:
            raise WeightsError(f"expected {'an image' if self.values.plain else f'numbers [H, W, {len(self.mean)}]'}")
        layers = [image] if isinstance(image, Image.Image) else planes_of(Window(image), self.values)[0]
        pixels = torch.from_numpy(joined([resize_centre_crop(layer, self.size) for layer in layers]).copy())
        return normalize(pixels[None], self.mean, self.std, torch.float32)[0]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Metadata of one encoder.

    Attributes:
        source: path of the weights.
        kind: run, export, published, timm or hugging face.
        which: target, context, untrained, or unlabelled (the file does not say).
        step: optimiser steps; None where unknown.
        size: encoder size.
        patch_size: pixels.
        image_size: pixels.
        position_grid: patches along a side in training.
        mean: per channel, for pixels in 0 .. 1, as in training.
        std: per channel.
        eps: of the LayerNorms.
        config: the run's configuration, where known.
        notes: assumptions and changes, one sentence each.
    """

    source: str
    kind: str
    which: str
    step: int | None
    size: Size
    patch_size: int
    image_size: int
    position_grid: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    eps: float = 1e-6
    config: Config | None = None
    notes: tuple[str, ...] = ()

    @property
    def transform(self) -> Transform:
        """The transform from an image to the encoder's input."""
        values = Values.of(self.config.data) if self.config else PLAIN
        return Transform(self.image_size, self.mean, self.std, values)
