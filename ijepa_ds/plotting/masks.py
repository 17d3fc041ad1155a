"""Pictures of masks over their images: the context, and the target blocks."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from ijepa_ds.masks.sampler import Masks

MIN_PANEL = 160  # pixels: smaller images are enlarged by a whole factor
HIDDEN = 128  # grey level of patches outside the context
PALETTE = ((230, 72, 60), (36, 130, 240), (250, 176, 5), (32, 170, 110), (170, 85, 220), (20, 190, 200))
_TINT = 0.45  # share of the block's colour in its pixels
_DIM = 0.35  # share of the image left outside the target blocks
_GAP = 6  # pixels between panels; the gap between images is larger


def mask_panels(image: np.ndarray, context: ArrayLike, targets: ArrayLike, patch: int) -> list[np.ndarray]:
    """An image, each of its contexts with the rest grey, and its target blocks in colours.

    Args:
        image: uint8 [S, S, 3].
        context: int [C, Kc], patch indices in raster order.
        targets: int [M, Kt], patch indices.
        patch: Side of a patch in pixels.

    Returns:
        2 + C panels, uint8 [P, P, 3] with P >= 160 pixels.

    Raises:
        ValueError: The image is not a square of whole patches, or a patch index is outside it.
    """
    image, contexts, blocks = np.asarray(image), np.asarray(context), np.asarray(targets)
    side = image.shape[0]
    if image.dtype != np.uint8 or image.shape != (side, side, 3) or side % patch:
        raise ValueError(f"image: expected uint8 [S, S, 3], S a multiple of {patch}, got {image.dtype} {list(image.shape)}")
    grid = side // patch
    for name, numbers in (("context", contexts), ("targets", blocks)):
        if numbers.size and (numbers.min() < 0 or numbers.max() >= grid * grid):
            raise ValueError(f"{name}: patch indices outside 0 .. {grid * grid - 1}")
    factor = -(-MIN_PANEL // side)
    large = image.repeat(factor, axis=0).repeat(factor, axis=1)
    shown = [_pixels(numbers, grid, patch * factor) for numbers in contexts]
    asked = [_pixels(numbers, grid, patch * factor) for numbers in blocks]
    panels = [large]
    panels += [np.where(mask[..., None], large, np.uint8(HIDDEN)) for mask in shown]
    panels.append(_draw_blocks(large, asked))
    return panels


def draw_masks(image: np.ndarray, context: ArrayLike, targets: ArrayLike, patch: int) -> np.ndarray:
    """Draw the panels of `mask_panels` in a row: uint8 [P, (2 + C) * P + (1 + C) * gap, 3]."""
    return _join(mask_panels(image, context, targets, patch), _GAP, axis=1)


def draw_batch(images: Tensor, masks: Masks, patch: int, columns: int = 2) -> np.ndarray:
    """Draw several images with `draw_masks` in a grid, for TensorBoard or a PNG.

    Args:
        images: uint8 [B, S, S, 3], on any device.
        masks: Masks of these B images.
        patch: Side of a patch in pixels.
        columns: Images per row.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError: As `draw_masks`, or B is 0 or differs between images and masks.
    """
    if not len(images) or len(images) != len(masks.context) or len(images) != len(masks.targets):
        raise ValueError(f"{len(images)} images, {len(masks.context)} contexts, {len(masks.targets)} targets")
    context, targets = masks.context.cpu().numpy(), masks.targets.cpu().numpy()
    pixels = images.cpu().numpy()
    drawn = [draw_masks(pixels[i], context[i], targets[i], patch) for i in range(len(pixels))]
    drawn += [np.full_like(drawn[0], 255)] * (-len(drawn) % columns if len(drawn) > columns else 0)
    rows = [_join(drawn[i : i + columns], 3 * _GAP, axis=1) for i in range(0, len(drawn), columns)]
    return _join(rows, 2 * _GAP, axis=0)


def _pixels(numbers: np.ndarray, grid: int, patch: int) -> np.ndarray:
    """Return the pixels that a set of patches covers, bool [P, P]."""
    mask = np.zeros(grid * grid, dtype=bool)
    mask[numbers] = True
    return mask.reshape(grid, grid).repeat(patch, axis=0).repeat(patch, axis=1)


def _draw_blocks(image: np.ndarray, blocks: list[np.ndarray]) -> np.ndarray:
    """Dim the image, then tint and outline each block in its colour; outlines show overlaps."""
    pixels = image.astype(np.float64)
    covered = np.logical_or.reduce(blocks)[..., None]
    luminance = pixels.mean(axis=2, keepdims=True)
    picture = np.where(covered, pixels, _DIM * luminance + (1 - _DIM) * 235)
    for number, block in enumerate(blocks):
        colour = np.array(PALETTE[number % len(PALETTE)], dtype=np.float64)
        picture[block] = (1 - _TINT) * picture[block] + _TINT * colour
    for number, block in enumerate(blocks):
        picture[_outline(block, max(2, len(image) // 64))] = PALETTE[number % len(PALETTE)]
    return np.rint(picture).astype(np.uint8)


def _outline(block: np.ndarray, thickness: int) -> np.ndarray:
    """Return the pixels of a block within `thickness` of its edge or of the image's edge."""
    inner = np.pad(block, thickness)
    for axis in (0, 1):
        inner = np.logical_and.reduce([np.roll(inner, step, axis) for step in range(-thickness, thickness + 1)])
    return block & ~inner[thickness:-thickness, thickness:-thickness]


def _join(pictures: list[np.ndarray], gap: int, axis: int) -> np.ndarray:
    """Concatenate pictures vertically (axis 0) or horizontally (axis 1), with white gaps."""
    shape = list(pictures[0].shape)
    shape[axis] = gap
    space = np.full(shape, 255, dtype=np.uint8)
    parts = [part for picture in pictures for part in (picture, space)]
    return np.concatenate(parts[:-1], axis=axis)
