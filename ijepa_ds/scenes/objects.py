"""Random layout of a demo image with one large solid, in any pose, colour, material and light.

A generator keyed by (seed, index) draws everything, so images do not depend on each other. The class (shape, for instance)
is balanced over blocks of images; everything else is drawn independently of it, so colour, for instance, does not tell it.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import replace
from typing import Any

import numpy as np

from ijepa_ds.scenes.layout import COLOURS, LINEAR, MATERIALS, draw_light, generator, measures
from ijepa_ds.scenes.paint import Canvas, Traced
from ijepa_ds.scenes.shapes import HALF_VIEW, SHAPES, Array, Camera, Solid

CLASSES = {  # what the class of an image is -> its values
    "shape": tuple(SHAPES),
    "color": tuple(COLOURS),
    "material": MATERIALS,
    "shape+material": tuple(f"{shape}_{material}" for shape in SHAPES for material in MATERIALS),
}
_RADIUS = 0.7  # world units
_SHARE = (0.65, 0.92)  # of the image's width that the solid takes; perspective makes it larger
_ELEVATION = (24.0, 50.0)  # degrees; with the field of view of 40 degrees, every ray hits the ground
_TILT = 10.0  # degrees from upright, at most
_UPRIGHT = 0.5  # share of upright solids
_OFF_CENTRE, _OUTSIDE = 0.05, 0.25  # distance of the solid's centre from the image's, at most, in image widths
_P_OUTSIDE, _P_BEHIND = 0.05, 0.05  # how often the solid is partly outside, or partly behind another one
_INSIDE = 0.6  # share of the bounding box that stays inside, at least
_VISIBLE = 0.55  # share of the solid that another one leaves visible, at least
_LEAST = 0.08  # share of the image's area that the solid takes, at least
_GROUND_VALUE, _GROUND_SATURATION = (0.4, 0.85), 0.05  # of the ground's sRGB colour; any hue
_GREY, _MUTED = 0.3, 0.65  # colours of solids are mixed with this share of a grey of this reflectance (linear RGB)
# With the full colours of scenes, colour decides most of the similarity of averaged features, and shape little of it
# (docs/LOG.md).
PALETTE = {name: ((1 - _MUTED) * value + np.float32(_MUTED * _GREY)).astype(np.float32) for name, value in LINEAR.items()}
_TRIES = 200
_STREAM_OBJECT, _STREAM_CLASSES = 2, 3


def class_of(classes: str, seed: int, index: int) -> str:
    """The class of an image; each block of as many images as classes has every class once, in random order.

    Args:
        classes: key of `CLASSES`.
        seed: of the data set.
        index: of the image.
    """
    values = CLASSES[classes]
    order = generator(seed, _STREAM_CLASSES, index // len(values)).permutation(len(values))
    return values[int(order[index % len(values)])]


def _draw_kind(rng: np.random.Generator, classes: str, label: str) -> dict[str, str]:
    """Shape, colour and material: those of the class, and others at random. The same draws for every choice of classes."""
    kind = {
        "shape": list(SHAPES)[int(rng.integers(len(SHAPES)))],
        "color": list(COLOURS)[int(rng.integers(len(COLOURS)))],
        "material": MATERIALS[int(rng.integers(len(MATERIALS)))],
    }
    return kind | dict(zip(classes.split("+"), label.split("_"), strict=True))


def _draw_pose(rng: np.random.Generator) -> tuple[float, float, float]:
    """Angle about the solid's axis, tilt of the axis, and the direction in which it leans; radians."""
    tilt = math.radians(_TILT) * rng.random()
    upright = rng.random() < _UPRIGHT
    angle, lean = rng.uniform(0, 2 * np.pi, 2)
    return float(angle), 0.0 if upright else float(tilt), float(lean)


def _solid(kind: dict[str, str], radius: float, place: Array, pose: tuple[float, float, float]) -> Solid:
    """A solid that touches the ground above or below `place`."""
    solid = Solid(
        kind["shape"], radius, place.astype(np.float32), pose[0], PALETTE[kind["color"]], kind["material"] == "metal",
        tilt=pose[1], lean=pose[2],
    )  # fmt: skip
    centre = np.array([place[0], place[1], solid.depth_below()], np.float32)
    return Solid(solid.shape, radius, centre, solid.angle, solid.albedo, solid.metal, tilt=solid.tilt, lean=solid.lean)


def _half_extent(solid: Solid, camera: Camera) -> float:
    """Half the width or height that the solid takes seen from far away, whichever is larger; world units."""
    return max(solid.reach_along(sign * axis) for axis in (camera.right, camera.up) for sign in (1, -1))


def _draw_camera(rng: np.random.Generator, size: int, solid: Solid, far: float) -> Camera:
    """A camera that looks at a point near the solid, so that the solid is seen off the centre by up to `far` image widths."""
    share = rng.uniform(*_SHARE)
    elevation, around = math.radians(rng.uniform(*_ELEVATION)), rng.uniform(0, 2 * np.pi)
    away = np.array([math.cos(elevation) * math.cos(around), math.cos(elevation) * math.sin(around), math.sin(elevation)])
    middle = solid.centre.astype(np.float64)
    distance = _half_extent(solid, Camera(middle + away, middle, size)) / (HALF_VIEW * share)
    camera = Camera(middle + distance * away, middle, size)
    across, along = rng.uniform(-far, far, 2) * 2 * HALF_VIEW * distance
    shift = across * camera.right + along * camera.up
    return Camera(camera.position + shift, middle + shift, size)


def _draw_ground(rng: np.random.Generator) -> Array:
    """Linear RGB of the ground, from dark to bright: solids are brighter or darker than it, whatever their shape.

    On the grey ground of scenes, the mean brightness of patches tells much of the shape, even to an untrained encoder.
    """
    srgb = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0, _GROUND_SATURATION), rng.uniform(*_GROUND_VALUE))
    return (np.array(srgb) ** 2.2).astype(np.float32)


def _inside(solid: Solid, camera: Camera) -> float:
    """Share of the bounding box, on the image plane, that is inside the image."""
    x, y, _ = camera.project(solid.corners())
    width, height = x.max() - x.min(), y.max() - y.min()
    seen = [min(float(v.max()), camera.size) - max(float(v.min()), 0.0) for v in (x, y)]
    return max(0.0, seen[0]) * max(0.0, seen[1]) / float(width * height)


def _touches_border(canvas: Canvas) -> bool:
    """Whether the first solid is seen at the border of the image, so that a part of it may be outside."""
    owner = canvas.owner == 0
    return bool(owner[[0, -1]].any() or owner[:, [0, -1]].any())


def _draw_front(rng: np.random.Generator, camera: Camera) -> Solid:
    """A smaller solid between the camera and the first one, to one side."""
    kind, pose = _draw_kind(rng, "shape", list(SHAPES)[int(rng.integers(len(SHAPES)))]), _draw_pose(rng)
    towards = camera.position[:2] / math.hypot(*camera.position[:2])
    side = np.array([-towards[1], towards[0]]) * (1 if rng.random() < 0.5 else -1)
    radius = _RADIUS * rng.uniform(0.4, 0.7)
    place = towards * (_RADIUS + radius + rng.uniform(0.1, 0.4)) + side * rng.uniform(0.3, 1.1) * _RADIUS
    return _solid(kind, radius, np.array([*place, 0.0]), pose)


def _layout(rng: np.random.Generator, size: int, kind: dict[str, str]) -> tuple[Canvas, list[Solid]] | None:
    """Camera and solids; None if too little of the first one would be seen."""
    outside, behind = rng.random() < _P_OUTSIDE, rng.random() < _P_BEHIND
    solid = _solid(kind, _RADIUS, np.zeros(3), _draw_pose(rng))
    camera = _draw_camera(rng, size, solid, _OUTSIDE if outside else _OFF_CENTRE)
    canvas = Canvas(camera)
    if not canvas.place(solid, whole=False) or (_inside(solid, camera) < _INSIDE if outside else _touches_border(canvas)):
        return None
    if canvas.seen[0] < _LEAST * canvas.owner.size:
        return None
    if behind:
        before, front = canvas.seen[0], _draw_front(rng, camera)
        canvas.place(front, whole=False)
        if canvas.seen[0] < _VISIBLE * before or len(canvas.solids) < 2:
            return None
    return canvas, canvas.solids


def trace(classes: str, seed: int, index: int, size: int) -> Traced:
    """Lay out one image.

    Args:
        classes: key of `CLASSES`.
        seed: 0 .. 2**64 - 1.
        index: Number of the image, from 0.
        size: Side in pixels.

    Returns:
        its visible surfaces and light; its objects in CLEVR's format, the one of the class first; its class.

    Raises:
        RuntimeError: No layout was good enough in many attempts (never observed).
    """
    rng, label = generator(seed, _STREAM_OBJECT, index), class_of(classes, seed, index)
    for _ in range(_TRIES):
        kind = _draw_kind(rng, classes, label)
        layout = _layout(rng, size, kind)
        if layout is None:
            continue
        canvas, solids = layout
        light = replace(draw_light(rng, canvas.camera), ground=_draw_ground(rng))
        records = [_record(solid, canvas.camera) for solid in solids]
        return Traced(canvas, light, rng.random((2, *canvas.depth.shape), np.float32), records, label)
    raise RuntimeError(f"image {index} of seed {seed}: no layout fits at {size} pixels; use another seed")


def draw(classes: str, seed: int, index: int, size: int) -> tuple[Array, list[dict[str, Any]], str]:
    """Render one image; arguments and errors as in `trace`.

    Returns:
        The image, uint8 [size, size, 3]; its objects in CLEVR's format, the one of the class first; its class.
    """
    traced = trace(classes, seed, index, size)
    return traced.picture(), traced.objects, traced.label


def _record(solid: Solid, camera: Camera) -> dict[str, Any]:
    colour = next(name for name, value in PALETTE.items() if value is solid.albedo)
    size = "large" if solid.radius == _RADIUS else "small"
    material = "metal" if solid.metal else "rubber"
    kind = {"shape": solid.shape, "color": colour, "size": size, "material": material}
    return kind | measures(solid, camera) | {"tilt": round(math.degrees(solid.tilt), 3)}
