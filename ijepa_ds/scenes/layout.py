"""Random layout of a demo scene: camera, lamps, and separated, visible solids.

A generator keyed by (seed, index) draws everything, so images do not depend on each other.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ijepa_ds.scenes.paint import Canvas, Light, Traced
from ijepa_ds.scenes.shapes import HALF_VIEW, SHAPES, Array, Camera, Solid

MIN_OBJECTS, MAX_OBJECTS = 3, 10
COLOURS = {  # sRGB
    "gray": (87, 87, 87),
    "red": (173, 35, 35),
    "blue": (42, 75, 215),
    "green": (29, 105, 20),
    "brown": (129, 74, 25),
    "purple": (129, 38, 192),
    "cyan": (41, 208, 208),
    "yellow": (255, 238, 51),
}
LINEAR = {name: ((np.array(srgb) / 255) ** 2.2).astype(np.float32) for name, srgb in COLOURS.items()}
SIZES = {"large": 0.7, "small": 0.35}  # radius, world units
MATERIALS = ("rubber", "metal")
_NEAREST = (7.5, 11.0)  # depth of the nearest object
_FARTHEST = 13.5
_GAP = 0.25  # between footprints
_OBJECT_TRIES, _SCENE_TRIES = 40, 200
_STREAM_SCENE, _STREAM_COUNTS = 0, 1


def generator(seed: int, stream: int, index: int) -> np.random.Generator:
    """Return the random generator of one image, or of one block of object counts or classes; `stream` is 0 to 3."""
    key = index * 2 + stream if stream < 2 else 2**63 + index * 2 + stream - 2  # streams 2 and 3 came later
    return np.random.Generator(np.random.Philox(key=np.array([seed, key], np.uint64)))


def object_count(seed: int, index: int) -> int:
    """Return the number of objects of an image; each block of eight images has every count once, in random order."""
    counts = MAX_OBJECTS - MIN_OBJECTS + 1
    order = generator(seed, _STREAM_COUNTS, index // counts).permutation(counts)
    return MIN_OBJECTS + int(order[index % counts])


def _draw_camera(rng: np.random.Generator, size: int) -> Camera:
    """Draw a camera near CLEVR's position (distance 11.3, elevation 28 degrees), shifted by up to 0.5 along each axis."""
    position = np.array([7.5, -6.5, 5.35]) + rng.uniform(-0.5, 0.5, 3)
    return Camera(position, np.array([0.0, 0.0, 0.3]) + rng.uniform(-0.1, 0.1, 3), size)


def draw_light(rng: np.random.Generator, camera: Camera) -> Light:
    """Draw a key lamp at one side, a fill lamp at the other, a back lamp, and a tinted grey ground."""
    side = 1.0 if rng.random() < 0.5 else -1.0
    # Angles about the vertical, measured from the direction of the camera.
    angles = np.arctan2(camera.position[1], camera.position[0]) + side * np.array(
        [rng.uniform(0.4, 1.9), -rng.uniform(0.5, 1.2), rng.uniform(2.6, 3.6)]
    )
    distance = np.array([rng.uniform(5, 7.5), rng.uniform(7, 9), rng.uniform(5, 8)])
    height = np.array([rng.uniform(6.5, 9), rng.uniform(4, 6), rng.uniform(5, 7)])
    lamps = np.stack([distance * np.cos(angles), distance * np.sin(angles), height], 1).astype(np.float32)
    power = np.array([rng.uniform(0.6, 1.0), rng.uniform(0.12, 0.25), rng.uniform(0.05, 0.15)], np.float32)
    tint = 1 + rng.uniform(-0.07, 0.07, 3)
    waves = np.stack([*rng.normal(0, 1.2, (2, 4)), rng.uniform(0, 2 * np.pi, 4), rng.uniform(0, 0.035, 4)], 1).astype(
        np.float32
    )
    ground = (rng.uniform(0.28, 0.5) * tint).astype(np.float32)
    return Light(lamps, power, float(rng.uniform(0.6, 2.0)), float(rng.uniform(0.16, 0.3)), ground, waves)


def _draw_object(rng: np.random.Generator, camera: Camera, depths: tuple[float, float]) -> tuple[Solid, dict[str, Any]]:
    """Draw an object at a uniform position on the visible ground within a range of depths; return it and its record."""
    shape, colour, size, material = (
        options[int(rng.integers(len(options)))] for options in (list(SHAPES), list(COLOURS), list(SIZES), MATERIALS)
    )
    radius, angle = SIZES[size], float(rng.uniform(0, 2 * np.pi))
    height = radius * SHAPES[shape].half_height
    depth = float(rng.uniform(*depths))
    across = float(rng.uniform(-1, 1)) * HALF_VIEW * depth
    # The row of the image at which this depth is at the height of the centre.
    along = (height - camera.position[2] - depth * camera.forward[2]) / camera.up[2]
    centre = camera.position + depth * camera.forward + across * camera.right + along * camera.up
    solid = Solid(shape, radius, centre.astype(np.float32), angle, LINEAR[colour], material == "metal")
    return solid, {"shape": shape, "color": colour, "size": size, "material": material}


def measures(solid: Solid, camera: Camera) -> dict[str, Any]:
    """Return the coordinates of a solid for its record."""
    x, y, depth = (float(value) for value in camera.project(solid.centre))
    return {
        "3d_coords": [round(float(value), 4) for value in solid.centre],
        "rotation": round(float(np.degrees(solid.angle)), 3),
        "pixel_coords": [round(x, 3), round(y, 3), round(depth, 4)],
    }


def _is_apart(solid: Solid, others: list[Solid]) -> bool:
    return all(math.dist(solid.centre[:2], other.centre[:2]) > solid.radius + other.radius + _GAP for other in others)


def _draw_layout(rng: np.random.Generator, camera: Camera, count: int, nearest: float) -> tuple[Canvas, list] | None:
    """Place the nearest object at its depth and the others behind it; return None if they do not fit."""
    canvas = Canvas(camera)
    records: list[dict] = []
    while len(records) < count:
        for _ in range(_OBJECT_TRIES):
            solid, record = _draw_object(rng, camera, (nearest, _FARTHEST) if records else (nearest, nearest))
            if _is_apart(solid, canvas.solids) and canvas.place(solid):
                records.append(record | measures(solid, camera))
                break
        else:
            return None
    return canvas, records


def trace(seed: int, index: int, size: int) -> Traced:
    """Lay out one scene.

    Args:
        seed: 0 .. 2**64 - 1.
        index: Number of the image, from 0.
        size: Side in pixels; the layout is the same at most sizes, unless an object would be too small to see.

    Returns:
        its visible surfaces and light, and its objects in CLEVR's format; their number is `object_count`.

    Raises:
        RuntimeError: The objects did not fit in many attempts (never observed).
    """
    rng = generator(seed, _STREAM_SCENE, index)
    count = object_count(seed, index)
    for _ in range(_SCENE_TRIES):
        camera = _draw_camera(rng, size)
        layout = _draw_layout(rng, camera, count, nearest=float(rng.uniform(*_NEAREST)))
        if layout is not None:
            canvas, records = layout
            light = draw_light(rng, camera)
            return Traced(canvas, light, rng.random((2, *canvas.depth.shape), np.float32), records, f"{count:02d}_objects")
    raise RuntimeError(f"scene {index} of seed {seed}: {count} objects do not fit at {size} pixels; use another seed")


def draw(seed: int, index: int, size: int) -> tuple[Array, list[dict[str, Any]]]:
    """Render one scene; arguments and errors as in `trace`.

    Returns:
        The image, uint8 [size, size, 3], and its objects in CLEVR's format; their number is `object_count`.
    """
    traced = trace(seed, index, size)
    return traced.picture(), traced.objects
