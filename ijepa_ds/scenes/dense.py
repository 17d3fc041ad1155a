"""Labels of every pixel of a demo image: the object it shows, its shape, and its depth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ijepa_ds.scenes.paint import Canvas
from ijepa_ds.scenes.shapes import SHAPES, SUPERSAMPLE, Array

GROUND = 0
SHAPE_INDEX = {name: number for number, name in enumerate(SHAPES, 1)}
DEPTH_SCALE = 1000  # values of a depth PNG per world unit
FOLDERS = ("objects", "shapes", "depth")


def labels(canvas: Canvas) -> tuple[Array, Array, Array]:
    """Labels of each pixel, from the same rays as its colour.

    A pixel shows what most of its rays hit; if two surfaces have as many rays, the nearer one.

    Returns:
        objects, uint8 [S, S]: 0 is the ground, i the i-th object of the record; shapes, uint8 [S, S]: 0 is the ground, others
        are `SHAPE_INDEX`; depth, float32 [S, S], distance along the view axis in world units, averaged over the rays that
        hit the surface.
    """
    size, s = canvas.camera.size, SUPERSAMPLE
    owner, depth = (
        values.reshape(size, s, size, s).transpose(0, 2, 1, 3).reshape(size, size, s * s)
        for values in (canvas.owner, canvas.depth)
    )
    same = owner[..., :, None] == owner[..., None, :]
    votes = same.sum(-1)
    nearest = np.where(same, depth[..., None, :], np.inf).min(-1)
    chosen = np.take_along_axis(owner, np.lexsort((nearest, -votes), axis=-1)[..., :1], -1)
    hit = owner == chosen
    mean = np.where(hit, depth, 0).sum(-1) / hit.sum(-1)
    objects = (chosen[..., 0] + 1).astype(np.uint8)
    kinds = np.array([GROUND, *(SHAPE_INDEX[solid.shape] for solid in canvas.solids)], np.uint8)
    return objects, kinds[objects], mean.astype(np.float32)


def write(canvas: Canvas, folder: Path, name: str) -> None:
    """Write the labels of an image as PNG: `folder`/objects/`name`, shapes/`name` (8 bits) and depth/`name` (16 bits).

    Args:
        canvas: of the image.
        folder: has the folders `FOLDERS`, and in them those of `name`.
        name: relative path, ends in .png.
    """
    objects, shapes, depth = labels(canvas)
    scaled = np.rint(depth * DEPTH_SCALE).clip(1, 2**16 - 1).astype(np.uint16)
    for kind, values in zip(FOLDERS, (objects, shapes, scaled), strict=True):
        Image.fromarray(values).save(folder / kind / name)
