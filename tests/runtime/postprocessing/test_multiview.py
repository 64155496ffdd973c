"""Multi-view confidence on scenes where it is known; the reference's vectors are in test_postprocess.py."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapengine.runtime import geometry
from mapengine.runtime.postprocessing.multiview import frustum_overlap, multiview_confidence

H, W = 28, 42
K = np.array([[[40, 0, 20.5], [0, 40, 13.5], [0, 0, 1]]], np.float32)


def camera(x: float = 0, y: float = 0, z: float = 0, turn: float = 0) -> np.ndarray:
    """A pose (1, 4, 4) at a position, turned about the vertical axis by ``turn`` degrees."""
    half = np.radians(turn) / 2
    quaternion = np.array([[0, np.sin(half), 0, np.cos(half)]], np.float32)
    return geometry.pose_matrix(quaternion, np.array([[x, y, z]], np.float32))


def wall(distance: float) -> np.ndarray:
    """Depth of a wall, with something nearer and something farther at the image's corners: a frustum with volume."""
    depth = np.full((1, H, W, 1), distance, np.float32)
    depth[0, 0, 0], depth[0, -1, -1] = distance / 2, distance * 2
    return depth


def confidence(depths: list[np.ndarray], poses: list[np.ndarray], **options: float) -> list[np.ndarray]:
    masks = [np.ones(depth.shape[:-1], bool) for depth in depths]
    return multiview_confidence(depths, [K] * len(depths), poses, masks, **options)


def test_one_view_is_trusted() -> None:
    (only,) = confidence([wall(2)], [camera()])
    assert only.shape == (1, H, W)
    assert only.dtype == np.float32
    assert (only == 1).all()


def test_views_that_agree_confirm_each_other_where_they_overlap() -> None:
    first, second = confidence([wall(2) + 0.001, wall(2)], [camera(), camera(x=1.0)])
    # At a depth of 2 the second image is the first shifted by 1 m = 20 pixels.
    np.testing.assert_array_equal(first[0, 1:-1, 20:], 1)
    np.testing.assert_array_equal(first[0, 1:-1, :19], 0)
    np.testing.assert_array_equal(second[0, 1:-1, : W - 21], 1)


def test_views_that_disagree_do_not() -> None:
    depths = [wall(2), wall(3)]
    poses = [camera(), camera(x=0.01)]
    first, _ = confidence(depths, poses)
    assert first[0, 2:-2, 2:-2].max() == 0
    assert confidence(depths, poses, depth_abs_thresh=1.1)[0][0, 2:-2, 2:-2].min() == 1
    assert confidence(depths, poses, depth_rel_thresh=0.6)[0][0, 2:-2, 2:-2].min() == 1


def test_the_share_counts_every_overlapping_view() -> None:
    depths = [wall(2), wall(2.001), wall(2.5)]
    first, *_ = confidence(depths, [camera(), camera(x=0.01), camera(x=-0.01)])
    np.testing.assert_allclose(first[0, 10:20, 10:30], 0.5)


def test_masked_and_missing_source_pixels_are_not_compared() -> None:
    depths = [wall(2), wall(2.001)]
    depths[0][0, 3, 4] = 0
    masks = [np.ones((1, H, W), bool) for _ in depths]
    masks[0][0, 5, 6] = False
    first, _ = multiview_confidence(depths, [K, K], [camera(), camera(x=0.05)], masks)
    assert first[0, 3, 4] == 0
    assert first[0, 5, 6] == 0
    assert first[0, 5, 7] == 1


def test_views_that_see_different_things_are_trusted_alone() -> None:
    depths = [wall(2), wall(2)]
    for result in confidence(depths, [camera(), camera(x=50)]) + confidence(depths, [camera(), camera(turn=180)]):
        assert (result == 1).all()


@pytest.mark.parametrize("focal", [0.0, -40.0, np.nan])
def test_degenerate_cameras_and_depth_stay_finite(focal: float) -> None:
    k = K.copy()
    k[0, 0, 0] = focal
    depths = [wall(2), 0 * wall(2), -wall(2)]
    masks = [np.ones((1, H, W), bool)] * 3
    poses = [camera(), camera(x=0.1), camera(z=0.1)]
    for result in multiview_confidence(depths, [k, K, K], poses, masks):
        assert np.isfinite(result).all()
        assert ((result >= 0) & (result <= 1)).all()


def frustum(pose: np.ndarray, near: float, far: float) -> np.ndarray:
    corners = np.array([(x, y, 1) for x, y in ((0.5, 0.4), (-0.5, 0.4), (-0.5, -0.4), (0.5, -0.4))])
    return np.concatenate([corners * near, corners * far]) @ pose[0, :3, :3].T + pose[0, :3, 3]


def test_frusta_overlap_by_containment_and_by_crossing() -> None:
    inside = frustum(camera(), 2, 3)
    corners = np.stack([frustum(camera(), 1, 10), inside * 0.9, frustum(camera(x=30), 1, 10)])
    assert frustum_overlap(corners).astype(int).tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    crossing = np.stack([frustum(camera(), 1, 10), frustum(camera(x=-5, z=5, turn=90), 1, 10)])
    assert frustum_overlap(crossing).astype(int).tolist() == [[0, 1], [1, 0]]


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_order_of_the_views_and_the_world_frame_do_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    poses = [camera(x, y, z, 40 * turn) for x, y, z, turn in rng.uniform(-1, 1, (4, 4))]
    corners = np.stack([frustum(pose.astype(float), 1, 5) for pose in poses])
    overlap = frustum_overlap(corners)
    np.testing.assert_array_equal(overlap, overlap.T)
    order = rng.permutation(4)
    np.testing.assert_array_equal(frustum_overlap(corners[order]), overlap[np.ix_(order, order)])
    quaternion = rng.standard_normal((1, 4))
    move = geometry.pose_matrix(quaternion, rng.standard_normal((1, 3)))[0]
    np.testing.assert_array_equal(frustum_overlap(corners @ move[:3, :3].T + move[:3, 3]), overlap)

    depths = [wall(rng.uniform(1, 3)) for _ in range(4)]
    results = confidence(depths, poses)
    shuffled = confidence([depths[i] for i in order], [poses[i] for i in order])
    for position, index in enumerate(order):
        np.testing.assert_array_equal(shuffled[position], results[index])
        assert ((results[index] >= 0) & (results[index] <= 1)).all()
