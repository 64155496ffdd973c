"""Random worlds: rooms, table tops and outdoor scenes, with sizes as people know them (metres)."""

from __future__ import annotations

from .draws import Draws, Matrix, Vector, cross, normalized
from .shapes import IDENTITY, Box, Cylinder, Ground, Room, Shape, Sphere
from .textures import texture_bank
from .world import CameraRange, Material, World, random_material

KINDS = ("room", "table", "outdoor")
"""Kinds of rendered scenes."""


class Builder:
    """Collects shapes and their materials. The floor is at y = 0 and y points down."""

    def __init__(self, draws: Draws) -> None:
        self.draws = draws
        self.shapes: list[Shape] = []
        self.materials: list[Material] = []
        self._textures = texture_bank().textures

    def material(self, size: float) -> int:
        """Add a new material and return its number."""
        self.materials.append(random_material(self.draws, size, self._textures))
        return len(self.materials) - 1

    def turned(self) -> Matrix:
        """Return a rotation about the vertical."""
        c, s = self.draws.heading()
        return (c, 0.0, s), (0.0, 1.0, 0.0), (-s, 0.0, c)

    def tilted(self, most: float) -> Matrix:
        """Return a rotation about the vertical, then leaning by up to ``most`` (tangent of the angle)."""
        c, s = self.draws.heading()
        lean = self.draws.uniform(0.15, most)
        up = normalized((lean * c, 1.0, lean * s))
        side = normalized(cross(up, (-s, 0.3, c)))
        front = cross(side, up)
        return (side[0], up[0], front[0]), (side[1], up[1], front[1]), (side[2], up[2], front[2])

    def box(self, x: float, z: float, half: Vector, base: float = 0.0, rotation: Matrix | None = None) -> None:
        """Add a box that stands at height ``base`` above the floor."""
        centre = (x, -base - half[1], z)
        material = self.material(2 * max(half))
        self.shapes.append(Box(centre, self.turned() if rotation is None else rotation, material, half))

    def thing(self, x: float, z: float, size: float, base: float = 0.0) -> None:
        """Add a random solid about ``size`` wide."""
        draws = self.draws
        pick = draws.unit()
        if pick < 0.45:
            half = (size * draws.uniform(0.25, 0.6), size * draws.uniform(0.2, 0.8), size * draws.uniform(0.25, 0.6))
            self.box(x, z, half, base)
        elif pick < 0.65:
            radius = size * draws.uniform(0.3, 0.55)
            self.shapes.append(Sphere((x, -base - radius, z), self.turned(), self.material(2 * radius), radius))
        elif pick < 0.85:
            radius, half_height = size * draws.uniform(0.15, 0.45), size * draws.uniform(0.3, 0.9)
            centre = (x, -base - half_height, z)
            self.shapes.append(Cylinder(centre, self.turned(), self.material(2 * radius), radius, half_height))
        else:  # a leaning board
            half = (size * draws.uniform(0.4, 0.7), size * 0.04, size * draws.uniform(0.4, 0.7))
            rotation = self.tilted(1.2)
            self.shapes.append(Box((x, -base - size * 0.35, z), rotation, self.material(2 * max(half)), half))

    def scatter(self, count: int, reach: tuple[float, float], sizes: tuple[float, float], base: float = 0.0) -> None:
        """Spread things over a rectangle around the middle, some standing on others' height."""
        for _ in range(count):
            x, z = self.draws.uniform(-reach[0], reach[0]), self.draws.uniform(-reach[1], reach[1])
            self.thing(x, z, self.draws.skewed(*sizes), base)

    def room(self, half: Vector, windows: int) -> None:
        """Add the six inner faces of a box that stands on the floor, with windows in its walls."""
        draws = self.draws
        openings = []
        for _ in range(windows):
            wall = draws.choice((0, 1, 4, 5))
            across = half[2] if wall < 2 else half[0]
            width, height = draws.uniform(0.35, 0.8), draws.uniform(0.35, 0.6)
            u, v = draws.uniform(-across + width, across - width), draws.uniform(-half[1] + height, half[1] - height)
            openings.append((wall, u - width, u + width, v - height, v + height))
        faces = [self.material(draws.uniform(1.0, 2 * half[0])) for _ in range(6)]
        self.shapes.append(Room((0.0, -half[1], 0.0), IDENTITY, faces[0], half, tuple(openings)))


def random_world(kind: str, draws: Draws) -> World:
    """Return a world of one of ``KINDS``."""
    return {"room": _room, "table": _table, "outdoor": _outdoor}[kind](draws)


def random_sky(draws: Draws) -> Material:
    """Return the colours and clouds of a sky."""
    blue: Vector = (draws.uniform(0.25, 0.5), draws.uniform(0.45, 0.65), draws.uniform(0.75, 1.0))
    cloud = draws.uniform(0.75, 1.0)
    return Material(0, 1.0, (draws.unit(), draws.unit()), 2, 0.5, 0.1, blue, (cloud, cloud, cloud))


def _room(draws: Draws) -> World:
    half = (draws.uniform(1.5, 4.0), draws.uniform(1.15, 1.7), draws.uniform(1.5, 4.0))
    builder = Builder(draws)
    builder.scatter(draws.integer(3, 7), (half[0] - 0.4, half[2] - 0.4), (0.3, 1.6))
    for _ in range(draws.integer(1, 4)):  # furniture along the walls
        depth, width, height = draws.uniform(0.15, 0.4), draws.uniform(0.3, 1.0), draws.uniform(0.3, 1.0)
        side = draws.choice((-1, 1))
        if draws.chance(0.5):
            x, z = side * (half[0] - depth), draws.uniform(-half[2] + width, half[2] - width)
            builder.box(x, z, (depth, height, width), rotation=IDENTITY)
        else:
            x, z = draws.uniform(-half[0] + width, half[0] - width), side * (half[2] - depth)
            builder.box(x, z, (width, height, depth), rotation=IDENTITY)
    for _ in range(draws.integer(1, 4)):  # pictures and shelves on the walls
        width, height = draws.uniform(0.15, 0.7), draws.uniform(0.15, 0.5)
        above, side = draws.uniform(0.8, 1.4), draws.choice((-1, 1))
        if draws.chance(0.5):
            builder.box(side * half[0], draws.uniform(-half[2], half[2]), (0.03, height, width), above, IDENTITY)
        else:
            builder.box(draws.uniform(-half[0], half[0]), side * half[2], (width, height, 0.03), above, IDENTITY)
    builder.room(half, windows=draws.integer(0, 2))
    lamp = (draws.uniform(-0.6, 0.6) * half[0], -2 * half[1] + 0.25, draws.uniform(-0.6, 0.6) * half[2])
    focus = (draws.uniform(-0.4, 0.4) * half[0], -draws.uniform(0.4, 1.2), draws.uniform(-0.4, 0.4) * half[2])
    cameras = CameraRange(
        (0.4, min(2.0, 2 * half[1] - 0.4)), (1.0, 6.0), (0.08, 0.45), (half[0] - 0.35, half[2] - 0.35)
    )
    return World(
        "room",
        builder.shapes,
        builder.materials,
        lamp,
        False,
        draws.uniform(0.3, 0.55),
        random_sky(draws),
        focus,
        cameras,
    )


def _table(draws: Draws) -> World:
    half = (draws.uniform(1.2, 2.5), draws.uniform(1.15, 1.5), draws.uniform(1.2, 2.5))
    builder = Builder(draws)
    height, reach = draws.uniform(0.45, 0.95), (draws.uniform(0.35, 0.8), draws.uniform(0.3, 0.6))
    builder.scatter(draws.integer(5, 9), (reach[0] * 0.85, reach[1] * 0.85), (0.07, 0.35), height)
    builder.box(0.0, 0.0, (reach[0], 0.03, reach[1]), height - 0.06, IDENTITY)
    builder.box(0.0, 0.0, (reach[0] * 0.2, height / 2 - 0.03, reach[1] * 0.3), 0.0, IDENTITY)
    builder.scatter(draws.integer(1, 3), (half[0] - 0.3, half[2] - 0.3), (0.3, 0.9))
    builder.room(half, windows=draws.integer(0, 1))
    lamp = (draws.uniform(-0.6, 0.6) * half[0], -2 * half[1] + 0.25, draws.uniform(-0.6, 0.6) * half[2])
    focus = (draws.uniform(-0.5, 0.5) * reach[0], -height - 0.05, draws.uniform(-0.5, 0.5) * reach[1])
    cameras = CameraRange((height + 0.15, height + 0.9), (0.5, 1.5), (0.08, 0.5), (half[0] - 0.3, half[2] - 0.3))
    return World(
        "table",
        builder.shapes,
        builder.materials,
        lamp,
        False,
        draws.uniform(0.3, 0.55),
        random_sky(draws),
        focus,
        cameras,
    )


def _outdoor(draws: Draws) -> World:
    builder = Builder(draws)
    reach = draws.uniform(3.0, 7.0)
    builder.scatter(draws.integer(5, 9), (reach, reach), (0.4, 3.0))
    for _ in range(draws.integer(1, 4)):  # houses and walls further out
        c, s = draws.heading()
        away = draws.uniform(1.1, 2.0) * reach
        half = (draws.uniform(1.0, 4.0), draws.uniform(1.0, 3.0), draws.uniform(0.3, 3.0))
        builder.box(c * away, s * away, half)
    for _ in range(draws.integer(0, 3)):  # trees
        x, z = draws.uniform(-reach, reach), draws.uniform(-reach, reach)
        trunk, crown = draws.uniform(0.6, 1.3), draws.uniform(0.5, 1.3)
        builder.shapes.append(Cylinder((x, -trunk, z), IDENTITY, builder.material(0.5), 0.12 * crown, trunk))
        builder.shapes.append(Sphere((x, -2 * trunk - 0.6 * crown, z), IDENTITY, builder.material(crown), crown))
    waves: tuple[tuple[float, float, float, float], ...] = ()
    if draws.chance(0.5):
        waves = tuple(
            (draws.uniform(0.1, 0.5), draws.uniform(-0.16, 0.16), draws.uniform(-0.16, 0.16), draws.unit())
            for _ in range(2)
        )
    builder.shapes.append(Ground((0.0, 0.0, 0.0), IDENTITY, builder.material(draws.uniform(2.0, 6.0)), waves))
    c, s = draws.heading()
    sun = normalized((c, -draws.uniform(0.6, 2.0), s))
    focus = (draws.uniform(-0.4, 0.4) * reach, -draws.uniform(0.2, 1.2), draws.uniform(-0.4, 0.4) * reach)
    lift = sum(wave[0] for wave in waves)
    cameras = CameraRange((0.5 + lift, 2.5 + lift), (2.5, 10.0), (0.06, 0.4))
    return World(
        "outdoor",
        builder.shapes,
        builder.materials,
        sun,
        True,
        draws.uniform(0.3, 0.5),
        random_sky(draws),
        focus,
        cameras,
    )
