"""Merged points and the views that see them, against a search in plain Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mapengine.runtime import Scene
from mapengine.runtime.outputs.tracks import DEPTH_TOLERANCE, VOXELS_ACROSS, find_tracks

Predictions = list[dict[str, Any]]


@pytest.fixture
def scene(room_predictions: Callable[..., Predictions]) -> Scene:
    return Scene.from_predictions(room_predictions(4))


def world_to_camera(scene: Scene) -> tuple[Any, Any]:
    inverse = np.linalg.inv(scene.poses.astype(np.float64))
    return inverse[:, :3, :3], inverse[:, :3, 3]


def test_tracks_are_all_views_that_see_a_point(scene: Scene) -> None:
    rotations, translations = world_to_camera(scene)
    tracks = find_tracks(scene, scene.mask, rotations, translations, most=300)
    sees = [set(indices.tolist()) for indices in tracks.seen]
    assert all((np.diff(indices) > 0).all() for indices in tracks.seen)
    for number, point in enumerate(tracks.points):
        for view in range(4):
            x, y, z = rotations[view] @ point + translations[view]
            k = scene.intrinsics[view]
            u, v = x / z * k[0, 0] + k[0, 2], y / z * k[1, 1] + k[1, 2]
            visible = z > 0 and -0.5 < u < 55.5 and -0.5 < v < 41.5
            if visible:
                row, column = round(v), round(u)
                visible = abs(scene.depth[view, row, column] - z) <= DEPTH_TOLERANCE * z
                visible &= scene.mask[view, row, column]
            assert (number in sees[view]) == visible
            if visible:
                place = tracks.pixels[view][np.searchsorted(tracks.seen[view], number)]
                np.testing.assert_allclose(place, (u, v), atol=1e-9)
    assert set().union(*sees) == set(range(len(tracks.points)))
    lengths = np.bincount(np.concatenate(tracks.seen))
    assert (lengths >= 2).mean() > 0.5


def test_a_view_ends_at_the_outer_sides_of_its_pixels(scene: Scene) -> None:
    """Of two pixels that touch, one has their common side: here the left side of the image, and not the right."""
    height, width = scene.mask.shape[1:]
    scene.poses[0] = np.eye(4)
    for side, count in ((-0.5, 1), (width - 0.5, 0)):
        column = 0 if side < 0 else width - 1
        scene.intrinsics[0] = [[width, 0, side], [0, width, 8], [0, 0, 1]]
        scene.points[0, 8, column], scene.depth[0, 8, column] = (0, 0, 2), 2
        one = np.zeros_like(scene.mask)
        one[0, 8, column] = True
        tracks = find_tracks(scene, one, *world_to_camera(scene), voxel=1.0)
        assert len(tracks.points) == count
        assert tracks.pixels[0].tolist() == [[-0.5, 8.0]] * count
    assert height > 8


def test_a_view_that_is_hidden_sees_nothing(scene: Scene) -> None:
    scene.depth[1] *= 0.5  # something stands in front of everything
    tracks = find_tracks(scene, scene.mask & (np.arange(4) != 1)[:, None, None], *world_to_camera(scene))
    assert len(tracks.seen[1]) == 0
    assert len(tracks.seen[0]) > 100


def test_points_are_means_of_places_and_colours(scene: Scene) -> None:
    one = scene.mask.copy()
    one[1:] = False
    one[0, :, 30:] = False
    voxel = 0.5
    tracks = find_tracks(scene, one, *world_to_camera(scene), voxel=voxel)
    points, colors = scene.points[one].astype(np.float64), scene.colors[one].astype(np.float64)
    assert 3 < len(tracks.points) < len(points) / 10
    for point, color in zip(tracks.points, tracks.colors, strict=True):
        near = np.abs(points - point).max(axis=-1) < voxel
        assert (points[near].min(axis=0) <= point + 1e-6).all()
        assert (points[near].max(axis=0) >= point - 1e-6).all()
        assert (colors[near].min(axis=0) - 0.5 <= color).all()
        assert (colors[near].max(axis=0) + 0.5 >= color).all()


def test_points_of_rough_depth_are_not_lost(scene: Scene) -> None:
    """The mean of a voxel is in no view then, but its points are."""
    factors = np.random.default_rng(0).uniform(0.6, 1.4, scene.depth.shape).astype(np.float32)
    scene.depth *= factors
    centres = scene.poses[:, None, None, :3, 3]
    scene.points[...] = (scene.points - centres) * factors[..., None] + centres
    cameras = world_to_camera(scene)
    coarse = find_tracks(scene, scene.mask, *cameras, voxel=0.3)
    cells = len(np.unique(np.floor(scene.points[scene.mask] / 0.3), axis=0))
    assert len(coarse.points) > 0.8 * cells
    limited = find_tracks(scene, scene.mask, *cameras, voxel=0.3, most=200)
    assert len(limited.points) == 200
    places = {tuple(point) for point in coarse.points.tolist()}
    assert all(tuple(point) in places for point in limited.points.tolist())


def test_the_usual_voxel_and_outliers(scene: Scene) -> None:
    keep, cameras = scene.mask, world_to_camera(scene)
    points = scene.points[keep].astype(np.float64)
    side = np.linalg.norm(np.diff(np.percentile(points, (2, 98), axis=0), axis=0)) / VOXELS_ACROSS
    by_default, by_hand = (find_tracks(scene, keep, *cameras, voxel=voxel) for voxel in (None, side))
    np.testing.assert_allclose(by_default.points, by_hand.points)
    scene.points[0, 20, 20] = 1e12
    with_outlier = find_tracks(scene, keep, *cameras)
    assert abs(len(with_outlier.points) - len(by_default.points)) < 5
    assert np.abs(with_outlier.points).max() < 1e6


def test_a_scene_without_points(scene: Scene) -> None:
    tracks = find_tracks(scene, np.zeros_like(scene.mask), *world_to_camera(scene))
    assert (len(tracks.points), [len(seen) for seen in tracks.seen]) == (0, [0] * 4)
