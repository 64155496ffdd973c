"""The sample room of :mod:`.samples`: its surfaces, textures and light. Arrays are (3, N) or (N,) float32, metres."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Texture = Callable[[Array, Array], Array]  # (points (3, N), normals (3, N)) -> linear RGB (3, N)

ROOM_LOW = np.array([-2.7, -1.4, -1.6], dtype=np.float32)[:, None]
ROOM_HIGH = np.array([2.7, 1.25, 4.6], dtype=np.float32)[:, None]
LAMP = np.array([0.25, -0.92, 2.2], dtype=np.float32)[:, None]
_WINDOW = (0.9, 2.9, -0.85, 0.35)  # z and y range on the left wall


class Hit(NamedTuple):
    """First intersections: distance along the ray (N,), normal towards the viewer (3, N), surface number (N,)."""

    distance: Array
    normal: Array
    surface: NDArray[np.intp]


def _hash(*lattice: NDArray[np.floating]) -> Array:
    """A repeatable pseudo-random number in [0, 1) for integer lattice coordinates."""
    state = np.uint32(374761393) * np.ones(np.broadcast_shapes(*(x.shape for x in lattice)), dtype=np.uint32)
    for factor, x in zip((668265263, 2246822519, 3266489917), lattice, strict=False):
        state ^= x.astype(np.int64).astype(np.uint32) * np.uint32(factor)
        state = (state ^ (state >> np.uint32(15))) * np.uint32(2654435761)
    state ^= state >> np.uint32(13)
    return np.asarray((state >> np.uint32(8)) / np.float32(1 << 24), dtype=np.float32)


def _noise(x: Array, y: Array) -> Array:
    """Smooth value noise in [0, 1] with period-free unit cells."""
    i, j = np.floor(x), np.floor(y)
    a, b = x - i, y - j
    a, b = a * a * (3 - 2 * a), b * b * (3 - 2 * b)
    low = _hash(i, j) * (1 - a) + _hash(i + 1, j) * a
    high = _hash(i, j + 1) * (1 - a) + _hash(i + 1, j + 1) * a
    return np.asarray(low * (1 - b) + high * b, dtype=np.float32)


def _rgb(red: float, green: float, blue: float) -> Array:
    """sRGB 0..255 to a linear colour column (3, 1)."""
    return ((np.array([red, green, blue], dtype=np.float32) / 255.0) ** 2.2)[:, None].astype(np.float32)


def _where(mask: NDArray[np.bool_], first: Array, second: Array) -> Array:
    return np.where(mask[None], first, second)


def _plain(red: float, green: float, blue: float) -> Texture:
    colour = _rgb(red, green, blue)
    return lambda points, normals: np.broadcast_to(colour, points.shape)


def _wood(red: float, green: float, blue: float) -> Texture:
    colour = _rgb(red, green, blue)

    def texture(points: Array, normals: Array) -> Array:
        grain = _noise(points[0] * 3 + points[1] * 3, (points[2] + 0.6 * points[1]) * 45)
        return colour * (0.72 + 0.4 * grain)

    return texture


def _floor(points: Array) -> Array:
    x, z = points[0], points[2]
    row = np.floor(x / 0.16)
    offset = z / 1.1 + _hash(row, row)
    plank = np.floor(offset)
    tone = 0.7 + 0.38 * _hash(row, plank) + 0.16 * (_noise(x * 60, z * 4 + 7 * row) - 0.5)
    gap = (np.abs(x / 0.16 - row - 0.5) > 0.475) | (offset - plank < 0.006)
    wood = _rgb(178, 128, 82) * np.where(gap, 0.45 * tone, tone)
    # A rug with concentric stripes and a fringe.
    dx, dz = np.abs(x + 0.15) / 1.5, np.abs(z - 2.55) / 1.05
    ring = np.maximum(dx, dz)
    weave = 0.9 + 0.2 * _noise(x * 90, z * 90)
    rug = _where(np.floor(ring * 9) % 3 == 1, _rgb(226, 210, 176), _rgb(52, 88, 120))
    rug = _where(ring > 0.93, _rgb(190, 92, 66), rug)
    diamond = (np.abs((x + 0.15) * 3 % 1 - 0.5) + np.abs((z - 2.55) * 3 % 1 - 0.5)) < 0.25
    rug = _where(diamond & (ring < 0.56), _rgb(190, 92, 66), rug)
    return _where(ring < 1, rug * weave, wood)


def _back_wall(points: Array) -> Array:
    x, y = points[0], points[1]
    stripe = np.abs(x * 3.2 % 1 - 0.5) < 0.25
    paint = _where(stripe, _rgb(206, 216, 206), _rgb(186, 202, 192))
    # Three pictures (centre, half width, half height): dunes, a target, and a grid of tiles.
    pictures = ((0.2, -0.42, 0.42, 0.3), (1.1, -0.5, 0.27, 0.27), (1.8, -0.42, 0.2, 0.3))
    for index, (px, py, half_w, half_h) in enumerate(pictures):
        a, b = (x - px) / half_w, (y - py) / half_h
        if index == 0:
            ridge = 0.25 * np.sin(4 * a + 1) + 0.12 * np.sin(9 * a)
            art = _where(b > ridge, _rgb(198, 134, 72), _rgb(120, 172, 206))
            art = _where(b > ridge + 0.45, _rgb(140, 76, 48), art)
            art = _where((a - 0.45) ** 2 + ((b + 0.5) * 0.72) ** 2 < 0.035, _rgb(250, 226, 140), art)
        elif index == 1:
            band = np.floor(np.hypot(a, b) * 4.5) % 2 == 0
            art = _where(band, _rgb(188, 58, 52), _rgb(240, 232, 214))
        else:
            shade_of = _hash(np.floor(a * 2.5 + 9), np.floor(b * 3.5 + 30))
            art = _rgb(66, 118, 128) * (0.4 + 1.4 * shade_of) + _rgb(180, 120, 60) * (shade_of > 0.7)
        edge = np.maximum(np.abs(a) * half_w - half_w, np.abs(b) * half_h - half_h)
        paint = _where(edge < 0.045, _rgb(58, 42, 32), paint)
        paint = _where(edge < 0.0, _rgb(242, 238, 230), paint)
        paint = _where(edge < -0.04, art, paint)
    return paint


def _left_wall(points: Array) -> tuple[Array, NDArray[np.bool_]]:
    y, z = points[1], points[2]
    z0, z1, y0, y1 = _WINDOW
    paint = np.broadcast_to(_rgb(214, 204, 186), points.shape) * (0.94 + 0.1 * _noise(z * 14, y * 14))
    edge = np.maximum(np.maximum(z0 - z, z - z1), np.maximum(y0 - y, y - y1))
    paint = _where(edge < 0.08, _rgb(244, 242, 236), paint)
    a, b = (z - z0) / (z1 - z0), (y - y0) / (y1 - y0)
    sky = _rgb(120, 176, 232) + (_rgb(232, 242, 250) - _rgb(120, 176, 232)) * np.clip(b * 1.4, 0, 1)
    cloud = np.clip(2.4 * _noise(a * 5, b * 9) - 1.2, 0, 1) * (b < 0.6)
    sky = sky + (0.95 - sky) * cloud
    hill = b > 0.68 + 0.08 * np.sin(a * 7) + 0.05 * np.sin(a * 19)
    view = _where(hill, _rgb(96, 142, 74) * (0.8 + 0.5 * _noise(a * 40, b * 40)), sky)
    bar = (np.abs(a - 0.5) < 0.016) | (np.abs(b - 0.5) < 0.026)
    glass = (edge < 0) & ~bar
    return _where(glass, view, paint), glass


def _room(points: Array, normals: Array) -> Array:
    x, y, z = points
    floor, ceiling = normals[1] < -0.5, normals[1] > 0.5
    back, left = normals[2] < -0.5, normals[0] > 0.5
    wall = _rgb(198, 178, 152) * (0.95 + 0.1 * _noise((x + z) * 12, y * 12))
    colour = _where(back, _back_wall(points), wall)
    colour = _where(left, _left_wall(points)[0], colour)
    board = ~floor & ~ceiling & (y > ROOM_HIGH[1] - 0.11)
    colour = _where(board, np.where(y < ROOM_HIGH[1] - 0.1, 0.6, 1.0) * _rgb(238, 234, 224), colour)
    colour = _where(floor, _floor(points), colour)
    return _where(ceiling, _rgb(236, 234, 230), colour)


def _bookcase(points: Array, normals: Array) -> Array:
    x, y, z = points
    side = np.abs(normals[0]) > 0.5
    across = np.where(side, z, x) + 1.0
    level = (y + 0.75) / 0.4
    shelf, height = np.floor(level), level % 1.0
    slot = np.floor(across / 0.048)
    tall = 0.5 + 0.38 * _hash(slot, shelf)
    pick = _hash(slot + 17, shelf + 5)
    book = _rgb(168, 64, 52)
    for limit, colour in (
        (0.2, _rgb(48, 82, 118)),
        (0.38, _rgb(222, 196, 140)),
        (0.54, _rgb(74, 108, 76)),
        (0.7, _rgb(60, 54, 66)),
        (0.84, _rgb(206, 140, 60)),
    ):
        book = _where(pick > limit, colour, book * np.ones_like(points))
    spine = np.abs(across / 0.048 - slot - 0.5)
    book = book * np.where(spine > 0.42, 0.4, 1.0) * np.where(np.abs(height - 0.45) < 0.03, 1.7, 1.0)
    missing = (1 - height > tall + 0.08) | (_hash(slot, shelf + 40) < 0.08)
    inside = _where(missing, _rgb(46, 34, 26) * np.ones_like(points), book)
    frame = (1 - height < 0.09) | (x < -2.27) | (x > -1.13) | (y < -0.72)
    wood = _wood(150, 104, 66)(points, normals)
    return _where(frame | side | (np.abs(normals[1]) > 0.5), wood, inside)


def _ball(points: Array, normals: Array) -> Array:
    angle = np.arctan2(normals[0] + 0.4 * normals[1], normals[2] - 0.3 * normals[1])
    wedge = np.floor((angle + np.pi) / (2 * np.pi) * 8).astype(np.int64) % 4
    colour = np.broadcast_to(_rgb(240, 238, 230), points.shape)
    for number, tint in ((1, _rgb(206, 62, 54)), (3, _rgb(48, 110, 176))):
        colour = _where(wedge == number, tint, colour)
    return colour


def _leaves(points: Array, normals: Array) -> Array:
    return _rgb(66, 128, 62) * (0.35 + 1.1 * _noise(points[0] * 26 + points[1] * 13, points[2] * 26 - points[1] * 17))


def _crate(points: Array, normals: Array) -> Array:
    board = np.abs(points[1] * 9 % 1 - 0.5) > 0.44
    return _wood(196, 150, 96)(points, normals) * np.where(board, 0.4, 1.0)


def _fabric(red: float, green: float, blue: float) -> Texture:
    colour = _rgb(red, green, blue)
    return lambda p, n: colour * (0.85 + 0.3 * _noise((p[0] + p[1]) * 70, (p[2] + p[1]) * 70))


# Spheres: centre, radius. Boxes: low corner, high corner. Floor at y = 1.25, table top at y = 0.5.
_SPHERES: list[tuple[tuple[float, float, float], float, Texture]] = [
    ((1.25, 0.91, 1.75), 0.34, _ball),
    ((-0.55, 0.31, 2.65), 0.19, _plain(208, 74, 58)),
    ((0.02, 0.37, 2.42), 0.13, _plain(236, 182, 64)),
    ((2.1, 0.35, 3.95), 0.36, _leaves),
    ((2.32, 0.05, 4.1), 0.25, _leaves),
    ((1.98, -0.05, 4.15), 0.22, _leaves),
    ((float(LAMP[0, 0]), float(LAMP[1, 0]), float(LAMP[2, 0])), 0.15, _plain(255, 244, 214)),
]
_LAMP_SURFACE = 6
_BOXES: list[tuple[tuple[float, float, float], tuple[float, float, float], Texture]] = [
    ((-0.95, 0.5, 2.2), (0.65, 0.55, 3.0), _wood(188, 132, 80)),
    ((-0.91, 0.55, 2.24), (-0.85, 1.25, 2.3), _wood(150, 100, 60)),
    ((0.55, 0.55, 2.24), (0.61, 1.25, 2.3), _wood(150, 100, 60)),
    ((-0.91, 0.55, 2.9), (-0.85, 1.25, 2.96), _wood(150, 100, 60)),
    ((0.55, 0.55, 2.9), (0.61, 1.25, 2.96), _wood(150, 100, 60)),
    ((0.2, 0.44, 2.5), (0.56, 0.5, 2.78), _plain(60, 96, 132)),
    ((0.24, 0.39, 2.53), (0.52, 0.44, 2.76), _plain(222, 206, 170)),
    ((-2.3, -0.75, 4.2), (-1.1, 1.25, 4.6), _bookcase),
    ((0.0, 0.85, 3.75), (1.5, 1.2, 4.5), _fabric(96, 122, 134)),
    ((0.0, 0.35, 4.3), (1.5, 0.85, 4.58), _fabric(88, 112, 126)),
    ((-0.16, 0.62, 3.75), (0.0, 1.25, 4.55), _fabric(82, 106, 120)),
    ((1.5, 0.62, 3.75), (1.66, 1.25, 4.55), _fabric(82, 106, 120)),
    ((1.88, 0.7, 3.75), (2.3, 1.25, 4.17), _plain(186, 104, 72)),
    ((-1.75, 0.8, 2.0), (-1.25, 1.25, 2.5), _crate),
    ((0.242, -1.4, 2.192), (0.258, -1.0, 2.208), _plain(50, 50, 54)),
]
_ROOM_SURFACE = len(_SPHERES) + len(_BOXES)
_LAMP_PARTS = frozenset({_LAMP_SURFACE, _ROOM_SURFACE - 1})  # the lamp and its rod do not shade the room


def _sphere_distance(origin: Array, direction: Array, centre: Array, radius: float) -> Array:
    offset = origin - centre
    a = np.einsum("in,in->n", direction, direction)
    b = np.einsum("in,in->n", offset, direction)
    # Discriminant from the perpendicular offset: far less cancellation than b^2 - a c in float32.
    perpendicular = offset - (b / a) * direction
    inside = np.float32(radius * radius) - np.einsum("in,in->n", perpendicular, perpendicular)
    near = -b / a - np.sqrt(np.maximum(inside, 0.0) / a)
    return np.where((inside > 0) & (near > 1e-4), near, np.float32(np.inf))


def _inverse(direction: Array) -> Array:
    return np.asarray(1 / np.where(np.abs(direction) < 1e-9, np.float32(1e-9), direction), dtype=np.float32)


def _slabs(origin: Array, inverse: Array, low: Array, high: Array) -> tuple[Array, Array]:
    first, second = (low - origin) * inverse, (high - origin) * inverse
    return np.minimum(first, second), np.maximum(first, second)


def _box_distance(origin: Array, inverse: Array, low: Array, high: Array) -> Array:
    entry, leave = _slabs(origin, inverse, low, high)
    # Two calls per axis are ten times faster than a reduction over an axis of three.
    near = np.maximum(np.maximum(entry[0], entry[1]), entry[2])
    far = np.minimum(np.minimum(leave[0], leave[1]), leave[2])
    return np.where((near < far) & (near > 1e-4), near, np.float32(np.inf))


def _column(values: tuple[float, float, float]) -> Array:
    return np.array(values, dtype=np.float32)[:, None]


def _objects(origin: Array, direction: Array, skip: frozenset[int] = frozenset()) -> Iterator[tuple[int, Array]]:
    """Number of every object that is not skipped, and its distance (N,) along each ray; inf where it is missed."""
    inverse = _inverse(direction)
    for number, (centre, radius, _) in enumerate(_SPHERES):
        if number not in skip:
            yield number, _sphere_distance(origin, direction, _column(centre), radius)
    for number, (low, high, _) in enumerate(_BOXES, len(_SPHERES)):
        if number not in skip:
            yield number, _box_distance(origin, inverse, _column(low), _column(high))


def cast(origin: Array, direction: Array) -> Hit:
    """Intersect rays (3, N) that start inside the room; distances are in units of the direction's length."""
    _, leave = _slabs(origin, _inverse(direction), ROOM_LOW, ROOM_HIGH)
    distance = leave.min(axis=0)
    axis = leave.argmin(axis=0)
    columns = np.arange(direction.shape[1])
    normal = np.zeros_like(direction)
    normal[axis, columns] = -np.sign(direction[axis, columns])
    surface = np.full(distance.shape, _ROOM_SURFACE, dtype=np.intp)
    for number, found in _objects(origin, direction):
        index = np.flatnonzero(found < distance)
        if not index.size:
            continue
        o, d = origin[:, index], direction[:, index]
        distance[index], surface[index] = found[index], number
        if number < len(_SPHERES):
            centre, radius, _ = _SPHERES[number]
            normal[:, index] = (o + found[index] * d - _column(centre)) / radius
        else:
            low, high, _ = _BOXES[number - len(_SPHERES)]
            axis = _slabs(o, _inverse(d), _column(low), _column(high))[0].argmax(axis=0)
            part = np.zeros_like(o)
            part[axis, np.arange(index.size)] = -np.sign(d[axis, np.arange(index.size)])
            normal[:, index] = part
    return Hit(distance, normal, surface)


def _lamp_visible(points: Array) -> Array:
    """Share of the lamp seen from each point: soft shadows from three points on it."""
    seen = np.zeros(points.shape[1], dtype=np.float32)
    for x, z in ((0.11, 0.0), (-0.055, 0.095), (-0.055, -0.095)):
        to_lamp = LAMP + _column((x, 0.0, z)) - points
        blocked = np.zeros(points.shape[1], dtype=bool)
        for _, distance in _objects(points, to_lamp, _LAMP_PARTS):
            blocked |= distance < 1.0
        seen += ~blocked
    return np.asarray(seen / 3, dtype=np.float32)


def shade(origin: Array, direction: Array, hit: Hit) -> Array:
    """Linear RGB (3, N) of the hits: the lamp with soft shadows, light from the window, and an ambient term."""
    points = origin + hit.distance * direction
    albedo = np.empty_like(points)
    textures = [t for _, _, t in _SPHERES] + [t for _, _, t in _BOXES] + [_room]
    for number, texture in enumerate(textures):
        index = np.flatnonzero(hit.surface == number)
        if index.size:
            albedo[:, index] = texture(points[:, index], hit.normal[:, index])
    lifted = points + 1e-3 * hit.normal
    to_lamp = LAMP - points
    square = np.einsum("in,in->n", to_lamp, to_lamp)
    facing = np.maximum(np.einsum("in,in->n", to_lamp, hit.normal), 0.0) / np.sqrt(square)
    lamp = facing * 3.0 / (0.9 + square)
    lit = np.flatnonzero(facing > 0)
    lamp[lit] *= _lamp_visible(lifted[:, lit])
    to_window = _column((-2.7, -0.25, 1.9)) - points
    square = np.einsum("in,in->n", to_window, to_window)
    facing = np.einsum("in,in->n", to_window, hit.normal) / np.sqrt(square)
    window = np.maximum(0.25 + facing, 0.0) * 1.5 / (1.6 + square)
    # Corners of the room and the floor under furniture get less ambient light.
    gap = np.sort(np.minimum(points - ROOM_LOW, ROOM_HIGH - points), axis=0)[1]
    ambient = 0.4 * (0.55 + 0.45 * np.clip(gap / 0.5, 0.0, 1.0) ** 0.6) * (0.8 - 0.2 * hit.normal[1])
    light = _rgb(255, 236, 206) * lamp + _rgb(216, 232, 255) * window + _rgb(236, 236, 240) * ambient
    colour = albedo * light
    wall = np.flatnonzero((hit.surface == _ROOM_SURFACE) & (hit.normal[0] > 0.5))
    if wall.size:
        view, glass = _left_wall(points[:, wall])
        colour[:, wall] = _where(glass, view, colour[:, wall])
    glowing = hit.surface == _LAMP_SURFACE
    return _where(glowing, albedo * (0.85 - 0.15 * hit.normal[2]), colour).astype(np.float32)
