"""Similarity transforms are groups with exponentials, and fits find them whatever else is among the points."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapengine.runtime import InputError
from mapengine.runtime.geometry import quaternion_to_matrix
from mapengine.runtime.mapping.similarity import (
    Similarity,
    exp_matrices,
    fit_points,
    fit_robust,
    inverse_matrices,
    log_matrices,
    weighted_median,
)

Array = np.ndarray[Any, Any]
SEEDS = st.integers(0, 10**6)


def similarity(rng: np.random.Generator, scale: bool = True) -> Similarity:
    factor = float(np.exp(rng.normal())) if scale else 1.0
    return Similarity(quaternion_to_matrix(rng.normal(size=4)), 3 * rng.normal(size=3), factor)


def angle(rotation: Array) -> float:
    return float(np.linalg.norm(Similarity(rotation, np.zeros(3)).log()[:3]))


@settings(max_examples=60, deadline=None)
@given(
    seed=SEEDS,
    turn=st.one_of(st.just(0.0), st.floats(1e-12, 3.14159)),
    growth=st.one_of(st.just(0.0), st.floats(-2, 2)),
)
def test_tangents_come_back(seed: int, turn: float, growth: float) -> None:
    rng = np.random.default_rng(seed)
    axis = rng.normal(size=3)
    tangent = np.concatenate([turn * axis / np.linalg.norm(axis), rng.normal(size=3), [growth]])
    np.testing.assert_allclose(Similarity.exp(tangent).log(), tangent, atol=1e-9)


def test_exponentials_are_motions_of_constant_velocity() -> None:
    tangent = np.array([0.7, -1.1, 0.4, 1.0, 2.0, -0.5, 0.3])
    step, whole = Similarity.exp(tangent / 64), Similarity.identity()
    for _ in range(64):
        whole = whole @ step
    np.testing.assert_allclose(whole.matrix(), Similarity.exp(tangent).matrix(), atol=1e-12)


def test_half_turns_have_logarithms() -> None:
    for axis in np.vstack([np.eye(3), [[0.6, -0.8, 0.0]]]):
        half = np.diag([-1.0, -1.0, -1.0]) + 2 * np.outer(axis, axis)
        there = Similarity(half, np.array([1.0, 2.0, 3.0]), 2.0)
        np.testing.assert_allclose(Similarity.exp(there.log()).matrix(), there.matrix(), atol=1e-12)


def test_rigid_tangents_have_six_numbers_and_stacks_are_taken_at_once() -> None:
    tangents = np.random.default_rng(0).normal(size=(5, 2, 6))
    matrices = exp_matrices(tangents)
    back = log_matrices(matrices)
    np.testing.assert_allclose(back[..., :6], tangents, atol=1e-9)
    np.testing.assert_allclose(back[..., 6], 0, atol=1e-12)
    np.testing.assert_allclose(
        inverse_matrices(matrices) @ matrices, np.broadcast_to(np.eye(4), (5, 2, 4, 4)), atol=1e-12
    )


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS)
def test_similarities_are_a_group(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = similarity(rng), similarity(rng)
    points = rng.normal(size=(4, 5, 3))
    np.testing.assert_allclose((first @ second).apply(points), first.apply(second.apply(points)), atol=1e-9)
    np.testing.assert_allclose((first @ first.inverse()).matrix(), np.eye(4), atol=1e-12)
    np.testing.assert_allclose((first @ second).matrix(), first.matrix() @ second.matrix(), atol=1e-9)
    np.testing.assert_allclose(Similarity.of_matrix(first.matrix()).matrix(), first.matrix(), atol=1e-12)


def test_a_moved_camera_sees_moved_points() -> None:
    rng = np.random.default_rng(1)
    move, pose = similarity(rng), similarity(rng, scale=False)
    seen = rng.normal(size=(7, 3))
    moved = Similarity.of_pose(move.move_pose(pose.matrix()))
    np.testing.assert_allclose(moved.apply(move.scale * seen), move.apply(pose.apply(seen)), atol=1e-12)
    stack = np.stack([pose.matrix(), np.eye(4)])
    np.testing.assert_array_equal(move.move_pose(stack)[0], move.move_pose(stack[0]))


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, count=st.integers(3, 40), scale=st.booleans(), flat=st.booleans(), far=st.sampled_from([0, 1000.0]))
def test_points_without_noise_are_fitted_exactly(seed: int, count: int, scale: bool, flat: bool, far: float) -> None:
    rng = np.random.default_rng(seed)
    truth = similarity(rng, scale)
    points = rng.normal(size=(count, 3)) + far
    if flat:
        points[:, 2] = 2 * points[:, 0] - points[:, 1]
    extent = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
    found = fit_points(points, truth.apply(points), rng.uniform(0.1, 1, count), scale)
    np.testing.assert_allclose(found.apply(points), truth.apply(points), atol=1e-9 * (1 + far))
    if extent[1] > 0.1:  # else they are nearly on a line
        np.testing.assert_allclose(found.rotation, truth.rotation, atol=1e-7)
        assert found.scale == pytest.approx(truth.scale, abs=1e-7)


def test_what_points_leave_open_is_the_smallest_rotation() -> None:
    rng = np.random.default_rng(2)
    one = fit_points(np.array([[1.0, 2, 3]]), np.array([[4.0, 4, 4]]), scale=True)
    np.testing.assert_allclose(one.matrix(), [[1, 0, 0, 3], [0, 1, 0, 2], [0, 0, 1, 1], [0, 0, 0, 1]], atol=1e-12)
    line = np.linspace(-1, 2, 6)[:, None] * np.array([0.0, 0, 2])
    goal = np.linspace(-1, 2, 6)[:, None] * np.array([0.0, 3, 0]) + 5
    found = fit_points(line, goal, scale=True)
    np.testing.assert_allclose(found.apply(line), goal, atol=1e-9)
    assert angle(found.rotation) == pytest.approx(np.pi / 2, abs=1e-4)  # no turn about the line itself
    place = np.tile(rng.normal(size=3), (5, 1))
    np.testing.assert_allclose(fit_points(place, line[:5], scale=True).matrix()[:3, :3], np.eye(3), atol=1e-12)
    np.testing.assert_allclose(
        fit_points(line[:5], place, scale=True).apply(line[:5]).mean(axis=0), place[0], atol=1e-9
    )


def test_a_mirrored_set_gives_a_rotation_nevertheless() -> None:
    points = np.random.default_rng(3).normal(size=(20, 3))
    found = fit_points(points, points * np.array([1, 1, -1]), scale=True)
    assert np.linalg.det(found.rotation) == pytest.approx(1)
    assert found.scale > 0


def test_points_without_weight_are_refused() -> None:
    points = np.zeros((3, 3))
    for source, weights in ((points, np.zeros(3)), (points[:0], None)):
        with pytest.raises(InputError, match="no point"):
            fit_points(source, source, weights)


@pytest.mark.parametrize("outliers", ["scattered", "together"])
@pytest.mark.parametrize("scale", [False, True])
def test_two_fifths_of_wrong_points_change_nothing(outliers: str, scale: bool) -> None:
    for seed in range(12):
        rng = np.random.default_rng(seed)
        truth, other = similarity(rng, scale), similarity(rng, scale)
        source = rng.normal(size=(300, 3))
        target = truth.apply(source)
        wrong = rng.permutation(300)[:120]
        target[wrong] = other.apply(source[wrong]) if outliers == "together" else 5 * rng.normal(size=(120, 3))
        found = fit_robust(source, target, scale=scale)
        np.testing.assert_allclose(found.similarity.matrix(), truth.matrix(), atol=1e-6)
        assert found.inliers == pytest.approx(0.6, abs=0.02)
        assert found.weights[wrong].max() < 0.1
        assert found.residual < 1e-6


def test_robust_fits_average_noise_as_plain_ones_do() -> None:
    rng = np.random.default_rng(4)
    truth = similarity(rng)
    source = rng.normal(size=(2000, 3))
    target = truth.apply(source) + 0.01 * rng.normal(size=(2000, 3))
    plain = np.linalg.norm((fit_points(source, target, scale=True).inverse() @ truth).log())
    robust = fit_robust(source, target, scale=True)
    assert np.linalg.norm((robust.similarity.inverse() @ truth).log()) < 1.5 * plain
    assert robust.residual == pytest.approx(0.0154, rel=0.1)  # the median of three normals of 0.01
    again = fit_robust(source, target, scale=True)
    np.testing.assert_array_equal(again.similarity.matrix(), robust.similarity.matrix())


def test_the_weighted_median_has_half_of_the_weight_below_it() -> None:
    assert weighted_median(np.array([3.0, 1, 2]), np.array([1.0, 1, 1])) == 2
    assert weighted_median(np.array([3.0, 1, 2]), np.array([5.0, 1, 1])) == 3
