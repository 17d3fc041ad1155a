"""Colour jitter, grayscale and blur as in torchvision, for whole batches on the training device.

Randomness is a function of (seed, global sample number), and no operation mixes the images of a batch, so the result for
an image does not depend on the rest of its batch or on the rank. The host never waits for the device.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from ijepa_ds.config import DataConfig
from ijepa_ds.counter import STREAM_AUGMENT, uniform
from ijepa_ds.data.transforms import normalize

_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)
_GRAY = (0.2989, 0.587, 0.114)  # torchvision's weights of red, green and blue
_ORDERS = tuple(itertools.permutations(range(4)))
# Draws of a sample: apply jitter, four factors, their order, apply grayscale, apply blur, sigma.
_JITTER, _FACTORS, _ORDER, _GRAYSCALE, _BLUR, _SIGMA, _DRAWS = 0, slice(1, 5), 5, 6, 7, 8, 9
_BELOW_ONE = 1 - 2.0**-24  # largest float32 below 1: float64 draws close to 1 become 1.0 when they are converted


def network_input(pixels: Tensor, first: int, cfg: DataConfig, seed: int, dtype: torch.dtype) -> Tensor:
    """Convert a training batch to the encoder's input, with the configured augmentations.

    Args:
        pixels: uint8 [B, S, S, 3].
        first: Global sample number of the first image; the others are consecutive.
        cfg: Augmentations, mean and std.
        seed: The run's seed.
        dtype: Type of the result.

    Returns:
        [B, 3, S, S], normalised, contiguous, on the device of `pixels`.
    """
    if not has_augmentations(cfg):
        return normalize(pixels, cfg.mean, cfg.std, dtype)
    numbers = torch.arange(first, first + len(pixels), device=pixels.device)
    images = augment(normalize(pixels, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), torch.float32), numbers, cfg, seed)
    mean, std = _rows(tuple(cfg.mean), tuple(cfg.std), device=images.device)
    return images.sub_(mean[:, None, None]).div_(std[:, None, None]).to(dtype)


def has_augmentations(cfg: DataConfig) -> bool:
    """Return whether any augmentation beyond crop and flip is on."""
    return any(cfg.color_jitter) or cfg.grayscale > 0 or cfg.blur > 0


def augment(images: Tensor, numbers: Tensor, cfg: DataConfig, seed: int) -> Tensor:
    """Apply colour jitter, then grayscale, then blur, each with its probability.

    Args:
        images: float32 [B, 3, S, S] in 0 .. 1.
        numbers: int64 [B], global sample numbers, on the same device.
        cfg: Strengths and probabilities.
        seed: The run's seed.

    Returns:
        float32 [B, 3, S, S] in 0 .. 1, contiguous.
    """
    drawn = uniform(seed, STREAM_AUGMENT, numbers, _DRAWS).float()  # [B, draws]
    chance = drawn.clamp(max=_BELOW_ONE)  # for what is compared or selects
    if any(cfg.color_jitter):
        jittered = color_jitter(images, drawn[:, _FACTORS], chance[:, _ORDER], cfg.color_jitter)
        images = _where(chance[:, _JITTER] < cfg.color_jitter_probability, jittered, images)
    if cfg.grayscale:
        images = _where(chance[:, _GRAYSCALE] < cfg.grayscale, grayscale(images).expand_as(images), images)
    if cfg.blur:
        low, high = cfg.blur_sigma
        blurred = gaussian_blur(images, low + (high - low) * drawn[:, _SIGMA], high)
        images = _where(chance[:, _BLUR] < cfg.blur, blurred, images)
    return images.contiguous()


def color_jitter(images: Tensor, factors: Tensor, order: Tensor, strengths: tuple[float, float, float, float]) -> Tensor:
    """Change brightness, contrast, saturation and hue, in a random order for each image.

    Args:
        images: float32 [B, 3, S, S] in 0 .. 1.
        factors: [B, 4] in 0 .. 1, position of each change within its range.
        order: [B] in [0, 1), selects one of the 24 orders.
        strengths: As torchvision's ColorJitter: factors from max(0, 1 - s) to 1 + s; hue from -s to s of a full turn.

    Returns:
        float32 [B, 3, S, S].
    """
    bounds = [(max(0.0, 1 - s), 1 + s) for s in strengths[:3]] + [(-strengths[_HUE], strengths[_HUE])]
    low, high = _rows(*zip(*bounds, strict=True), device=images.device)
    factors = low + (high - low) * factors
    operations = (_rows(*_ORDERS, device=images.device).long()[(order * len(_ORDERS)).long()]).unbind(dim=1)  # 4 of [B]
    for operation in operations:
        changed = _blend(images, operation, factors)
        if strengths[_HUE]:
            changed = _where(operation == _HUE, adjust_hue(images, factors[:, _HUE]), changed)
        images = changed
    return images


def _blend(images: Tensor, operation: Tensor, factors: Tensor) -> Tensor:
    """Blend each image with black (brightness), its mean gray (contrast) or its grayscale (saturation); hue: unchanged."""
    gray = grayscale(images)
    other = _where(operation == _CONTRAST, gray.mean(dim=(1, 2, 3), keepdim=True).expand_as(gray), gray)
    other = _where(operation == _BRIGHTNESS, torch.zeros_like(gray), other)
    factor = factors.gather(1, operation[:, None]).squeeze(1)
    factor = torch.where(operation == _HUE, torch.ones_like(factor), factor)[:, None, None, None]
    return (factor * images + (1 - factor) * other).clamp_(0, 1)


def adjust_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Rotate the hue.

    Args:
        images: float32 [B, 3, S, S] in 0 .. 1.
        turns: [B], angle in full turns.

    Returns:
        float32 [B, 3, S, S].
    """
    value, which = images.max(dim=1)
    spread = value - images.min(dim=1).values
    safe = spread.clamp(min=torch.finfo(torch.float32).tiny)
    red, green, blue = images.unbind(dim=1)
    of_green_or_blue = torch.where(which == 1, (blue - red) / safe + 2, (red - green) / safe + 4)
    hue = torch.where(which == 0, (green - blue) / safe, of_green_or_blue)
    hue = (hue / 6 + turns[:, None, None]) * 6
    channels = []
    for offset in (5.0, 3.0, 1.0):  # the branch-free formula of HSV to RGB
        place = (offset + hue) % 6
        channels.append(value - spread * torch.minimum(place, 4 - place).clamp(0, 1))
    return torch.stack(channels, dim=1)


def grayscale(images: Tensor) -> Tensor:
    """Return the luminance of each pixel, [B, 3, S, S] -> [B, 1, S, S]."""
    red, green, blue = images.split(1, dim=1)
    return _GRAY[0] * red + _GRAY[1] * green + _GRAY[2] * blue


def gaussian_blur(images: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Blur each image with its own sigma, with reflected edges.

    The blur sums shifted images: the result of a convolution for one image could depend on the batch size.

    Args:
        images: float32 [B, 3, S, S].
        sigma: [B], pixels.
        largest: Upper limit of sigma in pixels; the kernel radius is three times it, at most the image's side.

    Returns:
        float32 [B, 3, S, S].
    """
    reach = min(math.ceil(3 * largest), images.shape[-1] - 1)
    steps = torch.arange(-reach, reach + 1, device=images.device, dtype=torch.float32)
    weights = torch.exp(-0.5 * (steps / sigma[:, None]) ** 2)
    weights = weights / weights.sum(dim=1, keepdim=True)  # [B, taps]
    for dim, pad in ((2, (0, 0, reach, reach)), (3, (reach, reach, 0, 0))):
        padded, size = functional.pad(images, pad, mode="reflect"), images.shape[dim]
        images = torch.zeros_like(images)
        for tap in range(2 * reach + 1):
            images.addcmul_(padded.narrow(dim, tap, size), weights[:, tap, None, None, None])
    return images


def _where(chosen: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Select `yes` or `no` for each image; chosen: bool [B]."""
    return torch.where(chosen[:, None, None, None], yes, no)


@lru_cache(maxsize=16)  # a copy to the GPU blocks; the cache avoids one per step
def _rows(*rows: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).to(device)
