"""Intersections against what can be computed otherwise."""

from __future__ import annotations

import numpy as np
import pytest

from mapengine.calibration.scenes.draws import Draws, frame
from mapengine.calibration.scenes.shapes import (
    IDENTITY,
    Box,
    Cylinder,
    Ground,
    House,
    Room,
    Shape,
    Sphere,
    find_openings,
)

TURNED = frame((0.3, -0.4, 1.0), (0.1, 1.0, 0.2))
SOLIDS: list[Shape] = [
    Box((0.2, -0.1, 4.0), TURNED, 0, (0.5, 0.3, 0.8)),
    Sphere((0.2, -0.1, 4.0), TURNED, 0, 0.7),
    Cylinder((0.2, -0.1, 4.0), TURNED, 0, 0.4, 0.6),
]


def rays(count: int = 4000) -> tuple[tuple[np.float32, ...], tuple[np.ndarray, ...]]:
    rng = np.random.default_rng(1)
    directions = rng.uniform(-0.35, 0.35, (2, count)).astype(np.float32)
    return (np.float32(0.05), np.float32(-0.2), np.float32(0)), (*directions, np.ones(count, np.float32))


def inside(shape: Shape, points: np.ndarray, slack: float) -> np.ndarray:
    """Whether points (3, N) lie in the solid grown by ``slack``."""
    local = np.array(shape.rotation).T @ (points - np.array(shape.centre)[:, None])
    if isinstance(shape, Box):
        return (np.abs(local) <= np.array(shape.half)[:, None] + slack).all(axis=0)
    if isinstance(shape, Sphere):
        return np.linalg.norm(local, axis=0) <= shape.size + slack
    assert isinstance(shape, Cylinder)
    return (np.hypot(local[0], local[2]) <= shape.size + slack) & (np.abs(local[1]) <= shape.half_height + slack)


@pytest.mark.parametrize("shape", SOLIDS, ids=lambda shape: type(shape).__name__)
def test_rays_stop_at_the_first_point_of_a_solid(shape: Shape) -> None:
    origin, direction = rays()
    distance = shape.distance(origin, direction)
    hit = np.isfinite(distance)
    assert 200 < hit.sum() < 3500
    start, along = np.array(origin)[:, None], np.array(direction)
    assert inside(shape, start + along[:, hit] * distance[hit], 1e-4).all()
    # Marching finds no earlier point, and none at all on the rays that miss.
    for t in np.linspace(2.5, 5.5, 150):
        within = inside(shape, start + along * t, -1e-3)
        assert not (within & (t < distance - 1e-3)).any()


@pytest.mark.parametrize("shape", SOLIDS, ids=lambda shape: type(shape).__name__)
def test_normals_point_out_and_are_perpendicular(shape: Shape) -> None:
    origin, direction = rays()
    distance = shape.distance(origin, direction)
    hit = np.isfinite(distance)
    point = [o + distance[hit] * d[hit] for o, d in zip(origin, direction, strict=True)]
    normal = np.array([np.broadcast_to(n, point[0].shape) for n in shape.surface(tuple(point)).normal])
    assert np.linalg.norm(normal, axis=0) == pytest.approx(1, abs=1e-4)
    assert (normal * np.array([d[hit] for d in direction])).sum(axis=0).max() < 1e-3
    inner = np.array(point) - 0.02 * normal
    assert inside(shape, inner, 1e-3).mean() > 0.99


def test_a_room_is_seen_from_inside() -> None:
    room = Room((0.0, -1.0, 0.0), IDENTITY, 0, (2.0, 1.0, 3.0), ((5, -0.5, 0.5, -0.5, 0.5),))
    zero = np.zeros(1, np.float32)
    origin = (zero, zero - 1, zero)
    for face, direction, expected in (
        (0, (-1, 0, 0), 2.0),
        (1, (1, 0, 0), 2.0),
        (2, (0, -1, 0), 1.0),
        (3, (0, 1, 0), 1.0),
        (4, (0, 0, -1), 3.0),
        (5, (0, 0, 1), 3.0),
    ):
        towards = tuple(np.full(1, d + 1e-9, np.float32) for d in direction)
        distance = room.distance(origin, towards)
        assert distance == pytest.approx(expected, rel=1e-5)
        surface = room.surface(tuple(o + distance * d for o, d in zip(origin, towards, strict=True)))
        assert surface.face.tolist() == [face]
        assert [float(n[0]) for n in surface.normal] == [-float(d) for d in direction]
        assert find_openings(room.windows, surface).tolist() == [0 if face == 5 else -1]


def test_a_house_is_seen_from_outside() -> None:
    openings = ((0, -0.5, 0.5, -0.5, 0.5), (5, 1.0, 2.0, -1.0, 0.0))
    house = House((1.0, -1.0, 0.0), IDENTITY, 0, (2.0, 1.0, 3.0), openings)
    for face, opening, start, direction in (
        (0, 0, (-5, -1.2, 0.3), (1, 0, 0)),
        (0, -1, (-5, -1.2, 1.3), (1, 0, 0)),
        (1, -1, (5, -1, 0), (-1, 0, 0)),
        (2, -1, (1, -5, 0), (0, 1, 0)),
        (4, -1, (2.5, -1.5, -9), (0, 0, 1)),
        (5, 1, (2.5, -1.5, 9), (0, 0, -1)),
    ):
        origin = tuple(np.full(1, o, np.float32) for o in start)
        towards = tuple(np.full(1, d + 1e-9, np.float32) for d in direction)
        distance = house.distance(origin, towards)
        surface = house.surface(tuple(o + distance * d for o, d in zip(origin, towards, strict=True)))
        assert surface.face.tolist() == [face]
        assert find_openings(openings, surface).tolist() == [opening]
        assert [float(n[0]) for n in surface.normal] == [-float(d) for d in direction]
    inside = tuple(np.full(1, o, np.float32) for o in (1.0, -1.0, 0.0))
    assert np.isinf(house.distance(inside, towards)).all()


def test_a_plane_and_hills() -> None:
    draws = Draws("hills")
    waves = tuple((0.4, draws.uniform(-0.15, 0.15), draws.uniform(-0.15, 0.15), draws.unit()) for _ in range(2))
    _, direction = rays()
    direction = (direction[0], direction[1] + np.float32(0.15), direction[2])
    above = (np.float32(0), np.float32(-2.0), np.float32(0))
    flat = Ground((0.0, 0.0, 0.0), IDENTITY, 0).distance(above, direction)
    down = direction[1] > 1e-3
    assert flat[down] == pytest.approx(2 / direction[1][down], rel=1e-5)
    assert np.isinf(flat[direction[1] < 0]).all()
    hills = Ground((0.0, 0.0, 0.0), IDENTITY, 0, waves)
    distance = hills.distance(above, direction)
    hit = np.isfinite(distance) & (distance < 20)
    assert hit.sum() > 1000
    x, y, z = (o + distance[hit] * d[hit] for o, d in zip(above, direction, strict=True))
    assert -y == pytest.approx(hills.elevation(x, z), abs=2e-4)
    assert (distance[hit] <= flat[hit] * 1.001).all()
    normal = hills.surface((x, y, z)).normal
    step = np.float32(1e-2)
    slope = (hills.elevation(x + step, z) - hills.elevation(x - step, z)) / (2 * step)
    assert normal[0] / normal[1] == pytest.approx(slope, abs=2e-3)
    assert (normal[1] < 0).all()
