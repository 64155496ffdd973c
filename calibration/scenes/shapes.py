"""Surfaces that rays meet: boxes, spheres, cylinders, the inside of a room, and height fields.

Rays are given per component, each a number or an array that broadcasts with the others, in world axes (x right, y down,
z forward; metres). Distances are in units of the ray's direction, infinite where nothing is hit. Float32 arrays stay
float32, and only operations that IEEE 754 rounds exactly are used.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .draws import Matrix, Vector

Array = NDArray[np.float32]
Components = tuple[Any, Any, Any]
"""x, y, z, each a float32 number or array."""
Opening = tuple[int, float, float, float, float]
"""Wall of a box, low u, high u, low v, high v: a rectangle of it that is not there."""

IDENTITY: Matrix = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
NEAREST = np.float32(1e-3)
"""Hits nearer than this are the surface that a ray starts on."""
_INF = np.float32(np.inf)


class Surface(NamedTuple):
    """What a hit point looks like: outward normal in world axes, and where it lies on the material.

    ``u``, ``v`` are metres along the surface; ``face`` numbers the materials of a shape that has several.
    """

    normal: Components
    u: Array
    v: Array
    face: NDArray[np.int32]


def to_local(matrix: Matrix, vector: Components) -> Components:
    """Transpose of the rotation times the vector."""
    x, y, z = vector
    return tuple(
        np.float32(matrix[0][k]) * x + np.float32(matrix[1][k]) * y + np.float32(matrix[2][k]) * z for k in range(3)
    )


def to_world(matrix: Matrix, vector: Components) -> Components:
    """Return the rotation times the vector."""
    x, y, z = vector
    return tuple(np.float32(row[0]) * x + np.float32(row[1]) * y + np.float32(row[2]) * z for row in matrix)


@dataclass(frozen=True)
class Shape(ABC):
    """A solid with a centre, a rotation (local to world) and a first material."""

    centre: Vector
    rotation: Matrix
    material: int

    def local_ray(self, origin: Components, direction: Components) -> tuple[Components, Components]:
        """Return the ray in the shape's own axes, seen from its centre."""
        offset = tuple(o - np.float32(c) for o, c in zip(origin, self.centre, strict=True))
        if self.rotation is IDENTITY:
            return offset, direction
        return to_local(self.rotation, offset), to_local(self.rotation, direction)

    @abstractmethod
    def distance(self, origin: Components, direction: Components) -> Array:
        """Return the distance to the first hit beyond ``NEAREST``; infinite where there is none."""

    @property
    @abstractmethod
    def reach(self) -> float:
        """Radius of a ball around the centre that the shape lies in; infinite where there is none."""

    def surface(self, point: Components) -> Surface:
        """Return the normal and material coordinates at points (N,) of the surface, in world axes."""
        local, _ = self.local_ray(point, (0, 0, 0))
        normal, u, v, face = self._local_surface(local)
        world = normal if self.rotation is IDENTITY else to_world(self.rotation, normal)
        return Surface(world, u, v, face)

    @abstractmethod
    def _local_surface(self, point: Components) -> Surface:
        """Compute :meth:`surface` in the shape's own axes."""


def _slabs(half: Vector, origin: Components, direction: Components) -> tuple[Any, Any]:
    """Return where a ray enters and leaves an axis-aligned box around the origin."""
    enter = leave = None
    for size, o, d in zip(half, origin, direction, strict=True):
        inverse = np.float32(1) / d
        middle, reach = -o * inverse, np.abs(np.float32(size) * inverse)
        near, far = middle - reach, middle + reach
        enter = near if enter is None else np.maximum(enter, near)
        leave = far if leave is None else np.minimum(leave, far)
    return enter, leave


def _by_axis(axis: NDArray[np.integer], point: Components) -> tuple[Any, Any]:
    """Return the two coordinates other than ``axis``: (z, y), (x, z) or (x, y)."""
    x, y, z = point
    return np.where(axis == 0, z, x), np.where(axis == 1, z, y)


@dataclass(frozen=True)
class Box(Shape):
    """A box with half sizes ``half``; a thin one is a plane."""

    half: Vector

    @property
    def reach(self) -> float:
        return math.hypot(*self.half)

    def distance(self, origin: Components, direction: Components) -> Array:
        enter, leave = _slabs(self.half, *self.local_ray(origin, direction))
        return np.where((enter <= leave) & (enter > NEAREST), enter, _INF)

    def _local_surface(self, point: Components) -> Surface:
        axis = _outermost(point, self.half)
        normal = tuple(np.where(axis == k, np.copysign(np.float32(1), point[k]), np.float32(0)) for k in range(3))
        u, v = _by_axis(axis, point)
        return Surface(normal, u, v, np.zeros(axis.shape, np.int32))  # type: ignore[arg-type]


def _outermost(point: Components, half: Vector) -> NDArray[np.integer]:
    """Return the axis whose face a point lies on."""
    x, y, z = (np.abs(p) - np.float32(size) for p, size in zip(point, half, strict=True))
    return np.where((x >= y) & (x >= z), 0, np.where(y >= z, 1, 2))


def _face_of(axis: NDArray[np.integer], point: Components) -> NDArray[np.int32]:
    """Return the number of a box's face: at -x, +x, above, below, at -z, +z."""
    far = (point[0] > 0, point[1] > 0, point[2] > 0)
    return np.where(axis == 0, 0 + far[0], np.where(axis == 1, 2 + far[1], 4 + far[2])).astype(np.int32)


def find_openings(openings: tuple[Opening, ...], surface: Surface) -> NDArray[np.int16]:
    """Return the number of the opening that each point of a surface lies in, -1 where it is closed."""
    result = np.full(surface.u.shape, -1, np.int16)
    for number, (wall, u0, u1, v0, v1) in enumerate(openings):
        u, v = surface.u, surface.v
        inside = (u > np.float32(u0)) & (u < np.float32(u1)) & (v > np.float32(v0)) & (v < np.float32(v1))
        result[(surface.face == wall) & inside] = number
    return result


@dataclass(frozen=True)
class House(Box):
    """The outside of a box with openings. Six materials, in the order of a room's."""

    windows: tuple[Opening, ...] = ()

    def _local_surface(self, point: Components) -> Surface:
        surface = super()._local_surface(point)
        return surface._replace(face=_face_of(_outermost(point, self.half), point))


@dataclass(frozen=True)
class Room(Shape):
    """The inside of a box. Materials: walls at -x, +x, ceiling, floor, walls at -z, +z.

    ``windows`` are openings through which the sky is seen, or in a building what is behind them.
    """

    half: Vector
    windows: tuple[Opening, ...] = ()

    @property
    def reach(self) -> float:
        return math.hypot(*self.half)

    def distance(self, origin: Components, direction: Components) -> Array:
        _, leave = _slabs(self.half, *self.local_ray(origin, direction))
        return np.where(leave > NEAREST, leave, _INF)

    def _local_surface(self, point: Components) -> Surface:
        axis = _outermost(point, self.half)
        far = (point[0] > 0, point[1] > 0, point[2] > 0)
        normal = tuple(
            np.where(axis == k, np.where(far[k], np.float32(-1), np.float32(1)), np.float32(0)) for k in range(3)
        )
        u, v = _by_axis(axis, point)
        return Surface(normal, u, v, _face_of(axis, point))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Sphere(Shape):
    """A sphere."""

    size: float

    @property
    def reach(self) -> float:
        return self.size

    def distance(self, origin: Components, direction: Components) -> Array:
        o, d = self.local_ray(origin, direction)
        a = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
        b = o[0] * d[0] + o[1] * d[1] + o[2] * d[2]
        # From the point nearest to the centre, as b * b - a * c loses its digits when the sphere is small and far.
        t = -b / a
        x, y, z = o[0] + t * d[0], o[1] + t * d[1], o[2] + t * d[2]
        room = np.float32(self.size * self.size) - (x * x + y * y + z * z)
        near = t - np.sqrt(np.maximum(room, 0) / a)
        return np.where((room > 0) & (near > NEAREST), near, _INF)

    def _local_surface(self, point: Components) -> Surface:
        normal = tuple(p * np.float32(1 / self.size) for p in point)
        return _rounded(normal, point)


def _rounded(normal: Components, point: Components) -> Surface:
    """Return material coordinates of a curved surface: the projection along the axis that its normal is nearest to."""
    x, y, z = (np.abs(n) for n in normal)
    axis = np.where((x >= y) & (x >= z), 0, np.where(y >= z, 1, 2))
    u, v = _by_axis(axis, point)
    return Surface(normal, u, v, np.zeros(axis.shape, np.int32))


@dataclass(frozen=True)
class Cylinder(Shape):
    """A cylinder with caps, its axis along the local y."""

    size: float
    half_height: float

    @property
    def reach(self) -> float:
        return math.hypot(self.size, self.half_height)

    def distance(self, origin: Components, direction: Components) -> Array:
        o, d = self.local_ray(origin, direction)
        size, height = np.float32(self.size), np.float32(self.half_height)
        a = np.maximum(d[0] * d[0] + d[2] * d[2], np.float32(1e-12))
        t = -(o[0] * d[0] + o[2] * d[2]) / a
        x, z = o[0] + t * d[0], o[2] + t * d[2]
        room = size * size - (x * x + z * z)
        half = np.sqrt(np.maximum(room, 0) / a)
        inverse = np.float32(1) / d[1]
        middle, reach = -o[1] * inverse, np.abs(height * inverse)
        enter, leave = np.maximum(t - half, middle - reach), np.minimum(t + half, middle + reach)
        return np.where((room > 0) & (enter <= leave) & (enter > NEAREST), enter, _INF)

    def _local_surface(self, point: Components) -> Surface:
        x, y, z = point
        out = np.sqrt(x * x + z * z)
        cap = np.abs(y) - np.float32(self.half_height) > out - np.float32(self.size)
        inverse = np.float32(1) / np.maximum(out, np.float32(1e-6))
        zero = np.float32(0)
        normal = (
            np.where(cap, zero, x * inverse),
            np.where(cap, np.copysign(np.float32(1), y), zero),
            np.where(cap, zero, z * inverse),
        )
        return _rounded(normal, point)


@dataclass(frozen=True)
class Ground(Shape):
    """A height field over the local x and z: the plane y = 0 less a sum of periodic bumps.

    Every wave is (amplitude, cells per metre along x, along z, phase); no waves make a plane. A wave is
    16 u^2 (1 - u)^2 of the fraction u of its argument: smooth, with exact arithmetic.
    """

    waves: tuple[tuple[float, float, float, float], ...] = ()

    @property
    def reach(self) -> float:
        return math.inf

    @property
    def top(self) -> float:
        """Highest elevation above the plane."""
        return sum(wave[0] for wave in self.waves)

    def elevation(self, x: Any, z: Any) -> Any:
        """Return the height above the plane, metres."""
        total = np.zeros(np.broadcast(x, z).shape, np.float32)
        for amplitude, kx, kz, phase in self.waves:
            s = np.float32(kx) * x + np.float32(kz) * z + np.float32(phase)
            u = s - np.floor(s)
            bump = u * (1 - u)
            total = total + np.float32(16 * amplitude) * bump * bump
        return total

    def distance(self, origin: Components, direction: Components) -> Array:
        o, d = self.local_ray(origin, direction)
        down = d[1] > np.float32(1e-6)
        inverse = np.float32(1) / np.where(down, d[1], np.float32(1))
        plane = np.where(down & (-o[1] * inverse > NEAREST), -o[1] * inverse, _INF)
        if not self.waves:
            return plane
        shape = np.broadcast(*o, *d).shape
        o, d = (tuple(np.broadcast_to(c, shape).reshape(-1) for c in part) for part in (o, d))  # type: ignore[assignment]
        result = np.full(o[1].shape, _INF)
        # Rays that go up can still meet a hill, but only below its top.
        low = np.maximum((np.float32(-self.top) - o[1]) / np.where(d[1] == 0, np.float32(1e-9), d[1]), 0)
        start = np.where(d[1] > 0, low, np.float32(0))
        end = np.where(d[1] > np.float32(1e-6), -o[1] / np.where(d[1] == 0, 1, d[1]), np.where(d[1] < 0, low, _INF))
        end = np.minimum(end * np.float32(1.0001) + np.float32(1e-3), np.float32(60))
        index = np.flatnonzero((end > start) & (end > NEAREST))
        if index.size:
            result[index] = self._march(
                tuple(c[index] for c in o), tuple(c[index] for c in d), start[index], end[index]
            )
        return result.reshape(shape)

    def _above(self, o: Components, d: Components, t: Array) -> Array:
        return -(o[1] + t * d[1]) - self.elevation(o[0] + t * d[0], o[2] + t * d[2])

    def _march(self, o: Any, d: Any, start: Array, end: Array, steps: int = 20, refine: int = 9) -> Array:
        """Find the first change of sign of the height above ground, bracketed by steps and narrowed by false
        position."""
        step = (end - start) * np.float32(1 / steps)
        low, high = start, np.full(start.shape, _INF)
        f_low, f_high = self._above(o, d, start), np.zeros_like(start)
        t = start
        for _ in range(steps):
            t = t + step
            f = self._above(o, d, t)
            first = (f <= 0) & np.isinf(high)
            high, f_high = np.where(first, t, high), np.where(first, f, f_high)
            before = np.isinf(high)
            low, f_low = np.where(before, t, low), np.where(before, f, f_low)
        found = np.isfinite(high) & (f_low > 0)
        high = np.where(found, high, low)
        middle = low
        for _ in range(refine):  # Illinois variant: the end that stays has its weight halved
            gap = f_low - f_high
            middle = np.where(gap > 0, (low * -f_high + high * f_low) / np.where(gap > 0, gap, 1), low)
            f = self._above(o, d, middle)
            above = f > 0
            f_high = np.where(above, f_high * np.float32(0.5), f)
            f_low = np.where(above, f, f_low * np.float32(0.5))
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        return np.where(found & (middle > NEAREST), middle, _INF)

    def _local_surface(self, point: Components) -> Surface:
        x, _, z = point
        slope_x, slope_z = np.zeros_like(x), np.zeros_like(z)
        for amplitude, kx, kz, phase in self.waves:
            s = np.float32(kx) * x + np.float32(kz) * z + np.float32(phase)
            u = s - np.floor(s)
            slope = np.float32(32 * amplitude) * u * (1 - u) * (1 - 2 * u)
            slope_x, slope_z = slope_x + slope * np.float32(kx), slope_z + slope * np.float32(kz)
        inverse = np.float32(1) / np.sqrt(slope_x * slope_x + slope_z * slope_z + 1)
        # y points down: uphill along x tilts the upward normal towards -x.
        normal = (-slope_x * inverse, -inverse, -slope_z * inverse)
        return Surface(normal, x, z, np.zeros(x.shape, np.int32))
