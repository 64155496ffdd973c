"""Views of a world: exact depth, shaded and textured colour, and a camera that exposes, blurs and adds noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mapengine.runtime.errors import InputError

from .cameras import camera_rays
from .draws import Draws
from .shapes import Array, Components, Ground, House, Room, find_openings
from .textures import SIDE, sample
from .world import FARTHEST, Building, Material, World, Zone, cast, is_shadowed

_HAZE_FROM = 0.5 * FARTHEST
_EDGE = 0.5
"""Metres over which a room darkens towards its edges."""


class Exposure(NamedTuple):
    """What the camera does to a linear image: gain, blur weight of the neighbours, noise, white balance."""

    gain: float
    blur: float
    noise: float
    balance: tuple[float, float, float]

    @classmethod
    def random(cls, draws: Draws, scene_gain: float) -> Exposure:
        """Draw an exposure, a little different for every view of a scene."""
        balance = tuple(draws.uniform(0.93, 1.07) for _ in range(3))
        blur = draws.uniform(0.0, 0.22)
        return cls(scene_gain * draws.uniform(0.85, 1.15), blur, draws.skewed(0.0, 0.03), balance)  # type: ignore[arg-type]


def check_picture_size(width: int, height: int) -> None:
    """Refuse sizes that are not rendered (:class:`InputError`)."""
    if min(width, height) < 28 or max(width, height) > 4096:
        raise InputError(f"rendered views are 28 to 4096 pixels a side, not {width}x{height}")


def render_view(
    world: World, pose: Array, intrinsics: Array, width: int, height: int, exposure: Exposure, draws: Draws
) -> tuple[NDArray[np.uint8], Array]:
    """Render an image (H, W, 3) uint8 and depth_z (H, W) float32 in metres, 0 for sky and what is beyond
    ``FARTHEST``."""
    origin, direction = _pixel_rays(pose, intrinsics, width, height)
    part = _render_zone(world, origin, direction, _pixel_width(intrinsics))
    return _expose(part.colour.reshape(3, height, width), exposure, draws), part.depth.reshape(height, width)


def render_inside(
    building: Building,
    start: int,
    pose: Array,
    intrinsics: Array,
    width: int,
    height: int,
    exposure: Exposure,
    draws: Draws,
) -> tuple[NDArray[np.uint8], Array]:
    """Render a view from zone ``start`` of a building, through its doors and windows; returns as
    :func:`render_view`."""
    origin, direction = _pixel_rays(pose, intrinsics, width, height)
    pixel = _pixel_width(intrinsics)
    colour = np.zeros((3, width * height), np.float32)
    depth = np.zeros(width * height, np.float32)
    pending: list[tuple[int, NDArray[np.intp], Array | None]] = [(start, np.arange(width * height), None)]
    while pending:
        number, index, beyond = pending.pop()
        # Rays of the whole picture are taken as they are, without a copy.
        rays = direction if index.size == depth.size else tuple(d[index] for d in direction)
        shapes = building.visible(number, pose, intrinsics, index % width, index // width)
        part = _render_zone(building.zones[number], origin, rays, pixel, shapes, beyond)
        colour[:, index], depth[index] = part.colour, part.depth
        leads = np.array(building.leads[number])[part.openings]
        for lead in sorted(set(leads.tolist())):
            pixels = part.through[leads == lead]
            pending.append((lead, index[pixels], part.distance[pixels]))
    return _expose(colour.reshape(3, height, width), exposure, draws), depth.reshape(height, width)


def _pixel_rays(pose: Array, intrinsics: Array, width: int, height: int) -> tuple[Components, Components]:
    """Return origin and directions (H * W,) of the rays through all pixels."""
    origin, direction = camera_rays(pose, intrinsics, width, height)
    return origin, tuple(np.broadcast_to(d, (height, width)).reshape(-1) for d in direction)  # type: ignore[return-value]


def _pixel_width(intrinsics: Array) -> Array:
    """Return the width of a pixel at distance 1, for the choice of texture level."""
    return np.float32(1) / intrinsics[0, 0]


class _Part(NamedTuple):
    """What rays see of a zone: colour (3, N), depth (N,), distance (N,), and where they leave through openings.

    ``through`` are the rays that do, ``openings`` the number of the opening of each.
    """

    colour: Array
    depth: Array
    distance: Array
    through: NDArray[np.intp]
    openings: NDArray[np.int16]


def _render_zone(
    zone: Zone,
    origin: Components,
    direction: Components,
    pixel: Array,
    shapes: Sequence[int] | None = None,
    beyond: Array | None = None,
) -> _Part:
    """Cast and shade rays (N,) in one zone; arguments as :func:`.world.cast`."""
    distance, shape = cast(zone, origin, direction, shapes, beyond)
    # Behind the openings of a building's room there is another zone; elsewhere there is sky.
    colour = np.zeros((3, distance.size), np.float32) if zone.enclosed else _sky(zone.sky, direction)
    order = np.argsort(shape, kind="stable")
    bounds = np.searchsorted(shape[order], np.arange(len(zone.shapes) + 1))
    depth = np.where(distance <= np.float32(FARTHEST), distance, np.float32(0))
    parts = [(n, order[bounds[n] : bounds[n + 1]]) for n in range(len(zone.shapes)) if bounds[n] < bounds[n + 1]]
    shaded = _Fragments(zone, origin, direction, distance, pixel)
    through, openings = [np.empty(0, np.intp)], [np.empty(0, np.int16)]
    for number, index in parts:
        hidden, opening = shaded.add(number, index)
        through.append(hidden)
        openings.append(opening)
    shaded.resolve(colour)
    hidden = np.concatenate(through)
    depth[hidden] = 0
    return _Part(colour, depth, distance, hidden, np.concatenate(openings))


class _Fragments:
    """Visible surface points of one zone, gathered over its shapes, then textured and lit all at once."""

    def __init__(self, zone: Zone, origin: Components, direction: Components, distance: Array, pixel: Array) -> None:
        self._zone, self._origin, self._direction = zone, origin, direction
        self._distance, self._pixel = distance, pixel
        self._index: list[NDArray[np.intp]] = []
        self._parts: list[tuple[Array, ...]] = []

    def add(self, number: int, index: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.int16]]:
        """Add the pixels where a shape is seen; returns those among them that look through it, and by which
        opening."""
        shape = self._zone.shapes[number]
        t = self._distance[index]
        point = tuple(o + t * d[index] for o, d in zip(self._origin, self._direction, strict=True))
        surface = shape.surface(point)
        through, openings = np.empty(0, np.intp), np.empty(0, np.int16)
        fields = [np.broadcast_to(x, index.shape) for x in (*surface.normal, surface.u, surface.v)]
        material = surface.face + np.int32(shape.material)
        edge = _edge_distance(shape, point) if isinstance(shape, Room) else np.full(index.shape, _EDGE, np.float32)
        columns = [*point, *fields, edge, material]
        if isinstance(shape, Room | House) and shape.windows:
            found = find_openings(shape.windows, surface)
            is_open = found >= 0
            openings = found[is_open]
            through, index = index[is_open], index[~is_open]
            columns = [column[~is_open] for column in columns]
        if isinstance(shape, Ground):  # what the haze has swallowed is sky
            near = self._distance[index] <= np.float32(FARTHEST)
            index, columns = index[near], [column[near] for column in columns]
        self._index.append(index)
        self._parts.append(tuple(columns))
        return through, openings

    def resolve(self, colour: Array) -> None:
        """Write the colours (3, N) of all gathered points."""
        if not self._index:
            return
        zone = self._zone
        index = np.concatenate(self._index)
        x, y, z, nx, ny, nz, u, v, edge, material = (np.concatenate(c) for c in zip(*self._parts, strict=True))
        t = self._distance[index]
        dx, dy, dz = (d[index] for d in self._direction)
        length = np.sqrt(dx * dx + dy * dy + dz * dz)
        facing = np.abs(nx * dx + ny * dy + nz * dz) / length
        footprint = t * self._pixel / np.maximum(facing, np.float32(0.15))
        albedo = _albedo(zone.materials, material.astype(np.intp), u, v, footprint)
        light = _light(zone, (x, y, z), (nx, ny, nz), edge)
        for channel in range(3):
            value = albedo[channel] * light
            if zone.sunlit:
                haze = np.clip((t - np.float32(_HAZE_FROM)) * np.float32(1 / (FARTHEST - _HAZE_FROM)), 0, 1)
                haze = haze * haze
                value = value + (colour[channel][index] - value) * haze
            colour[channel][index] = value


def _edge_distance(room: Room, point: Components) -> Array:
    """Return the distance to the nearest edge between two walls (the second nearest wall), at most ``_EDGE``."""
    gaps = [np.float32(h) - np.abs(p - np.float32(c)) for h, p, c in zip(room.half, point, room.centre, strict=True)]
    a, b, c = gaps
    second = np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))
    return np.clip(second, 0, np.float32(_EDGE))


def _light(zone: Zone, point: Components, normal: Components, edge: Array) -> Array:
    """Compute ambient light, less of it near a room's edges, and the lamp or the sun where nothing is in the way."""
    if zone.sunlit:
        lx, ly, lz = (np.float32(c) for c in zone.lamp)
        strength: Array = np.maximum(normal[0] * lx + normal[1] * ly + normal[2] * lz, 0)
        reach = float("inf")
        towards: Components = (lx, ly, lz)
    else:
        towards = tuple(np.float32(c) - p for c, p in zip(zone.lamp, point, strict=True))
        square = towards[0] * towards[0] + towards[1] * towards[1] + towards[2] * towards[2]
        cosine = normal[0] * towards[0] + normal[1] * towards[1] + normal[2] * towards[2]
        falloff = np.float32(6) / (square + 3)
        strength = np.maximum(cosine, 0) / np.sqrt(square + np.float32(1e-6)) * falloff
        reach = 0.98
    lit = np.flatnonzero(strength > np.float32(0.02))
    if lit.size:
        raised = tuple((p + np.float32(2e-3) * n)[lit] for p, n in zip(point, normal, strict=True))
        towards = tuple(c if np.ndim(c) == 0 else c[lit] for c in towards)
        shadow = is_shadowed(zone, raised, towards, reach)
        strength[lit[shadow]] = 0
    occlusion = np.float32(0.55) + np.float32(0.45 / _EDGE) * edge
    overhead = np.float32(0.85) - np.float32(0.15) * normal[1]  # y points down: faces that look up are brighter
    return np.float32(zone.ambient) * occlusion * overhead + np.float32(1 - zone.ambient) * strength


def _albedo(materials: list[Material], which: NDArray[np.intp], u: Array, v: Array, footprint: Array) -> Array:
    """Return colours (3, N) of surface points by their material."""
    table = np.array([[m.size, *m.shift, m.detail_size, m.detail_strength, *m.first, *m.second] for m in materials])
    size, shift_u, shift_v, fine_size, fine_strength, *colours = table.astype(np.float32).T[:, which]
    pattern, fine = np.array([[m.pattern, m.detail] for m in materials], np.int32).T[:, which]
    texels = footprint * np.float32(SIDE)
    mix = sample(pattern, u / size + shift_u, v / size + shift_v, texels / size)
    detail = 1 - fine_strength * sample(fine, u / fine_size, v / fine_size, texels / fine_size)
    return np.stack(
        [(first + (second - first) * mix) * detail for first, second in zip(colours[:3], colours[3:], strict=True)]
    )


def _sky(sky: Material, direction: Components) -> Array:
    """Return colours (3, N) of the sky: clouds that thin out towards the zenith, haze at the horizon."""
    x, y, z = direction
    up = -y / np.sqrt(x * x + y * y + z * z)
    height = np.maximum(up, np.float32(0)) + np.float32(0.25)
    texture = np.full(x.shape, sky.pattern, np.int32)
    scale = np.float32(0.2) / (height * np.sqrt(x * x + y * y + z * z))
    one = np.full(x.shape, np.float32(2))
    cloud = sample(texture, x * scale + np.float32(sky.shift[0]), z * scale + np.float32(sky.shift[1]), one)
    cloud = np.clip(cloud * 2 - np.float32(0.7), 0, 1) + np.clip(np.float32(0.3) - up, 0, np.float32(0.6))
    cloud = np.minimum(cloud, 1)
    return np.stack([np.float32(a) + np.float32(b - a) * cloud for a, b in zip(sky.first, sky.second, strict=True)])


def _expose(colour: Array, exposure: Exposure, draws: Draws) -> NDArray[np.uint8]:
    """Convert linear (3, H, W) to an 8-bit image (H, W, 3); the transfer curve is a square root (gamma 2)."""
    if exposure.blur > 0.02:
        side = np.float32(exposure.blur)
        middle = np.float32(1 - 2 * exposure.blur)
        for axis in (1, 2):
            edge = [(1, 1) if a == axis else (0, 0) for a in range(3)]
            padded = np.pad(colour, edge, mode="edge")
            before, after = (slice(None, -2), slice(2, None))
            low = padded[:, before] if axis == 1 else padded[:, :, before]
            high = padded[:, after] if axis == 1 else padded[:, :, after]
            colour = middle * colour + side * (low + high)
    gain = np.float32(exposure.gain) * np.array(exposure.balance, np.float32)[:, None, None]
    curve = np.sqrt(np.clip(colour * gain, 0, 1))
    if exposure.noise > 0.001:
        curve = curve + np.float32(exposure.noise) * draws.gaussian(*curve.shape)
    bytes_ = np.rint(np.clip(curve, 0, 1) * np.float32(255)).astype(np.uint8)
    return np.ascontiguousarray(bytes_.transpose(1, 2, 0))
