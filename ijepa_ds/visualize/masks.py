"""What the encoder sees and what it must predict, drawn on the images."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ijepa_ds.masks import Masks

_COLOURS = np.array([(230, 57, 70), (42, 157, 143), (244, 162, 97), (69, 123, 157), (155, 93, 229), (255, 209, 102)])
_GREY = 40  # what the context encoder does not see
_SIDE = 160  # small images are enlarged to about this


def draw_masks(image: Tensor, context: Tensor, targets: Tensor, patch_size: int) -> np.ndarray:
    """One image in three panels: the original, what the contexts show, the target blocks in colours.

    Args:
        image: uint8 `[S, S, 3]`.
        context: int64 `[C, Kc]` patch indices.
        targets: int64 `[M, Kt]`.
        patch_size: in pixels.

    Returns:
        uint8 `[S', 3*S' + 2 gaps, 3]`; S' is S times a whole number.
    """
    pixels = image.cpu().numpy()
    zoom = max(1, _SIDE // pixels.shape[0])
    pixels, patch = pixels.repeat(zoom, 0).repeat(zoom, 1), patch_size * zoom
    grid = pixels.shape[0] // patch
    seen = _cover(context.cpu().numpy().ravel(), grid, patch)
    visible = np.where(seen[..., None], pixels, _GREY).astype(np.uint8)
    blocks = pixels.copy()
    for index, block in enumerate(targets.cpu().numpy()):
        colour, inside = _COLOURS[index % len(_COLOURS)], _cover(block, grid, patch)
        blocks[inside] = (0.6 * blocks[inside] + 0.4 * colour).astype(np.uint8)
        blocks[inside & ~_shrunk(inside, max(1, zoom // 2, patch // 12))] = colour
    gap = np.full((pixels.shape[0], 6, 3), 255, dtype=np.uint8)
    return np.concatenate([pixels, gap, visible, gap, blocks], axis=1)


def draw_batch(images: Tensor, masks: Masks, patch_size: int, columns: int = 2) -> np.ndarray:
    """Several images of `draw_masks` in a grid.

    Args:
        images: uint8 `[B, S, S, 3]`.
        masks: of the same images.
        patch_size: in pixels.
        columns: images side by side.

    Returns:
        uint8 `[H, W, 3]`.
    """
    panels = [
        draw_masks(image, masks.context[i], masks.targets[i], patch_size) for i, image in enumerate(images)
    ]
    panels += [np.full_like(panels[0], 255)] * (-len(panels) % columns)
    framed = [np.pad(p, ((4, 4), (8, 8), (0, 0)), constant_values=255) for p in panels]
    rows = [np.concatenate(framed[i : i + columns], axis=1) for i in range(0, len(framed), columns)]
    return np.concatenate(rows, axis=0)


def _cover(indices: np.ndarray, grid: int, patch: int) -> np.ndarray:
    """Pixels of the indexed patches: bool `[G*patch, G*patch]`."""
    small = np.zeros(grid * grid, dtype=bool)
    small[indices] = True
    return small.reshape(grid, grid).repeat(patch, 0).repeat(patch, 1)


def _shrunk(inside: np.ndarray, width: int) -> np.ndarray:
    """The region without its border of `width` pixels."""
    result = inside
    for _ in range(width):
        padded = np.pad(result, 1)
        result = padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return result
