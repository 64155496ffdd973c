"""Cameras that see the same part of a world, chosen by what they measure and not by where they were put."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .draws import Draws, Matrix, Vector, frame
from .shapes import Array, Components, to_world
from .world import FARTHEST, NEAREST_DEPTH, CameraRange, World, cast

_PROBE_WIDTH = 20
"""Columns of the coarse depth maps that decide whether a camera is any good."""
_MIN_OVERLAP, _MAX_OVERLAP = 0.3, 0.97
_MIN_VALID = 0.55
_TANGENTS = (0.4663077, 1.1917536)
"""Tangents of half the horizontal field of view: 50 to 100 degrees."""
OVERLAP_TOLERANCE = 0.02
"""Relative depth difference up to which a point is the same one in another view."""


class Lens(NamedTuple):
    """A pinhole in units of the image width: focal length, and offset of the principal point from the middle."""

    focal: float
    shift_x: float
    shift_y: float

    def intrinsics(self, width: int, height: int) -> Array:
        """Return the (3, 3) matrix in pixels, pixel centres at integers."""
        focal = self.focal * width
        return np.array(
            [
                [focal, 0.0, (width - 1) / 2 + self.shift_x * width],
                [0.0, focal, (height - 1) / 2 + self.shift_y * width],
                [0.0, 0.0, 1.0],
            ],
            np.float32,
        )


class Camera(NamedTuple):
    """A lens at a position, looking along the third column of its rotation (camera to world)."""

    lens: Lens
    position: Vector
    rotation: Matrix

    def pose(self) -> Array:
        """Return the (4, 4) float32 pose, camera-to-world."""
        matrix = np.eye(4, dtype=np.float32)
        matrix[:3, :3] = self.rotation
        matrix[:3, 3] = self.position
        return matrix


def camera_rays(pose: Array, intrinsics: Array, width: int, height: int) -> tuple[Components, Components]:
    """Return the origin and world directions (H, W) of the rays through all pixels; camera z is 1, so distance is
    depth_z."""
    x = (np.arange(width, dtype=np.float32) - intrinsics[0, 2]) / intrinsics[0, 0]
    y = (np.arange(height, dtype=np.float32) - intrinsics[1, 2]) / intrinsics[1, 1]
    rotation: Matrix = tuple(tuple(row) for row in pose[:3, :3])  # type: ignore[assignment]
    return tuple(pose[:3, 3]), to_world(rotation, (x[None, :], y[:, None], np.float32(1)))


def measure_overlap(
    depth: Array, pose: Array, intrinsics: Array, other_depth: Array, other_pose: Array, other_intrinsics: Array
) -> float:
    """Return the share of a view's pixels with depth whose points are seen in another view at the same depth.

    Depth maps (H, W) in metres, 0 where there is none; poses (4, 4) camera-to-world; intrinsics (3, 3).
    """
    rows, columns = np.nonzero(depth)
    if rows.size == 0:
        return 0.0
    found = reproject(depth, pose, intrinsics, other_pose, other_intrinsics, rows, columns)
    height, width = other_depth.shape
    with np.errstate(invalid="ignore"):
        i, j = np.rint(found.row), np.rint(found.column)
        inside = (found.z > 0) & (i >= 0) & (j >= 0) & (i < height) & (j < width)
    there = np.zeros_like(found.z)
    there[inside] = other_depth[i[inside].astype(np.intp), j[inside].astype(np.intp)]
    # The nearest pixel may lie half a pixel off on a slanted surface: coarse maps get a coarser tolerance.
    tolerance = OVERLAP_TOLERANCE + 2.0 / width
    same = inside & (there > 0) & (np.abs(found.z - there) < tolerance * there)
    return float(np.count_nonzero(same)) / rows.size


class Reprojection(NamedTuple):
    """Points of one view in another: pixel coordinates (N,) and depth_z (N,), not positive behind the camera."""

    column: Array
    row: Array
    z: Array


def reproject(
    depth: Array,
    pose: Array,
    intrinsics: Array,
    other_pose: Array,
    other_intrinsics: Array,
    rows: NDArray[np.intp],
    columns: NDArray[np.intp],
) -> Reprojection:
    """Return the points at pixels (rows, columns) of a depth map, as another camera sees them."""
    z = depth[rows, columns]
    x = (columns.astype(np.float32) - intrinsics[0, 2]) / intrinsics[0, 0] * z
    y = (rows.astype(np.float32) - intrinsics[1, 2]) / intrinsics[1, 1] * z
    world = [pose[k, 0] * x + pose[k, 1] * y + pose[k, 2] * z + pose[k, 3] - other_pose[k, 3] for k in range(3)]
    local = [other_pose[0, k] * world[0] + other_pose[1, k] * world[1] + other_pose[2, k] * world[2] for k in range(3)]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        inverse = np.float32(1) / local[2]
        column = local[0] * inverse * other_intrinsics[0, 0] + other_intrinsics[0, 2]
        row = local[1] * inverse * other_intrinsics[1, 1] + other_intrinsics[1, 2]
    return Reprojection(column, row, local[2])


class _Probe(NamedTuple):
    camera: Camera
    depth: Array
    pose: Array
    intrinsics: Array


def choose_cameras(world: World, draws: Draws, views: int, aspect: float, tries: int = 60) -> list[Camera] | None:
    """Choose cameras around the world's focus, each sharing surface with the first; None if the world has no room."""
    lens = _random_lens(draws)
    zoomed = draws.chance(0.2)  # now and then every view has a focal length of its own
    reference: _Probe | None = None
    chosen: list[_Probe] = []
    for _ in range(tries):
        if reference is None:
            probe = _probe(world, _first_camera(world, draws, lens), aspect)
            if _is_good(probe):
                reference = probe
                chosen.append(probe)
        else:
            own = _random_lens(draws) if zoomed else lens
            probe = _probe(world, _next_camera(world.cameras, draws, own, reference), aspect)
            if _is_good(probe) and _MIN_OVERLAP <= _mutual(reference, probe) <= _MAX_OVERLAP:
                chosen.append(probe)
        if len(chosen) == views:
            return [probe.camera for probe in chosen]
    return None


def _random_lens(draws: Draws) -> Lens:
    return Lens(0.5 / draws.uniform(*_TANGENTS), draws.uniform(-0.02, 0.02), draws.uniform(-0.02, 0.02))


def _first_camera(world: World, draws: Draws, lens: Lens) -> Camera:
    limits = world.cameras
    c, s = draws.heading()
    away = draws.skewed(*limits.distance)
    position = (
        _within(world.focus[0] + c * away, limits.bounds[0]),
        -draws.uniform(*limits.height),
        _within(world.focus[2] + s * away, limits.bounds[1]),
    )
    return Camera(lens, position, _looking(draws, position, world.focus, 0.1))


def _next_camera(limits: CameraRange, draws: Draws, lens: Lens, reference: _Probe) -> Camera:
    """Return a camera beside the reference, looking at about what it sees in its middle."""
    seen = reference.depth[reference.depth > 0]
    distance = float(np.partition(seen, seen.size // 2)[seen.size // 2])
    camera = reference.camera
    forward = [row[2] for row in camera.rotation]
    target: Vector = tuple(p + distance * f for p, f in zip(camera.position, forward, strict=True))  # type: ignore[assignment]
    x, y, z = draws.in_ball()
    reach = distance * draws.uniform(*limits.baseline) * 1.6
    position = (
        _within(camera.position[0] + reach * x, limits.bounds[0]),
        -min(max(-camera.position[1] - 0.6 * reach * y, limits.height[0]), limits.height[1]),
        _within(camera.position[2] + reach * z, limits.bounds[1]),
    )
    return Camera(lens, position, _looking(draws, position, target, 0.2))


def _within(value: float, bound: float) -> float:
    return min(max(value, -bound), bound)


def _looking(draws: Draws, position: Vector, target: Vector, jitter: float) -> Matrix:
    """Look towards the target, off by up to ``jitter`` of the distance, with a little roll."""
    forward = [t - p for t, p in zip(target, position, strict=True)]
    length = sum(abs(f) for f in forward) + 1e-6
    off = draws.in_ball()
    forward = [f + jitter * length * o for f, o in zip(forward, off, strict=True)]
    roll = draws.in_ball()
    return frame((forward[0], forward[1], forward[2]), (0.12 * roll[0], 1.0, 0.12 * roll[2]))


def _probe(world: World, camera: Camera, aspect: float) -> _Probe:
    width, height = _PROBE_WIDTH, max(4, round(_PROBE_WIDTH / aspect))
    pose, intrinsics = camera.pose(), camera.lens.intrinsics(width, height)
    depth = np.array(cast(world, *camera_rays(pose, intrinsics, width, height)).distance)
    depth[depth > FARTHEST] = 0
    return _Probe(camera, depth, pose, intrinsics)


def _is_good(probe: _Probe) -> bool:
    seen = probe.depth[probe.depth > 0]
    if seen.size < _MIN_VALID * probe.depth.size or seen.min() < NEAREST_DEPTH * 1.1:
        return False
    ends = [seen.size // 20, seen.size - 1 - seen.size // 20]
    near, far = np.partition(seen, ends)[ends]
    return bool(far > 1.25 * near)  # a bare wall right ahead shows nothing


def _mutual(a: _Probe, b: _Probe) -> float:
    return min(measure_overlap(*a[1:], *b[1:]), measure_overlap(*b[1:], *a[1:]))
