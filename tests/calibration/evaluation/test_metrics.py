"""Every metric against values computed by hand, and what must not change it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mapengine.calibration.evaluation import metrics

from .oracle import rigid, rotation

Array = NDArray[Any]


def column(*values: float) -> Array:
    """One view of a single column of pixels, (1, N, 1)."""
    return np.array(values, np.float64)[None, :, None]


def all_valid(values: Array) -> Array:
    return np.ones(values.shape[:3], bool)


def test_median_scale_is_a_ratio_of_medians_over_all_views() -> None:
    depth, true = column(1, 2, 3), column(2, 4, 60)
    assert metrics.median_scale(depth, true, all_valid(depth)) == 2
    # Two views share one factor.
    depth, true = np.concatenate([depth, 10 * depth]), np.concatenate([true, true])
    assert metrics.median_scale(depth, true, all_valid(depth)) == 4 / np.median([1, 2, 3, 10, 20, 30])
    assert metrics.median_scale(column(-1, -2, 3), column(1, 1, 1), np.ones((1, 3, 1), bool)) == 1


def test_pixels_that_are_not_valid_do_not_count() -> None:
    depth, true = column(1, 2, 100, 5), column(1, 2, 1, 0)
    valid = np.array([True, True, False, False])[None, :, None]
    assert metrics.median_scale(depth, true, valid) == 1
    assert metrics.depth_abs_rel(depth, true, valid) == 0
    assert metrics.depth_inliers(depth, true, valid) == 1


def test_depth_abs_rel() -> None:
    assert metrics.depth_abs_rel(column(1.5, 3), column(1, 4), np.ones((1, 2, 1), bool)) == pytest.approx(0.375)
    # Views count alike, whatever number of pixels they have, and one without any does not count.
    depth, true = np.full((3, 4, 1), 2.0), np.ones((3, 4, 1))
    depth[1] = 1
    valid = np.ones((3, 4, 1), bool)
    valid[0, 1:] = False
    valid[2] = False
    assert metrics.depth_abs_rel(depth, true, valid) == pytest.approx(0.5)


def test_inliers_are_within_three_percent_either_way() -> None:
    true = np.full((1, 6, 1), 2.0)
    depth = column(2 * 1.029, 2 / 1.029, 2 * 1.031, 2 / 1.031, 0, -2)
    assert metrics.depth_inliers(depth, true, all_valid(true)) == pytest.approx(2 / 6)


@pytest.mark.parametrize("degrees", [1e-5, 3.0, 90.0, 179.0])
def test_ray_error_is_the_angle(degrees: float) -> None:
    rays = np.zeros((2, 3, 4, 3))
    rays[..., 2] = 1
    assert metrics.ray_degrees(rays @ rotation(0, degrees).T, rays) == pytest.approx(degrees, rel=1e-6)
    half = rays.copy()
    half[0] = half[0] @ rotation(0, degrees).T
    assert metrics.ray_degrees(half, rays) == pytest.approx(degrees / 2, rel=1e-6)


def points_of(*depths: float) -> Array:
    points = np.zeros((1, len(depths), 1, 3))
    points[0, :, 0, 2] = depths
    return points


def test_points_are_compared_over_their_mean_distance() -> None:
    found, true = points_of(2, 2), points_of(1, 3)
    valid = np.ones((1, 2, 1), bool)
    assert metrics.mean_distance(true, valid) == 2
    assert metrics.points_abs_rel(found, true, valid) == pytest.approx((1 + 1 / 3) / 2)
    assert metrics.points_abs_rel(7 * found, true, valid) == pytest.approx((1 + 1 / 3) / 2)
    assert metrics.points_abs_rel(0 * found, true, valid) == pytest.approx(1)


def test_metric_scale_is_relative_to_the_truth() -> None:
    true, valid = points_of(1, 3), np.ones((1, 2, 1), bool)
    assert metrics.metric_scale_abs_rel(2 * true, true, valid) == pytest.approx(1)
    assert metrics.metric_scale_abs_rel(true / 2, true, valid) == pytest.approx(0.5)
    assert metrics.metric_scale_abs_rel(true[:, ::-1], true, valid) == 0


def some_poses(count: int = 4) -> Array:
    rng = np.random.default_rng(3)
    poses = [rigid(axis % 3, float(rng.uniform(-60, 60)), *rng.normal(size=3)) for axis in range(count)]
    return np.stack(poses)


def test_poses_in_the_frame_of_the_first_view_do_not_depend_on_the_world() -> None:
    poses = some_poses()
    relative = metrics.in_first_view(poses)
    np.testing.assert_allclose(relative[0], np.eye(4), atol=1e-12)
    np.testing.assert_allclose(poses[0] @ relative, poses, atol=1e-12)
    np.testing.assert_allclose(metrics.in_first_view(rigid(1, 40, 5, 6, 7) @ poses), relative, atol=1e-12)


def test_perfect_poses_have_no_error() -> None:
    poses = some_poses()
    rotations, directions = metrics.pair_errors(poses, poses)
    assert rotations.shape == directions.shape == (6,)
    np.testing.assert_allclose(rotations, 0, atol=1e-5)
    np.testing.assert_allclose(directions, 0, atol=1e-5)


@pytest.mark.parametrize("degrees", [0.001, 3.0, 170.0])
def test_a_turned_view_errs_in_its_pairs_by_that_angle(degrees: float) -> None:
    poses = some_poses(3)
    found = poses.copy()
    found[2] = found[2] @ rigid(1, degrees, 0, 0, 0)
    rotations, _ = metrics.pair_errors(found, poses)
    np.testing.assert_allclose(rotations, [0, degrees, degrees], rtol=1e-6, atol=1e-5)


def test_relative_errors_do_not_depend_on_frame_and_scale() -> None:
    poses = some_poses()
    found = poses @ rigid(0, 10, 0, 0, 0)
    found[:, :3, 3] += np.random.default_rng(0).normal(size=(4, 3))
    expected = metrics.pair_errors(found, poses)
    moved = rigid(2, 70, 1, 2, 3) @ found
    moved[:, :3, 3] *= 4
    for one, two in zip(metrics.pair_errors(moved, poses), expected, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


def two_views(*position: float) -> Array:
    return np.stack([np.eye(4), rigid(0, 0, *position)])


@pytest.mark.parametrize(
    ("found", "true", "degrees"),
    [
        ((5, 0, 0), (1, 0, 0), 0),
        ((1, 1, 0), (1, 0, 0), 45),
        ((0, 1, 0), (1, 0, 0), 90),
        ((-1, 0, 0), (1, 0, 0), 0),  # a line has no sign
        ((-1, 1, 0), (1, 0, 0), 45),
        ((0, 0, 0), (1, 0, 0), 90),  # no direction at all
    ],
)
def test_translation_error_is_the_angle_between_lines(found: Any, true: Any, degrees: float) -> None:
    _, directions = metrics.pair_errors(two_views(*found), two_views(*true))
    assert directions.tolist() == pytest.approx([degrees])


def test_without_a_true_baseline_there_is_no_translation_error() -> None:
    rotations, directions = metrics.pair_errors(two_views(1, 0, 0), two_views(0, 0, 0))
    assert np.isnan(directions).all()
    assert np.fmax(rotations, directions).tolist() == [0]


def test_auc() -> None:
    assert metrics.auc(np.zeros(3)) == 1
    assert metrics.auc(np.full(3, 6.0)) == 0
    assert metrics.auc(np.array([0.5, 2.5, 10])) == pytest.approx((1 / 3 + 1 / 3 + 3 * 2 / 3) / 5)
    assert metrics.auc(np.array([0.5, np.nan])) == 1
    assert np.isnan(metrics.auc(np.array([np.nan])))


@pytest.mark.slow
@given(st.lists(st.floats(0, 10, exclude_max=True).filter(lambda x: x != 5), min_size=1, max_size=30))
def test_auc_is_the_mean_of_a_cumulated_histogram(errors: list[float]) -> None:
    histogram, _ = np.histogram(errors, bins=np.arange(6))
    expected = np.mean(np.cumsum(histogram / len(errors)))
    assert metrics.auc(np.array(errors)) == pytest.approx(expected)


CROSS = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]], np.float64)


def test_trajectory_error_of_a_cross_that_is_folded() -> None:
    # The best rotation is none and the best scale 1 / (1 + h^2) = 1 / 2: every point is off by (1/2, 1/2).
    folded = CROSS + np.array([[0, 0, 1], [0, 0, 1], [0, 0, -1], [0, 0, -1]])
    assert metrics.absolute_trajectory_error(folded, CROSS) == pytest.approx(np.sqrt(0.5))


def test_trajectory_error_of_cameras_that_do_not_move_is_the_spread() -> None:
    assert metrics.absolute_trajectory_error(np.ones((4, 3)), 3 * CROSS) == pytest.approx(3)


def test_trajectory_error_does_not_see_a_similarity_but_a_mirror() -> None:
    positions = np.random.default_rng(1).normal(size=(5, 3))
    moved = 0.3 * positions @ rotation(1, 130).T + np.array([4, 5, 6])
    assert metrics.absolute_trajectory_error(moved, positions) == pytest.approx(0, abs=1e-12)
    assert metrics.absolute_trajectory_error(positions * [1, 1, -1], positions) > 0.1
    # Metres: the error grows with the truth.
    noisy = positions + 0.1
    noisy[0] += 1
    error = metrics.absolute_trajectory_error(noisy, positions)
    assert metrics.absolute_trajectory_error(noisy, 10 * positions) == pytest.approx(10 * error)


def test_mask_iou() -> None:
    found, true = np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool)
    assert metrics.mask_iou(found, true) == pytest.approx(1 / 3)
    assert metrics.mask_iou(true, true) == 1
    assert metrics.mask_iou(np.zeros(2, bool), np.zeros(2, bool)) == 1
