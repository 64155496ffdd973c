"""Geometry helpers against the reference's vectors, and their invariants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapengine.runtime import geometry

GOLDEN = np.load(Path(__file__).parents[1] / "data" / "geometry.npz")

seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=40, deadline=None)


def close(actual: np.ndarray, name: str, tolerance: float = 1e-6) -> None:
    expected = GOLDEN[name]
    assert actual.dtype == expected.dtype
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def unit_quaternions(rng: np.random.Generator, *shape: int) -> np.ndarray:
    q = rng.standard_normal((*shape, 4))
    return q / np.linalg.norm(q, axis=-1, keepdims=True)


def test_quaternions_match_the_reference() -> None:
    close(geometry.quaternion_to_matrix(GOLDEN["quat_to_mat.in"]), "quat_to_mat.out")
    close(geometry.matrix_to_quaternion(GOLDEN["mat_to_quat.in"]), "mat_to_quat.out")


def test_relative_poses_match_the_reference() -> None:
    inputs = [GOLDEN[f"rel_pose.{name}"] for name in ("q1", "t1", "q2", "t2")]
    quaternion, translation = geometry.relative_pose(*inputs)
    close(quaternion, "rel_pose.quats")
    close(translation, "rel_pose.trans", 2e-6)


def test_normalisations_match_the_reference() -> None:
    translations, factor = geometry.normalize_translations(GOLDEN["norm_trans.in"].swapaxes(0, 1))
    close(translations.swapaxes(0, 1), "norm_trans.out")
    close(factor, "norm_trans.factor")
    depth, factor = geometry.normalize_depth(GOLDEN["norm_depth.in"])
    close(depth, "norm_depth.out")
    close(factor, "norm_depth.factor")
    close(geometry.log_normalize(GOLDEN["log_norm.in"]), "log_norm.out")


@pytest.mark.parametrize("case", range(5))
def test_intrinsics_are_recovered_as_by_the_reference(case: int) -> None:
    height, width = (int(x) for x in GOLDEN[f"K_recover.{case}.hw"])
    intrinsics = GOLDEN[f"K_recover.{case}.K"]
    rays = geometry.rays_from_intrinsics(intrinsics, height, width)
    recovered = geometry.intrinsics_from_rays(rays)
    np.testing.assert_allclose(recovered, GOLDEN[f"K_recover.{case}.out"], rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(recovered, intrinsics, rtol=1e-5, atol=1e-4)


def test_rays_and_noisy_fit_match_the_reference() -> None:
    close(geometry.rays_from_intrinsics(GOLDEN["K_recover.0.K"], 28, 42), "K_recover.0.rays")
    close(geometry.intrinsics_from_rays(GOLDEN["K_recover_noisy.rays"]), "K_recover_noisy.out", 1e-5)


def test_rays_without_a_focal_length_give_finite_intrinsics() -> None:
    forward = np.broadcast_to(np.array([0, 0, 1], np.float32), (1, 14, 14, 3))
    sideways = np.broadcast_to(np.array([1, 0, 0], np.float32), (1, 14, 14, 3))
    for rays in (forward, sideways):
        recovered = geometry.intrinsics_from_rays(rays)
        assert np.isfinite(recovered).all()
        assert recovered[0, 0, 0] == 0
    assert np.isfinite(
        geometry.intrinsics_from_rays(np.broadcast_to(np.array([1, 0, 0], np.float32), (1, 1002, 1002, 3)))
    ).all()


@quick
@given(seeds)
def test_quaternion_matrix_round_trip(seed: int) -> None:
    q = unit_quaternions(np.random.default_rng(seed), 3, 2)
    matrix = geometry.quaternion_to_matrix(q)
    np.testing.assert_allclose(matrix @ matrix.swapaxes(-1, -2), np.broadcast_to(np.eye(3), matrix.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(matrix), 1, atol=1e-12)
    back = geometry.matrix_to_quaternion(matrix)
    np.testing.assert_allclose(back, q * np.where(q[..., 3:] < 0, -1, 1), atol=1e-12)
    assert (back[..., 3] >= 0).all()


@quick
@given(seeds)
def test_quaternion_product_is_the_matrix_product(seed: int) -> None:
    a, b = unit_quaternions(np.random.default_rng(seed), 2, 4)
    product = geometry.quaternion_to_matrix(geometry.quaternion_multiply(a, b))
    expected = geometry.quaternion_to_matrix(a) @ geometry.quaternion_to_matrix(b)
    np.testing.assert_allclose(product, expected, atol=1e-12)
    identity = geometry.quaternion_multiply(3 * a, geometry.quaternion_inverse(3 * a))
    np.testing.assert_allclose(identity, np.broadcast_to([0, 0, 0, 1], identity.shape), atol=1e-12)


@quick
@given(seeds)
def test_relative_poses_ignore_a_rigid_motion_of_the_world(seed: int) -> None:
    rng = np.random.default_rng(seed)
    q, t = unit_quaternions(rng, 4), rng.standard_normal((4, 3))
    move = geometry.pose_matrix(unit_quaternions(rng, 1), 100 * rng.standard_normal((1, 3)))
    moved_q, moved_t = geometry.split_pose_matrix(move @ geometry.pose_matrix(q, t))
    before = geometry.pose_matrix(*geometry.relative_pose(q[:1], t[:1], q, t))
    after = geometry.pose_matrix(*geometry.relative_pose(moved_q[:1], moved_t[:1], moved_q, moved_t))
    np.testing.assert_allclose(after, before, atol=1e-9)
    np.testing.assert_allclose(before[0], np.eye(4), atol=1e-12)


@quick
@given(seeds)
def test_rays_and_intrinsics_are_inverse(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(x) for x in rng.integers(14, 90, 2))
    intrinsics = np.zeros((2, 3, 3))
    intrinsics[:, 0, 0], intrinsics[:, 1, 1] = rng.uniform(5, 500, (2, 2))
    intrinsics[:, :2, 2] = rng.uniform(0, 1, (2, 2)) * (width, height)
    intrinsics[:, 2, 2] = 1
    rays = geometry.rays_from_intrinsics(intrinsics, height, width)
    np.testing.assert_allclose(np.linalg.norm(rays, axis=-1), 1, atol=1e-12)
    recovered = geometry.intrinsics_from_rays(rays)
    np.testing.assert_allclose(recovered, intrinsics, rtol=1e-9, atol=1e-8)
    np.testing.assert_allclose(geometry.rays_from_intrinsics(recovered, height, width), rays, atol=1e-9)


@quick
@given(seeds, st.floats(1e-3, 1e3))
def test_normalisations_remove_scale(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    depth = rng.uniform(0.1, 5, (2, 4, 5, 1)) * (rng.random((2, 4, 5, 1)) > 0.3)
    normalized, factor = geometry.normalize_depth(depth)
    again, scaled_factor = geometry.normalize_depth(depth * scale)
    np.testing.assert_allclose(again, normalized, rtol=1e-9)
    np.testing.assert_allclose(scaled_factor, factor * scale, rtol=1e-9)
    assert ((normalized == 0) == (depth == 0)).all()
    translations = rng.standard_normal((4, 2, 3))
    normalized, _ = geometry.normalize_translations(translations)
    np.testing.assert_allclose(geometry.normalize_translations(translations * scale)[0], normalized, rtol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(normalized, axis=-1).mean(axis=0), 1, rtol=1e-7)


@quick
@given(seeds)
def test_depth_along_ray_returns_the_point_at_that_depth(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rays = rng.standard_normal((2, 3, 4, 3)) + np.array([0, 0, 5])
    depth = rng.uniform(0.1, 5, (2, 3, 4)) * (rng.random((2, 3, 4)) > 0.2)
    unit = geometry.normalize_rays(rays)
    distance = geometry.depth_along_ray(depth, unit)
    assert distance.shape == (2, 3, 4, 1)
    np.testing.assert_allclose((distance * unit)[..., 2], depth, rtol=1e-6)
    np.testing.assert_array_equal(geometry.depth_along_ray(depth[..., None], unit), distance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_function_keeps_the_dtype(dtype: Any) -> None:
    q = np.array([[0.1, 0.2, 0.3, 0.9]], dtype)
    t = np.array([[1, 2, 3]], dtype)
    k = np.array([[[20, 0, 7], [0, 20, 7], [0, 0, 1]]], dtype)
    rays = geometry.rays_from_intrinsics(k, 14, 14)
    depth = np.ones((1, 14, 14, 1), dtype)
    results = [
        geometry.matrix_to_quaternion(geometry.quaternion_to_matrix(q)),
        geometry.pose_matrix(q, t),
        *geometry.relative_pose(q, t, q, t),
        *geometry.normalize_translations(t[None]),
        *geometry.normalize_depth(depth),
        geometry.log_normalize(depth),
        rays,
        geometry.normalize_rays(rays),
        geometry.depth_along_ray(depth, rays),
        geometry.intrinsics_from_rays(rays),
    ]
    assert {result.dtype for result in results} == {np.dtype(dtype)}


def test_positions_far_from_the_origin_keep_their_digits() -> None:
    q = np.array([[0, 0, 0, 1.0]])
    offset = np.array([[500_000.0, 4_000_000.0, 300.0]])
    _, relative = geometry.relative_pose(q, offset, q, offset + 0.001)
    np.testing.assert_allclose(relative, 0.001, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("fill", [np.inf, -np.inf, 2.5])
def test_filling_outside_a_mask_is_a_choice(dtype: type, fill: float) -> None:
    rng = np.random.default_rng(4)
    values = rng.choice(np.array([np.nan, np.inf, -np.inf, 0, -0.0, 3, -4], dtype), (9, 13))
    mask = rng.random((9, 13)) > 0.4
    before = values.copy()
    found = geometry.filled_outside(values, mask, fill)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found.view(np.uint8), np.where(mask, values, dtype(fill)).view(np.uint8))
    np.testing.assert_array_equal(values, before)
