"""Rendering of a demo scene: z-buffer and shading.

The z-buffer finds the visible surfaces. `paint` then shades them with three lamps, of which the first casts a soft
shadow, contact shadows, highlights, and one mirror reflection for metal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ijepa_ds.scenes.shapes import SUPERSAMPLE, Array, Camera, Solid, dot, unit

MIN_VISIBLE = 0.002  # share of the image's area, for every object; CLEVR requires 200 of 320 x 240 pixels
_GROUND = -1
_MIRROR = 0.75  # share of reflection in a metal's light
_HIGHLIGHT_METAL, _HIGHLIGHT_RUBBER = 1.2, 0.12
_MIRROR_RANGE = 40.0  # largest distance of mirrored objects
_CONTACT = 4  # reach of a solid's contact shadow, in radii from its centre


class Canvas:
    """The z-buffer: the first solid that each ray hits, and its depth."""

    def __init__(self, camera: Camera) -> None:
        """Start with the empty ground, which every ray hits because the horizon is above the image."""
        self.camera = camera
        self.rays = camera.rays()
        self.depth = -camera.position[2] / self.rays[2]
        self.owner = np.full(self.depth.shape, _GROUND, np.int8)
        self.solids: list[Solid] = []
        self.seen: list[int] = []  # visible rays of each solid

    def place(self, solid: Solid, whole: bool = True) -> bool:
        """Add a solid and return True if it is inside the image and all objects stay visible; else return False.

        With `whole` False it may be partly outside.
        """
        x, y, _ = self.camera.project(solid.corners())
        left, top, right, bottom = x.min(), y.min(), x.max(), y.max()
        if whole and (min(left, top) < 0 or max(right, bottom) > self.camera.size):
            return False
        left, top = max(left, 0), max(top, 0)
        s = SUPERSAMPLE
        box = np.s_[int(top * s) : max(0, int(np.ceil(bottom * s))), int(left * s) : max(0, int(np.ceil(right * s)))]
        rays = self.rays[:, box[0], box[1]]
        t = solid.hit(self.camera.position[:, None], rays.reshape(3, -1)).reshape(rays.shape[1:])
        nearer = t < self.depth[box]
        hidden = np.bincount(self.owner[box][nearer] + 1, minlength=len(self.solids) + 1)[1:]
        seen = [before - int(lost) for before, lost in zip(self.seen, hidden, strict=True)]
        seen.append(int(nearer.sum()))
        if min(seen) < max(1, MIN_VISIBLE * self.camera.size**2) * s * s:
            return False
        self.seen = seen
        self.depth[box][nearer] = t[nearer]
        self.owner[box][nearer] = len(self.solids)
        self.solids.append(solid)
        return True


@dataclass(frozen=True)
class Light:
    """Lamps and ground of one scene.

    Attributes:
        lamps: float32 [3 lamps, 3], positions; only the first casts a shadow.
        power: float32 [3 lamps], brightness at a distance of 10.
        width: Side of the first lamp, a square; sets the softness of its shadow.
        ambient: Brightness of the ambient light.
        ground: float32 [3], linear RGB.
        waves: float32 [W, 4], texture of the ground: wave vector, phase and amplitude.
    """

    lamps: Array
    power: Array
    width: float
    ambient: float
    ground: Array
    waves: Array

    def ground_albedo(self, point: Array) -> Array:
        """Return the colour of the ground, [3, N], at points [3, N]."""
        tone = np.ones_like(point[0])
        for x, y, phase, amplitude in self.waves:
            tone += amplitude * np.sin(x * point[0] + y * point[1] + phase)
        return self.ground[:, None] * tone


def _shadow_and_contact(point: Array, normal: Array, owner: Array, solids: list[Solid], lamp: Array) -> Array:
    """Return the visible share of the first lamp and of the ambient light, [2, N].

    Args:
        point: [3, N].
        normal: [3, N], unit length.
        owner: [N], the solid of each point, which casts no shadow on itself.
        solids: All solids.
        lamp: [3, N], the point on the lamp to which each shadow ray goes.
    """
    arriving = np.ones((2, point.shape[1]), np.float32)
    to_lamp = unit(lamp - point)
    for number, solid in enumerate(solids):
        away = solid.centre[:, None] - point
        squared, along = dot(away, away), dot(away, to_lamp)
        other = owner != number
        index = np.flatnonzero((squared < (_CONTACT * solid.radius) ** 2) & other)
        # Ambient light blocked by a sphere of the solid's radius (its form factor).
        near = squared[index]
        facing = np.maximum(dot(away.take(index, 1), normal.take(index, 1)), 0) / np.sqrt(near)
        arriving[1, index] *= 1 - np.minimum(0.8 * solid.radius**2 / near, 1) * facing
        index = np.flatnonzero((squared - along * along < solid.reach**2) & (along > 0) & other)
        if index.size:
            arriving[0, index] *= np.isinf(solid.hit(point.take(index, 1), to_lamp.take(index, 1)))
    return arriving


def _shade(
    point: Array,
    view: Array,
    normal: Array,
    albedo: Array,
    gloss: Array,
    metal: Array,
    light: Light,
    arriving: Array,
) -> Array:
    """Return the light from points towards the camera, linear RGB [3, N].

    `view` [3, N] are unit vectors to the camera, `gloss` [N] is the strength of highlights, `metal` [N] is True for metal
    (narrow highlights, dim body), `arriving` comes from `_shadow_and_contact`.
    """
    diffuse = light.ambient * (0.75 + 0.25 * normal[2]) * arriving[1]
    shine = np.zeros_like(diffuse)
    shiny = np.flatnonzero(gloss)
    eye, facing, is_metal = view.take(shiny, 1), normal.take(shiny, 1), metal[shiny]
    for number, (lamp, power) in enumerate(zip(light.lamps, light.power, strict=True)):
        away = lamp[:, None] - point
        squared = dot(away, away)
        towards = away / np.sqrt(squared)
        strength = power * 100 / squared * (arriving[0] if number == 0 else arriving[1])
        diffuse += strength * np.maximum(dot(normal, towards), 0)
        halfway = unit(towards.take(shiny, 1) + eye)
        broad = np.maximum(dot(facing, halfway), 0)
        for _ in range(4):  # the 16th power by squaring: numpy's power is many times slower
            broad = broad * broad
        narrow = broad * broad
        narrow = narrow * narrow
        narrow = narrow * narrow
        shine[shiny] += strength[shiny] * np.where(is_metal, narrow, broad)
    return albedo * (diffuse * (1 - _MIRROR * metal.astype(np.float32))) + gloss * shine


def _reflect(point: Array, direction: Array, owner: Array, solids: list[Solid], light: Light) -> Array:
    """Return the reflections at points [3, N]: solids and ground without highlights, or a dim background; RGB [3, N]."""
    colour = np.repeat((0.30 - 0.25 * np.clip(direction[2], 0, 1))[None], 3, 0)
    depth = np.where(direction[2] < 0, -point[2] / np.minimum(direction[2], -1e-6), np.inf).astype(np.float32)
    seen = np.full(owner.shape, _GROUND, np.int8)
    for number, solid in enumerate(solids):
        away = solid.centre[:, None] - point
        along = dot(away, direction)
        near = (dot(away, away) - along * along < solid.reach**2) & (along > 0) & (owner != number)
        index = np.flatnonzero(near)
        t = solid.hit(point.take(index, 1), direction.take(index, 1))
        nearer = t < depth[index]
        depth[index[nearer]], seen[index[nearer]] = t[nearer], number
    found = np.flatnonzero(depth < _MIRROR_RANGE)
    direction, seen = direction.take(found, 1), seen[found]
    point = point.take(found, 1) + direction * depth[found]
    normal, albedo = _surface(point, seen, solids, light)
    lamp = np.repeat(light.lamps[0][:, None], found.size, 1)
    arriving = _shadow_and_contact(point, normal, seen, solids, lamp)
    matt = np.zeros(found.size, np.float32)
    colour[:, found] = _shade(point, -direction, normal, albedo, matt, matt > 0, light, arriving)
    return colour


def _surface(point: Array, owner: Array, solids: list[Solid], light: Light) -> tuple[Array, Array]:
    """Return normals and colours, [3, N] each, at points [3, N] on solids or on the ground."""
    normal = np.zeros_like(point)
    normal[2] = 1
    albedo = light.ground_albedo(point)
    for number, solid in enumerate(solids):
        index = np.flatnonzero(owner == number)
        if index.size:
            for row, value in zip(normal, solid.normal(point.take(index, 1)), strict=True):
                row[index] = value
            for row, value in zip(albedo, solid.albedo, strict=True):
                row[index] = value
    return normal, albedo


def paint(canvas: Canvas, light: Light, grain: Array) -> Array:
    """Shade the visible surfaces of a canvas.

    Args:
        canvas: The z-buffer, with all solids placed.
        light: Lamps and ground.
        grain: float32 [2, n, n] in [0, 1), n = size * SUPERSAMPLE: position of each shadow ray on its part of the lamp.

    Returns:
        uint8 [size, size, 3], sRGB.
    """
    n, s = canvas.camera.size * SUPERSAMPLE, SUPERSAMPLE
    rays, owner = canvas.rays.reshape(3, -1), canvas.owner.reshape(-1)
    point = canvas.camera.position[:, None] + rays * canvas.depth.reshape(-1)
    normal, albedo = _surface(point, owner, canvas.solids, light)
    metal = np.array([*(solid.metal for solid in canvas.solids), False])[owner]  # the last one is the ground, -1
    gloss = np.where(metal, _HIGHLIGHT_METAL, _HIGHLIGHT_RUBBER).astype(np.float32) * (owner != _GROUND)
    # The rays of a pixel sample different parts of the lamp, so their mean is a soft shadow.
    part = (np.arange(n) % s).astype(np.float32)
    lamp = np.repeat(light.lamps[0][:, None], n * n, 1)
    lamp[0] += light.width * ((part[None, :] + grain[0]) / s - 0.5).reshape(-1)
    lamp[1] += light.width * ((part[:, None] + grain[1]) / s - 0.5).reshape(-1)
    arriving = _shadow_and_contact(point, normal, owner, canvas.solids, lamp)
    view = -unit(rays)
    colour = _shade(point, view, normal, albedo, gloss, metal, light, arriving)
    index = np.flatnonzero(metal)
    if index.size:
        v, m = view.take(index, 1), normal.take(index, 1)
        mirrored = _reflect(point.take(index, 1), 2 * dot(v, m) * m - v, owner[index], canvas.solids, light)
        tint = (0.12 + 0.88 * albedo.take(index, 1)) * (_MIRROR / 0.6)
        for row, value in zip(colour, mirrored * tint, strict=True):
            row[index] += value
    # Clip before averaging, which keeps the edges of highlights smooth.
    clipped = np.minimum(colour, 1).reshape(3, n, n)
    mean = sum(clipped[:, i::s, j::s] for i in range(s) for j in range(s)) / s**2
    return np.rint(255 * mean ** (1 / 2.2)).astype(np.uint8).transpose(1, 2, 0)


@dataclass(frozen=True)
class Traced:
    """An image before it is shaded.

    Attributes:
        canvas: visible surfaces.
        light: lamps and ground.
        grain: as in `paint`.
        objects: in CLEVR's format, in the order of the canvas's solids.
        label: class of the image.
    """

    canvas: Canvas
    light: Light
    grain: Array
    objects: list[dict[str, Any]]
    label: str

    def picture(self) -> Array:
        """The image, uint8 [size, size, 3]."""
        return paint(self.canvas, self.light, self.grain)
