"""Geometry of the demo scenes: solids, ray intersections and the camera.

Vectors are float32 [3, N], so that numpy operations run over contiguous memory. There are no matrix products, because
BLAS may change the order of summation with the number of threads, which would change images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Array = np.ndarray
SUPERSAMPLE = 2  # rays along each side of a pixel
HALF_VIEW = 0.36  # tangent of half the field of view
_TUBE = 0.38  # radius of the torus's tube; its ring has radius 1 - _TUBE
_TORUS_STEPS = 11
_EDGE = 0.5**0.5  # half the cube's edge; its corners are on the unit circle

_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32).T


def dot(a: Array, b: Array) -> Array:
    """Return the dot products of vectors, [3, N] or [3] each."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def unit(a: Array) -> Array:
    """Normalise vectors to length 1."""
    return a / np.sqrt(dot(a, a))


def _slab(o: Array, d: Array, half: float) -> tuple[Array, Array]:
    """Return the interval of t in which |o + t d| < half, along one axis."""
    a, b = (-half - o) / d, (half - o) / d
    return np.minimum(a, b), np.maximum(a, b)


def _roots(a: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """Return the roots of a t^2 + 2 b t + c, or the empty interval (inf, -inf) if there are none."""
    disc = b * b - a * c
    root = np.sqrt(np.maximum(disc, 0))
    miss = disc < 0
    return np.where(miss, np.inf, (-b - root) / a), np.where(miss, -np.inf, (-b + root) / a)


def _entry(near: Array, far: Array) -> Array:
    """Return the first hit of a convex solid from its interval of t; inf if the ray misses or starts inside."""
    return np.where((near < far) & (near > 0), near, np.inf).astype(np.float32)


def _hit_sphere(o: Array, d: Array) -> Array:
    return _entry(*_roots(dot(d, d), dot(o, d), dot(o, o) - 1))


def _hit_cube(o: Array, d: Array) -> Array:
    near, far = _slab(o, d, _EDGE)
    return _entry(near.max(0), far.min(0))


def _hit_cylinder(o: Array, d: Array) -> Array:
    near, far = _roots(d[0] ** 2 + d[1] ** 2, o[0] * d[0] + o[1] * d[1], o[0] ** 2 + o[1] ** 2 - 1)
    low, high = _slab(o[2], d[2], 1.0)
    return _entry(np.maximum(near, low), np.minimum(far, high))


def _hit_cone(o: Array, d: Array) -> Array:
    """Return the first hit of a cone with base radius 1 at z = -1 and apex at z = 1."""
    h, s = (1 - o[2]) / 2, -d[2] / 2  # radius of the cone at the ray's height: h + s t
    a = d[0] ** 2 + d[1] ** 2 - s * s
    near, far = _roots(a, o[0] * d[0] + o[1] * d[1] - h * s, o[0] ** 2 + o[1] ** 2 - h * h)
    # A ray steeper than the cone's side (a < 0; `_roots` returns its larger root first) is inside the double cone
    # before the smaller root and after the larger one. The solid is the lower half of the double cone.
    steep = a < 0
    near, far = (
        np.where(steep, np.where(d[2] < 0, near, -np.inf), near),
        np.where(steep, np.where(d[2] < 0, np.inf, far), far),
    )
    low, high = _slab(o[2], d[2], 1.0)
    return _entry(np.maximum(near, low), np.minimum(far, high))


def _hit_torus(o: Array, d: Array) -> Array:
    """Return the first hit by sphere tracing, which is as fast as solving the quartic and more stable in float32."""
    near, far = _roots(dot(d, d), dot(o, d), dot(o, o) - 1)
    low, high = _slab(o[2], d[2], _TUBE)
    near, far = np.maximum(near, low), np.minimum(far, high)
    inside = (near < far) & (near > 0)
    t, per_unit = np.where(inside, near, 0), 1 / np.sqrt(dot(d, d))
    gap = t
    for _ in range(_TORUS_STEPS):
        x, y, z = o[0] + t * d[0], o[1] + t * d[1], o[2] + t * d[2]
        ring = np.sqrt(x * x + y * y) - (1 - _TUBE)
        gap = np.sqrt(ring * ring + z * z) - _TUBE
        t = t + gap * per_unit
    return np.where(inside & (gap < 0.02) & (t <= far + 0.02 * per_unit), t, np.inf).astype(np.float32)


def _normal_cube(p: Array) -> Array:
    return np.where(np.abs(p) == np.abs(p).max(0), np.sign(p), 0)


def _normal_cylinder(p: Array) -> Array:
    cap = np.abs(p[2]) > np.sqrt(p[0] ** 2 + p[1] ** 2)
    return np.stack([np.where(cap, 0, p[0]), np.where(cap, 0, p[1]), np.where(cap, np.sign(p[2]), 0)])


def _normal_cone(p: Array) -> Array:
    across = np.sqrt(p[0] ** 2 + p[1] ** 2)
    base = (p[2] < -0.999) & (across < (1 - p[2]) / 2 - 1e-3)  # only a tilted cone shows its base
    return np.stack([np.where(base, 0, p[0]), np.where(base, 0, p[1]), np.where(base, -1, across / 2)])


def _normal_torus(p: Array) -> Array:
    ring = 1 - (1 - _TUBE) / np.sqrt(p[0] ** 2 + p[1] ** 2)
    return np.stack([p[0] * ring, p[1] * ring, p[2]])


class Shape(NamedTuple):
    """A solid of radius 1 around the origin.

    Attributes:
        hit: Origins [3, N] or [3, 1] and directions [3, N] -> t [N] of the first hit, inf for a miss.
        normal: Points on the surface [3, N] -> outward normals [3, N], of any length.
        half_width: Half the side of the bounding square, seen from above.
        half_height: Half the height.
        support: Unit direction [3] -> how far the solid reaches from its centre in this direction.
        reach: Radius of the bounding sphere.
        is_round: Whether the solid is symmetric about the vertical axis.
    """

    hit: Callable[[Array, Array], Array]
    normal: Callable[[Array], Array]
    half_width: float
    half_height: float
    reach: float
    support: Callable[[Array], float]
    is_round: bool = True


def _across(d: Array) -> float:
    return math.hypot(float(d[0]), float(d[1]))


SHAPES = {
    "cube": Shape(_hit_cube, _normal_cube, _EDGE, _EDGE, 1.5**0.5, lambda d: _EDGE * float(np.abs(d).sum()), is_round=False),
    "sphere": Shape(_hit_sphere, lambda p: p, 1.0, 1.0, 1.0, lambda d: 1.0),
    "cylinder": Shape(_hit_cylinder, _normal_cylinder, 1.0, 1.0, 2**0.5, lambda d: abs(float(d[2])) + _across(d)),
    "cone": Shape(_hit_cone, _normal_cone, 1.0, 1.0, 2**0.5, lambda d: max(float(d[2]), _across(d) - float(d[2]))),
    "torus": Shape(_hit_torus, _normal_torus, 1.0, _TUBE, 1.0, lambda d: (1 - _TUBE) * _across(d) + _TUBE),
}


def _rotation(angle: float, tilt: float, lean: float) -> Array:
    """Float32 [3, 3]: turn by `angle` about the vertical, then tilt it towards `lean`."""
    a, b, c = angle - lean, tilt, lean
    about = np.array([[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1]])
    tilted = np.array([[math.cos(b), 0, math.sin(b)], [0, 1, 0], [-math.sin(b), 0, math.cos(b)]])
    leaning = np.array([[math.cos(c), -math.sin(c), 0], [math.sin(c), math.cos(c), 0], [0, 0, 1]])
    return _product(leaning, _product(tilted, about)).astype(np.float32)


def _product(a: Array, b: Array) -> Array:
    """Matrix product of [3, 3], summed in a fixed order."""
    return a[:, :1] * b[:1] + a[:, 1:2] * b[1:2] + a[:, 2:] * b[2:]


@dataclass(frozen=True)
class Solid:
    """One object standing on the ground, z = 0.

    Attributes:
        shape: A key of `SHAPES`.
        radius: World units; the solid's footprint is inside a circle of this radius.
        centre: float32 [3], world coordinates.
        angle: Rotation about its own axis, radians.
        tilt: Angle between its own axis and the vertical, radians.
        lean: Direction in which the axis leans, radians from the first axis of the world.
        albedo: float32 [3], linear RGB.
        metal: Coloured mirror if True, else matt rubber.
    """

    shape: str
    radius: float
    centre: Array
    angle: float
    albedo: Array
    metal: bool
    tilt: float = 0.0
    lean: float = 0.0

    def _turned(self, v: Array, inverse: bool = False) -> Array:
        """Vectors [3, N] of the solid's own axes in those of the world; with `inverse` the other way round."""
        if self.tilt:
            m = _rotation(self.angle, self.tilt, self.lean)
            m = m.T if inverse else m
            return np.stack([row[0] * v[0] + row[1] * v[1] + row[2] * v[2] for row in m])
        if SHAPES[self.shape].is_round:
            return v
        angle = -self.angle if inverse else self.angle
        c, s = float(np.cos(angle)), float(np.sin(angle))
        return np.stack([c * v[0] - s * v[1], s * v[0] + c * v[1], v[2]])

    def hit(self, origin: Array, direction: Array) -> Array:
        """Return the first hits of rays: origin [3, N] or [3, 1], direction [3, N] -> t [N], in direction lengths."""
        o = self._turned(origin - self.centre[:, None], inverse=True) / self.radius
        with np.errstate(divide="ignore", invalid="ignore"):
            return SHAPES[self.shape].hit(o, self._turned(direction, inverse=True) / self.radius)

    def normal(self, point: Array) -> Array:
        """Return the unit normals in world coordinates at points [3, N] on the surface."""
        local = self._turned(point - self.centre[:, None], inverse=True) / self.radius
        return self._turned(unit(SHAPES[self.shape].normal(local)))

    def corners(self) -> Array:
        """Return the eight corners of the bounding box, [3, 8]."""
        shape = SHAPES[self.shape]
        half = np.array([[shape.half_width], [shape.half_width], [shape.half_height]], np.float32)
        return self.centre[:, None] + self._turned(_CORNERS * half * self.radius)

    def reach_along(self, direction: Array) -> float:
        """Distance from the centre to the farthest point along a unit direction [3]."""
        return self.radius * SHAPES[self.shape].support(self._turned(direction.astype(np.float32), inverse=True))

    def depth_below(self) -> float:
        """Distance from the centre down to the lowest point: the height of the centre of a solid that touches the ground."""
        return self.reach_along(np.array([0.0, 0.0, -1.0]))

    @property
    def reach(self) -> float:
        """Radius of the bounding sphere."""
        return self.radius * SHAPES[self.shape].reach


class Camera:
    """A pinhole camera at `position` that points at `target`, with a square image of `size` pixels.

    Depth is the distance along the view axis. Pixel coordinates are continuous: the first pixel is [0, 1).
    """

    def __init__(self, position: Array, target: Array, size: int) -> None:
        """Place the camera; `position` and `target` are float [3]."""
        self.size = size
        self.position = position.astype(np.float32)
        self.forward = unit((target - position).astype(np.float32))
        self.right = unit(np.array([self.forward[1], -self.forward[0], 0], np.float32))
        self.up = np.cross(self.right, self.forward)

    def project(self, point: Array) -> tuple[Array, Array, Array]:
        """Return pixel column, pixel row and depth of world points [3, N] or [3]."""
        v = point - (self.position[:, None] if point.ndim == 2 else self.position)
        depth = dot(self.forward, v)
        scale = self.size / 2 / HALF_VIEW / depth
        return self.size / 2 + scale * dot(self.right, v), self.size / 2 - scale * dot(self.up, v), depth

    def rays(self) -> Array:
        """Return ray directions, float32 [3, n, n] with n = size * SUPERSAMPLE, scaled so that t is the depth."""
        n = self.size * SUPERSAMPLE
        across = (((np.arange(n) + 0.5) * 2 / n - 1) * HALF_VIEW).astype(np.float32)
        f, r, u = (v[:, None, None] for v in (self.forward, self.right, self.up))
        return f + r * across[None, None, :] - u * across[None, :, None]
