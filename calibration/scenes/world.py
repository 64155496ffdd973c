"""A scene without cameras: its shapes, what they are made of, and its light."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
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
class Zone:
    """Shapes and light: a whole scene, or one room of a building.

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
    enclosed: bool = field(default=False, kw_only=True)
    """Whether what is seen through its openings is another zone, and not the sky."""


@dataclass
class World(Zone):
    """A scene of one zone, and where cameras look at it from."""

    focus: Vector
    """Where cameras look, roughly."""
    cameras: CameraRange


@dataclass(frozen=True, eq=False)
class Building:
    """Zones that openings of their walls connect; the last one is the outdoors around the others.

    Attributes:
        zones: each with one shape that has openings, a room or outdoors the house.
        leads: for every zone, the number of the zone that each opening leads to.
        floors: low x, high x, low z, high z of the rooms.
    """

    zones: tuple[Zone, ...]
    leads: tuple[tuple[int, ...], ...]
    floors: tuple[tuple[float, float, float, float], ...]

    def zone_at(self, x: float, z: float) -> int:
        """Return the number of the zone that a place is in."""
        for number, (x0, x1, z0, z1) in enumerate(self.floors):
            if x0 <= x < x1 and z0 <= z < z1:
                return number
        return len(self.floors)

    def visible(
        self, zone: int, pose: Array, intrinsics: Array, columns: NDArray[np.intp], rows: NDArray[np.intp]
    ) -> list[int]:
        """Return the numbers of the zone's shapes that rays through some pixels can meet."""
        centres, reach = self._balls[zone]
        rotation = pose[:3, :3].astype(np.float64)
        offset = centres - pose[:3, 3]
        x, y, z = (
            offset[:, 0] * rotation[0, k] + offset[:, 1] * rotation[1, k] + offset[:, 2] * rotation[2, k]
            for k in range(3)
        )
        seen = z > -reach
        for along, pixels, focal, middle in (
            (x, columns, intrinsics[0, 0], intrinsics[0, 2]),
            (y, rows, intrinsics[1, 1], intrinsics[1, 2]),
        ):
            # A pixel more on each side, so that rounding leaves nothing out.
            low, high = ((float(side) - middle) / focal for side in (pixels.min() - 1, pixels.max() + 1))
            seen &= along - high * z <= reach * math.sqrt(1 + high * high)
            seen &= low * z - along <= reach * math.sqrt(1 + low * low)
        return np.flatnonzero(seen).tolist()

    @functools.cached_property
    def _balls(self) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Centres (N, 3) and radii (N,) of balls around the shapes of each zone."""
        return [
            (np.array([s.centre for s in zone.shapes]), np.array([_ball(s) for s in zone.shapes]))
            for zone in self.zones
        ]


def _ball(shape: Shape) -> float:
    # A camera inside a room sees it everywhere, wherever the room's middle is.
    return math.inf if isinstance(shape, Room) else shape.reach


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


def cast(
    zone: Zone,
    origin: Components,
    direction: Components,
    shapes: Sequence[int] | None = None,
    beyond: Array | None = None,
) -> Hits:
    """Return the first hits of rays whose components broadcast to one shape; see :mod:`.shapes`.

    Args:
        zone: what the rays meet.
        origin, direction: of the rays.
        shapes: numbers of the shapes that can be met; all of them by default.
        beyond: distances before which nothing counts, one per ray.
    """
    size = np.broadcast(*origin, *direction).shape
    best = np.full(size, np.inf, np.float32)
    shape = np.full(size, -1, np.int16)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for number in range(len(zone.shapes)) if shapes is None else shapes:
            distance = zone.shapes[number].distance(origin, direction)
            nearer = distance < best
            if beyond is not None:
                nearer &= distance > beyond
            np.copyto(best, distance, where=nearer)
            np.copyto(shape, np.int16(number), where=nearer)
    return Hits(best, shape)


def is_shadowed(zone: Zone, point: Components, light: Components, reach: float) -> NDArray[np.bool_]:
    """Return whether something solid stands between points and a light: a hit nearer than ``reach`` directions."""
    blocked = np.zeros(np.broadcast(*point).shape, bool)
    square = light[0] * light[0] + light[1] * light[1] + light[2] * light[2]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for solid in zone.shapes:
            if isinstance(solid, Room | Ground):
                continue
            # Most rays pass far from the ball around a shape, which costs less to see than where they meet the shape.
            x, y, z = (np.float32(c) - p for c, p in zip(solid.centre, point, strict=True))
            along = x * light[0] + y * light[1] + z * light[2]
            ball = np.float32(1.01 * solid.reach + 0.01)
            missed = (x * x + y * y + z * z - ball * ball) * square > along * along
            index = np.flatnonzero(~(missed | blocked))
            if index.size:
                rays = (tuple(c if np.ndim(c) == 0 else c[index] for c in part) for part in (point, light))
                blocked[index] = solid.distance(*rays) < np.float32(reach)
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
