"""A scene without cameras: its shapes, what they are made of, and its light."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .draws import Draws, Vector
from .shapes import Array, Components, Ground, Room, Shape

FARTHEST = 20.0
"""Depth in metres beyond which everything counts as background."""
NEAREST_DEPTH = 0.3
"""Cameras keep this distance in metres from everything that they see."""


class Material(NamedTuple):
    """Two colours mixed by a texture, and a finer texture that darkens; sizes are metres per repetition."""

    pattern: int
    size: float
    shift: tuple[float, float]
    detail: int
    detail_size: float
    detail_strength: float
    first: Vector
    second: Vector


@dataclass
class World:
    """Shapes and light of a scene.

    ``lamp`` is a position in a room and the direction towards the sun outdoors. The last shapes are the surroundings
    (walls or ground), which cast no shadow.
    """

    kind: str
    shapes: list[Shape]
    materials: list[Material]
    lamp: Vector
    sunlit: bool
    ambient: float
    sky: Material
    focus: Vector
    """Where cameras look, roughly."""
    cameras: CameraRange


@dataclass(frozen=True)
class CameraRange:
    """Where cameras may stand: metres above the floor, from the focus, and sideways baseline over that distance."""

    height: tuple[float, float]
    distance: tuple[float, float]
    baseline: tuple[float, float]
    bounds: tuple[float, float] = (math.inf, math.inf)
    """Largest |x| and |z| of a camera."""


class Hits(NamedTuple):
    """First surfaces that rays meet: distance in units of the direction, and the number of the shape, -1 for none."""

    distance: Array
    shape: NDArray[np.int16]


def cast(world: World, origin: Components, direction: Components) -> Hits:
    """Return the first hits of rays whose components broadcast to one shape; see :mod:`.shapes`."""
    size = np.broadcast(*origin, *direction).shape
    best = np.full(size, np.inf, np.float32)
    shape = np.full(size, -1, np.int16)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for number, solid in enumerate(world.shapes):
            distance = solid.distance(origin, direction)
            nearer = distance < best
            np.copyto(best, distance, where=nearer)
            np.copyto(shape, np.int16(number), where=nearer)
    return Hits(best, shape)


def is_shadowed(world: World, point: Components, light: Components, reach: float) -> NDArray[np.bool_]:
    """Return whether something solid stands between points and a light: a hit nearer than ``reach`` directions."""
    blocked = np.zeros(np.broadcast(*point).shape, bool)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for solid in world.shapes:
            if not isinstance(solid, Room | Ground):
                blocked |= solid.distance(point, light) < np.float32(reach)
    return blocked


def random_material(draws: Draws, size: float, textures: int, bright: float = 1.0) -> Material:
    """Return a material for a surface about ``size`` metres wide."""

    def colour() -> Vector:
        grey, red, green, blue = draws.uniform(0.08, 0.95), draws.unit(), draws.unit(), draws.unit()
        tint = draws.unit() ** 2
        return tuple(bright * (grey * (1 - tint) + tint * c) for c in (red, green, blue))  # type: ignore[return-value]

    first, second = colour(), colour()
    if abs(sum(first) - sum(second)) < 0.45:  # a pattern that nobody sees gives nothing to match
        second = tuple(c * 0.35 for c in first) if sum(first) > 0.9 else tuple(0.55 + 0.45 * c for c in first)  # type: ignore[assignment]
    return Material(
        pattern=draws.integer(0, textures - 1),
        size=size * draws.uniform(0.5, 1.6),
        shift=(draws.unit(), draws.unit()),
        detail=draws.integer(0, textures - 1),
        detail_size=size * draws.uniform(0.1, 0.4),
        detail_strength=draws.uniform(0.1, 0.6),
        first=first,
        second=second,
    )
