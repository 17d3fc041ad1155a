"""Augmented images for fine-tuning: RGB by timm, other channels by crops and flips."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torch.utils.data import Dataset

from ijepa_ds.data.transforms import joined, normalize, read_layers
from ijepa_ds.data.values import Values

WITHOUT_COLOURS = "fine-tuning augments these channels by crops and flips, mixup and cutmix: RandAugment is for RGB of 8 bits"


class Images(NamedTuple):
    """Labelled images, and how they are resized and normalised."""

    paths: Sequence[str]
    labels: Tensor
    size: int
    mean: Sequence[float]
    std: Sequence[float]
    values: Values
    max_pixels: int


class Augmented(Dataset):
    """Images by (epoch, position); augmentation is a function of seed, epoch and position."""

    def __init__(self, images: Images, transform: Callable[[list[Image.Image]], Tensor], seed: int) -> None:
        """Prepare; `transform` comes from `augmentation`."""
        self.images, self.transform, self.seed = images, transform, seed

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        """An image [C, S, S] by (epoch, position)."""
        epoch, position = key
        drawn = np.random.SeedSequence((self.seed, epoch, position)).generate_state(3)
        random.seed(int(drawn[0]))
        np.random.seed(int(drawn[1]))
        torch.manual_seed(int(drawn[2]))
        return self.transform(read_layers(self.images.paths[position], self.images.max_pixels, self.images.values))


def augmentation(images: Images, crop_scale: float, rand_augment: str) -> Callable[[list[Image.Image]], Tensor]:
    """What makes a normalised tensor [C, S, S] of the layers of an image: timm's augmentation for RGB, else crops and flips.

    Args:
        images: size, mean, deviation and channels.
        crop_scale: smallest area of a crop as a share of the image.
        rand_augment: timm's configuration string, for RGB of 8 bits; empty: only crops and flips.
    """
    scale = (crop_scale, 1.0)
    if images.values.plain:
        augment = create_transform(
            images.size, is_training=True, scale=scale, auto_augment=rand_augment or None,
            interpolation="bicubic", mean=tuple(images.mean), std=tuple(images.std), color_jitter=0.0, re_prob=0.0,
        )  # fmt: skip
        return lambda layers: augment(layers[0])
    crop, side = RandomResizedCropAndInterpolation(images.size, scale=scale), (images.size, images.size)

    def cropped(layers: list[Image.Image]) -> Tensor:
        top, left, height, width = crop.get_params(layers[0], crop.scale, crop.ratio)
        box = (left, top, left + width, top + height)
        pixels = joined([layer.resize(side, Image.Resampling.BICUBIC, box=box) for layer in layers])
        pixels = pixels[:, ::-1].copy() if random.random() < 0.5 else pixels
        return normalize(torch.from_numpy(pixels)[None], images.mean, images.std, torch.float32)[0]

    return cropped
