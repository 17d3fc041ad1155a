"""Square windows over images of any aspect ratio, and maps of whole images from maps of windows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ijepa_ds.data.transforms import joined

_STRIDE = 2 / 3  # of a window's side, at most, as in mmsegmentation's configurations of ADE20K (341 of 512)
Box = tuple[int, int]  # top, left


def resized(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height with the shorter side `size`; the aspect ratio is kept to a pixel."""
    shorter = min(width, height)
    return max(size, round(width * size / shorter)), max(size, round(height * size / shorter))


def starts(length: int, size: int) -> list[int]:
    """Where windows of `size` start along `length` pixels: evenly spaced, the last one ends at the end."""
    count = 1 + math.ceil((length - size) / (_STRIDE * size))
    return [round(number * (length - size) / max(1, count - 1)) for number in range(count)]


def boxes_of(width: int, height: int, size: int) -> list[Box]:
    """The windows of an image that has been resized to width x height."""
    return [(top, left) for top in starts(height, size) for left in starts(width, size)]


def cut(layers: Sequence[Image.Image], size: int) -> tuple[np.ndarray, list[Box], tuple[int, int]]:
    """Resize an image (bicubic) and cut it into windows.

    Args:
        layers: one RGB image, or a plane for each channel (`data.transforms.read_layers`).
        size: side of a window.

    Returns:
        uint8 [T, size, size, 3], or float32 [T, size, size, C] in 0 .. 1; the windows' corners; width and height of the
        resized image.
    """
    shape = resized(*layers[0].size, size)
    pixels = joined([layer if layer.size == shape else layer.resize(shape, Image.Resampling.BICUBIC) for layer in layers])
    boxes = boxes_of(*shape, size)
    return np.stack([pixels[top : top + size, left : left + size] for top, left in boxes]), boxes, shape


def cut_truth(truth: np.ndarray, size: int) -> np.ndarray:
    """Resize labels [H, W] to the nearest pixel and cut them as `cut` cuts their image; [T, size, size]."""
    height, width = truth.shape
    shape = resized(width, height, size)
    rows = ((np.arange(shape[1]) + 0.5) * height / shape[1]).astype(np.int64)
    columns = ((np.arange(shape[0]) + 0.5) * width / shape[0]).astype(np.int64)
    whole = truth[rows[:, None], columns[None]]
    return np.stack([whole[top : top + size, left : left + size] for top, left in boxes_of(*shape, size)])


def merge(maps: Tensor, boxes: Sequence[Box], shape: tuple[int, int]) -> Tensor:
    """Average the maps of windows where they overlap.

    Args:
        maps: [T, C, size, size].
        boxes: of T windows.
        shape: width and height of the image.

    Returns:
        [C, height, width].
    """
    size = maps.shape[-1]
    if len(boxes) == 1:
        return maps[0]
    whole = maps.new_zeros(maps.shape[1], shape[1], shape[0])
    seen = maps.new_zeros(shape[1], shape[0])
    for part, (top, left) in zip(maps, boxes, strict=True):
        whole[:, top : top + size, left : left + size] += part
        seen[top : top + size, left : left + size] += 1
    return whole / seen


def enlarge(maps: Tensor, height: int, width: int) -> Tensor:
    """Bilinear interpolation of [B, C, h, w] to [B, C, height, width]."""
    if maps.shape[-2:] == (height, width):
        return maps
    return torch.nn.functional.interpolate(maps, (height, width), mode="bilinear", align_corners=False)
