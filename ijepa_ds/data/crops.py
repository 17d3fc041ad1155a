"""Random resized crops and flips as functions of the global sample number.

The distribution is that of torchvision's RandomResizedCrop: area and log-uniform aspect ratio are drawn up to ten
times, until the window fits; otherwise the window is the largest centred one within the ratios.
"""

from __future__ import annotations

import numpy as np

from ijepa_ds.counter import STREAM_CROP, STREAM_FLIP, uniform_np

_TRIES = 10


def crop_windows(
    widths: np.ndarray,
    heights: np.ndarray,
    numbers: np.ndarray,
    seed: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> np.ndarray:
    """Draw a crop window for each sample.

    Args:
        widths: [n], image widths in pixels.
        heights: [n], image heights in pixels.
        numbers: int64 [n], global sample numbers.
        seed: The run's seed.
        scale: Least and greatest area, as a share of the image's.
        ratio: Least and greatest width / height.

    Returns:
        int32 [n, 4]: (top, left, height, width) in pixels, inside the image and never empty.
    """
    width, height = np.asarray(widths, dtype=np.float64), np.asarray(heights, dtype=np.float64)
    drawn = uniform_np(seed, STREAM_CROP, numbers, 2 * _TRIES + 2)  # [n, areas, aspects, position]
    area = (width * height)[:, None] * (scale[0] + (scale[1] - scale[0]) * drawn[:, :_TRIES])
    low, high = np.log(ratio[0]), np.log(ratio[1])
    aspect = np.exp(low + (high - low) * drawn[:, _TRIES : 2 * _TRIES])
    tried_width, tried_height = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))  # [n, tries]
    fits = (tried_width > 0) & (tried_width <= width[:, None]) & (tried_height > 0) & (tried_height <= height[:, None])
    first, found = fits.argmax(axis=1), fits.any(axis=1)
    every = np.arange(len(width))
    centred_width = np.clip(np.rint(height * ratio[1]), 1, width)
    centred_height = np.clip(np.rint(width / ratio[0]), 1, height)
    crop_width = np.where(found, tried_width[every, first], centred_width)
    crop_height = np.where(found, tried_height[every, first], centred_height)
    top = np.where(found, np.floor(drawn[:, -2] * (height - crop_height + 1)), (height - crop_height) // 2)
    left = np.where(found, np.floor(drawn[:, -1] * (width - crop_width + 1)), (width - crop_width) // 2)
    return np.stack([top, left, crop_height, crop_width], axis=1).astype(np.int32)


def flips(numbers: np.ndarray, seed: int) -> np.ndarray:
    """Draw horizontal flips.

    Args:
        numbers: int64 [n], global sample numbers.
        seed: The run's seed.

    Returns:
        bool [n], True with probability 1/2: mirror the sample left to right.
    """
    return uniform_np(seed, STREAM_FLIP, numbers, 1)[:, 0] < 0.5
