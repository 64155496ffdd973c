"""Random buildings: two rows of rooms that doors connect, outdoors around them, and a closed walk through all of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from .draws import Draws, Vector, normalized
from .layouts import Builder, random_sky
from .route import Points, Route
from .shapes import IDENTITY, Box, Cylinder, Ground, House, Opening, Room, Shape, Sphere
from .world import Building, Zone

CLEARANCE = 0.5
"""Metres that a walk keeps from everything: no depth below 0.3 m in any corner of a picture."""
_THRESHOLD = 0.75
"""Metres before and behind a door in which a walk goes straight through it."""
_METRES_PER_FRAME = 0.09

Rectangle = tuple[float, float, float, float]
"""Low x, high x, low z, high z."""


class _Gap(NamedTuple):
    """A door or window between two zones, in a wall along z (``axis`` 0, at that x) or along x (2, at that z).

    ``along`` is the middle and ``half`` half the width, ``low`` and ``high`` are metres above the floor.
    """

    zones: tuple[int, int]
    axis: int
    at: float
    along: float
    half: float
    low: float
    high: float

    @property
    def middle(self) -> tuple[float, float]:
        """x and z."""
        return (self.at, self.along) if self.axis == 0 else (self.along, self.at)

    def opening(self, box: Rectangle, height: float) -> Opening:
        """Return it as an opening of a box on that rectangle that is ``height`` high."""
        x0, x1, z0, z1 = box
        middle = (z0 + z1) / 2 if self.axis == 0 else (x0 + x1) / 2
        wall = self.axis + int(self.at > (x0 + x1) / 2) if self.axis == 0 else 4 + int(self.at > (z0 + z1) / 2)
        below = height / 2 - self.low if self.low > 0 else height  # a door is open down to the floor
        return wall, self.along - self.half - middle, self.along + self.half - middle, height / 2 - self.high, below


class _Plan:
    """Where the walls, doors and windows are. Room (row, column) has the number row * columns + column."""

    def __init__(self, draws: Draws, columns: int, sizes: tuple[float, float]) -> None:
        self.columns = columns
        self.x = [0.0]
        for _ in range(columns):
            self.x.append(self.x[-1] + draws.uniform(*sizes))
        depth = draws.uniform(*sizes)
        self.z = [0.0, depth, depth + draws.uniform(*sizes)]
        self.outdoors = 2 * columns
        self.side = {row: self._door(draws, 0, self.x[0], row, 0, self.outdoors) for row in (0, 1)}
        self.across = [
            [self._door(draws, 0, self.x[c + 1], row, c, self.number(row, c + 1)) for c in range(columns - 1)]
            for row in (0, 1)
        ]
        self.between = [self._door(draws, 2, self.z[1], 0, c, self.number(1, c)) for c in range(columns)]
        windows = [gap for c in range(columns) for row in (0, 1) for gap in self._windows(draws, row, c)]
        self.gaps = [*self.side.values(), *self.across[0], *self.across[1], *self.between, *windows]

    def number(self, row: int, column: int) -> int:
        """Return the number of a room."""
        return row * self.columns + column

    def floor(self, row: int, column: int) -> Rectangle:
        """Return the rectangle of a room."""
        return self.x[column], self.x[column + 1], self.z[row], self.z[row + 1]

    @property
    def floors(self) -> tuple[Rectangle, ...]:
        """The rectangles of all rooms, by number."""
        return tuple(self.floor(row, c) for row in (0, 1) for c in range(self.columns))

    @property
    def ground(self) -> Rectangle:
        """The rectangle of the whole building."""
        return self.x[0], self.x[-1], self.z[0], self.z[-1]

    def _door(self, draws: Draws, axis: int, at: float, row: int, column: int, other: int) -> _Gap:
        floor = self.floor(row, column)
        low, high = floor[2:] if axis == 0 else floor[:2]
        along = draws.uniform(low + 0.9, high - 0.9)
        zones = (self.number(row, column), other)
        return _Gap(zones, axis, at, along, draws.uniform(0.5, 0.65), 0.0, draws.uniform(2.05, 2.2))

    def _windows(self, draws: Draws, row: int, column: int) -> Iterator[_Gap]:
        """Windows in the outer walls that have no door: at the far side, and at the end of a row."""
        x0, x1, z0, z1 = self.floor(row, column)
        walls = [(2, z0 if row == 0 else z1, x0, x1)]
        if column == self.columns - 1:
            walls.append((0, x1, z0, z1))
        for axis, at, low, high in walls:
            if draws.chance(0.6):
                half = draws.uniform(0.35, 0.8)
                along = draws.uniform(low + half + 0.2, high - half - 0.2)
                sill = draws.uniform(0.8, 1.1)
                zones = (self.number(row, column), self.outdoors)
                yield _Gap(zones, axis, at, along, half, sill, sill + draws.uniform(0.6, 1.0))

    def controls(self, draws: Draws, laps: list[tuple[int, bool]]) -> list[Vector]:
        """Return the control points of a walk: laps as far as a column and back, closed outdoors or by the first door.

        A lap goes along row 0 from room (0, 0), back along row 1, and through the end of the building into (0, 0).
        """
        eye = draws.uniform(1.3, 1.5)
        points: list[tuple[float, float]] = []
        for end, outside in laps:
            for row, columns in ((0, range(end + 1)), (1, range(end, -1, -1))):
                for c in columns:
                    x0, x1, z0, z1 = self.floor(row, c)
                    away = draws.uniform(-0.2, 0.2) * (x1 - x0), draws.uniform(-0.2, 0.2) * (z1 - z0)
                    points.append(((x0 + x1) / 2 + away[0], (z0 + z1) / 2 + away[1]))
                    if row == 0:
                        points += _straight(self.across[0][c] if c < end else self.between[c], 1)
                    elif c > 0:
                        points += _straight(self.across[1][c - 1], -1)
            if outside:
                points += _straight(self.side[1], -1)
                off = self.x[0] - draws.uniform(1.5, 2.6)
                points += [(off, self.side[1].along - 0.6), (off, self.side[0].along + 0.6)]
                points += _straight(self.side[0], 1)
            else:
                points += _straight(self.between[0], -1)
        return [(x, -eye + draws.uniform(-0.08, 0.08), z) for x, z in points]


def _straight(door: _Gap, sign: int) -> list[tuple[float, float]]:
    """Return control points before, in and behind a door that is passed along (+1) or against (-1) its axis."""
    x, z = door.middle
    steps = (-sign * _THRESHOLD, 0.0, sign * _THRESHOLD)
    return [(x + step, z) if door.axis == 0 else (x, z + step) for step in steps]


def random_building(draws: Draws, frames: int) -> tuple[Building, Route]:
    """Return a building and a closed walk through it that is about as long as ``frames`` frames of a phone's video."""
    laps = _laps(draws, frames)
    sizes = (2.6, 3.1) if frames < 120 else (3.0, 4.8)
    plan = _Plan(draws, 1 + max(end for end, _ in laps), sizes)
    route = Route.through(plan.controls(draws, laps), draws)
    walk = route.points[::3][:, [0, 2]]
    heights = [draws.uniform(2.35, 3.0) for _ in plan.floors]
    boxes = [*zip(plan.floors, heights, strict=True), (plan.ground, max(heights) + 0.1)]
    gaps = [[gap for gap in plan.gaps if number in gap.zones] for number in range(len(boxes))]
    openings = [tuple(gap.opening(*box) for gap in own) for own, box in zip(gaps, boxes, strict=True)]
    zones = [_room(draws, *box, own, walk) for box, own in zip(boxes[:-1], openings[:-1], strict=True)]
    zones.append(_outdoors(draws, *boxes[-1], openings[-1], walk))
    leads = tuple(tuple(sum(gap.zones) - number for gap in own) for number, own in enumerate(gaps))
    return Building(tuple(zones), leads, plan.floors), route


def _laps(draws: Draws, frames: int) -> list[tuple[int, bool]]:
    """Return how far each lap goes and whether it closes outdoors; the first one does, and is the longest."""
    left = _METRES_PER_FRAME * frames
    longest = min(3, max(int(frames >= 180), math.floor((left - 12) / 8)))
    laps = [(longest, True)]
    left -= 12 + 8 * longest
    while left > 10:
        end = draws.integer(0, min(longest, max(0, math.floor((left - 12) / 8))))
        laps.append((end, end == 0 or draws.chance(0.5)))
        left -= 12 + 8 * end
    return laps


class _Furnisher(Builder):
    """A builder that knows where its shapes may stand: inside or outside a rectangle, and clear of a walk."""

    def __init__(self, draws: Draws, walk: Points, inside: Rectangle | None, outside: Rectangle | None) -> None:
        super().__init__(draws)
        self._walk, self._inside, self._outside = walk, inside, outside

    def keep_newest(self) -> bool:
        """Return whether the newest shape may stand where it is; if not it is taken away again."""
        x0, x1, z0, z1 = _footprint(self.shapes[-1])
        fits = True
        if self._inside is not None:
            a, b, c, d = self._inside
            rounding = 1e-9  # what stands at a wall ends there
            fits = min(x0 - a, b - x1, z0 - c, d - z1) > -rounding
        if self._outside is not None:
            a, b, c, d = self._outside
            fits = x1 <= a or x0 >= b or z1 <= c or z0 >= d
        x, z = self._walk[:, 0], self._walk[:, 1]
        dx = np.maximum(np.maximum(x0 - x, x - x1), 0.0)
        dz = np.maximum(np.maximum(z0 - z, z - z1), 0.0)
        if fits and not (dx * dx + dz * dz < CLEARANCE * CLEARANCE).any():
            return True
        self.shapes.pop()
        self.materials.pop()
        return False

    def keep(self, count: int, add: Callable[[], None]) -> None:
        """Add ``count`` shapes, trying others for those that do not fit, up to four for each."""
        for _ in range(4 * count):
            if count > 0:
                add()
                count -= self.keep_newest()

    def along_wall(self, half: Vector, base: float) -> None:
        """Add a box before a random wall of the room: half its width, height and depth, metres above the floor."""
        if self._inside is None:
            raise ValueError("there are no walls outdoors")
        x0, x1, z0, z1 = self._inside
        width, height, depth = half
        far = self.draws.chance(0.5)
        if self.draws.chance(0.5):
            x, z = (x1 - depth if far else x0 + depth), self.draws.uniform(z0 + width, z1 - width)
            self.box(x, z, (depth, height, width), base, IDENTITY)
        else:
            x, z = self.draws.uniform(x0 + width, x1 - width), (z1 - depth if far else z0 + depth)
            self.box(x, z, (width, height, depth), base, IDENTITY)

    def walls(
        self, kind: type[Room] | type[House], floor: Rectangle, height: float, openings: tuple[Opening, ...]
    ) -> Vector:
        """Add the inside or outside of the walls on a rectangle; returns the middle of the box."""
        x0, x1, z0, z1 = floor
        centre = (x0 + x1) / 2, -height / 2, (z0 + z1) / 2
        faces = [self.material(self.draws.uniform(1.0, 4.0)) for _ in range(6)]
        self.shapes.append(kind(centre, IDENTITY, faces[0], ((x1 - x0) / 2, height / 2, (z1 - z0) / 2), openings))
        return centre


def _footprint(shape: Shape) -> Rectangle:
    """Return the rectangle of the floor above which a shape lies."""
    if isinstance(shape, Box):
        half, rows = shape.half, (shape.rotation[0], shape.rotation[2])
        reach = [abs(a) * half[0] + abs(b) * half[1] + abs(c) * half[2] for a, b, c in rows]
    elif isinstance(shape, Sphere | Cylinder):
        reach = [shape.size, shape.size]
    else:
        raise TypeError(f"{type(shape).__name__} has no footprint")
    x, _, z = shape.centre
    return x - reach[0], x + reach[0], z - reach[1], z + reach[1]


def _room(draws: Draws, floor: Rectangle, height: float, openings: tuple[Opening, ...], walk: Points) -> Zone:
    x0, x1, z0, z1 = floor
    near = walk[(walk[:, 0] > x0 - 1) & (walk[:, 0] < x1 + 1) & (walk[:, 1] > z0 - 1) & (walk[:, 1] < z1 + 1)]
    builder = _Furnisher(draws, near, inside=floor, outside=None)

    def thing() -> None:
        builder.thing(draws.uniform(x0, x1), draws.uniform(z0, z1), draws.skewed(0.3, 1.3))

    def furniture() -> None:
        half = draws.uniform(0.25, 0.8), draws.uniform(0.3, 1.0), draws.uniform(0.15, 0.35)
        builder.along_wall(half, 0.0)

    def picture() -> None:
        half = draws.uniform(0.15, 0.6), draws.uniform(0.15, 0.4), draws.uniform(0.02, 0.08)
        builder.along_wall(half, draws.uniform(0.8, 1.3))

    builder.keep(draws.integer(4, 7), thing)
    builder.keep(draws.integer(2, 4), furniture)
    builder.keep(draws.integer(2, 5), picture)
    x, _, z = builder.walls(Room, floor, height, openings)
    lamp = (
        x + draws.uniform(-0.25, 0.25) * (x1 - x0),
        -height + 0.2,
        z + draws.uniform(-0.25, 0.25) * (z1 - z0),
    )
    ambient = draws.uniform(0.35, 0.55)
    return Zone("room", builder.shapes, builder.materials, lamp, False, ambient, random_sky(draws), enclosed=True)


def _outdoors(draws: Draws, ground: Rectangle, height: float, openings: tuple[Opening, ...], walk: Points) -> Zone:
    x0, x1, z0, z1 = ground
    builder = _Furnisher(draws, walk[walk[:, 0] < x0 + 1], inside=None, outside=ground)

    def place() -> tuple[float, float]:
        # Mostly before the side with the doors, where the walks are.
        return draws.uniform(x0 - 9, x0 if draws.chance(0.7) else x1 + 6), draws.uniform(z0 - 6, z1 + 6)

    def thing() -> None:
        builder.thing(*place(), draws.skewed(0.4, 2.2))

    def building() -> None:
        c, s = draws.heading()
        away = draws.uniform(8.0, 13.0)
        half = (draws.uniform(1.0, 4.0), draws.uniform(1.0, 2.5), draws.uniform(0.3, 3.0))
        builder.box(x0 - 1 + c * away, (z0 + z1) / 2 + s * away, half)

    builder.keep(draws.integer(8, 13), thing)
    builder.keep(draws.integer(2, 4), building)
    for _ in range(draws.integer(0, 3)):  # trees
        x, z = place()
        trunk, crown = draws.uniform(0.6, 1.3), draws.uniform(0.5, 1.3)
        builder.shapes.append(Sphere((x, -2 * trunk - 0.6 * crown, z), IDENTITY, builder.material(crown), crown))
        if builder.keep_newest():
            builder.shapes.append(Cylinder((x, -trunk, z), IDENTITY, builder.material(0.5), 0.12 * crown, trunk))
    builder.walls(House, ground, height, openings)
    builder.shapes.append(Ground((0.0, 0.0, 0.0), IDENTITY, builder.material(draws.uniform(2.0, 6.0))))
    c, s = draws.heading()
    sun = normalized((c, -draws.uniform(0.6, 2.0), s))
    return Zone("outdoor", builder.shapes, builder.materials, sun, True, draws.uniform(0.35, 0.5), random_sky(draws))
