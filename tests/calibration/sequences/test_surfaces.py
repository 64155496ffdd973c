"""Maps against surfaces: distances to the nearest point, by hand and against all pairs."""

from __future__ import annotations

import numpy as np
import pytest

from mapengine.calibration.sequences.surfaces import nearest_distances, sampled_points, surface_errors, thinned


def test_nearest_distances_are_those_over_all_pairs() -> None:
    rng = np.random.default_rng(0)
    points, others = rng.uniform(-3, 3, (300, 3)), rng.uniform(-3, 2, (400, 3))
    pairs = np.linalg.norm(points[:, None] - others[None], axis=-1).min(axis=1)
    for limit in (0.2, 0.5, 2.0):
        np.testing.assert_allclose(nearest_distances(points, others, limit), np.minimum(pairs, limit), atol=1e-7)
    # Far from the origin float32 would lose them.
    far = np.array([800.0, -900.0, 50.0])
    np.testing.assert_allclose(nearest_distances(points + far, others + far), np.minimum(pairs, 0.5), atol=1e-7)


def test_a_wall_that_is_out_of_place_and_half_seen() -> None:
    x, y = np.meshgrid(np.arange(0, 2, 0.1) + 0.05, np.arange(0, 1, 0.1) + 0.05)
    wall = np.stack([x.ravel(), y.ravel(), np.full(x.size, 3.0)], axis=-1)
    shifted = wall + np.array([0, 0, 0.1])
    assert surface_errors(wall, wall) == pytest.approx((0, 0), abs=1e-6)
    assert surface_errors(shifted, wall) == pytest.approx((0.1, 0.1))
    # Half of the wall is not in the map: its points lie 0.1 to 1 m from what is, and 0.5 m at most count.
    half = wall[wall[:, 0] < 1]
    missing = np.minimum(np.arange(1, 11) * 0.1, 0.5)
    accuracy, completeness = surface_errors(half, wall)
    assert accuracy == pytest.approx(0, abs=1e-6)
    assert completeness == pytest.approx(missing.mean() / 2)
    assert surface_errors(np.empty((0, 3)), wall) == (0.5, 0.5)


def test_places_that_were_seen_frequently_count_once() -> None:
    near, far = np.array([[0.01, 0.01, 0.01]]), np.array([[1.01, 0.01, 0.31]])
    found = np.concatenate([np.repeat(near, 50, axis=0), far])
    assert len(thinned(found)) == 2
    accuracy, _ = surface_errors(found, near)
    assert accuracy == pytest.approx(0.25)


def test_points_of_a_depth_map() -> None:
    depth = np.zeros((8, 6), np.float32)
    depth[2, 3], depth[5, 1] = 2.0, 4.0
    intrinsics = np.array([[10.0, 0, 1.0], [0, 20.0, 2.0], [0, 0, 1]])
    points = sampled_points(depth, intrinsics)
    assert points == pytest.approx(np.array([[0.4, 0, 2], [0, 0.6, 4]]))
    mask = np.ones((8, 6), bool)
    mask[5, 1] = False
    assert len(sampled_points(depth, intrinsics, mask)) == 1
    many = sampled_points(np.ones((560, 700)), np.eye(3))
    assert 800 < len(many) < 1300
