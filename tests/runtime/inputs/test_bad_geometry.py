"""Calibration, depth and poses that are wrong or extreme: a typed one-sentence error, or a correct result."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mapengine.runtime import (
    Engine,
    ImageReadError,
    InputError,
    preprocess_inputs,
)

from ...refusals import (
    DEPTH,
    EYE,
    PIXELS,
    RAYS,
    SIZE,
    SMALL_DEPTH,
    SMALL_K,
    K,
    finite,
    matrix,
    pose,
    refused,
    view,
)

# Calibration


@pytest.mark.parametrize(
    ("intrinsics", "words"),
    [
        (matrix(fx=np.nan), "NaN"),
        (matrix(cy=np.inf), "NaN or infinite"),
        (matrix(fx=-50), "focal length -50|positive, in pixels"),
        (matrix(fy=0), "focal length 0|positive"),
        (matrix(fx=0.9, fy=0.9, cx=0.5, cy=0.5), "in pixels, not as a fraction"),
        (matrix(fx=1e30), "focal length 1e+30|no camera"),
        (matrix(cx=1e7), "principal point|no camera"),
        (K.swapaxes(1, 2), "is it transposed"),
        (K[0], "(3, 3)|(1, 3, 3)"),
        (np.zeros((1, 4, 4)), "(1, 4, 4)|(1, 3, 3)"),
        ("K.txt", "numbers"),
        (K.astype(object), "object"),
        ([[1, 2], [3]], "not a rectangular array"),
    ],
)
def test_intrinsics_that_infer_refuses(small: Engine, intrinsics: Any, words: str) -> None:
    refused(InputError, "view 1: intrinsics|" + words, lambda: small.infer([view(), view(intrinsics=intrinsics)]))


@pytest.mark.parametrize(
    ("intrinsics", "words"),
    [
        ([np.nan, 40, 20, 15], "view 0: intrinsics|NaN"),
        ([-40, 40, 20, 15], "view 0: intrinsics|-40|positive"),
        ([0.8, 0.8, 0.5, 0.5], "view 0: intrinsics|pixels, not as a fraction"),
        ([1e30, 40, 20, 15], "view 0: intrinsics|1e+30|no camera"),
        ([40, 40, 1e5, 15], "view 0: intrinsics|principal point|40x30|scale it"),
        ("missing.txt", "view 0: intrinsics|missing.txt|cannot be read"),
        ([K[0], K[0]], "intrinsics has 2 entries for 1 images"),
        (5, "intrinsics is a int|one entry (or None) per view"),
        ([object()], "view 0: intrinsics|object"),
    ],
)
def test_intrinsics_that_reconstruct_refuses(small: Engine, intrinsics: Any, words: str) -> None:
    refused(InputError, words, lambda: small.reconstruct([PIXELS], intrinsics, size=SIZE))


@pytest.mark.parametrize(
    "intrinsics", [matrix(fx=1e6, fy=1e6), matrix(cx=1e5), matrix(cx=-300, cy=900), matrix(fx=2, fy=2)]
)
def test_extreme_cameras_stay_finite(small: Engine, intrinsics: np.ndarray) -> None:
    assert finite(small.infer([view(intrinsics=intrinsics, depth_z=DEPTH)]))


def test_contradicting_and_missing_calibration(small: Engine) -> None:
    refused(
        InputError,
        "view 1|both intrinsics and ray_directions|only one",
        lambda: small.infer([view(), view(intrinsics=K, ray_directions=RAYS)]),
    )
    refused(InputError, "view 0|depth_z|add intrinsics", lambda: small.infer([view(depth_z=DEPTH)]))
    refused(InputError, "view 0|depth|intrinsics", lambda: small.reconstruct([PIXELS], depths=[SMALL_DEPTH]))
    raw = {"img": PIXELS, "intrinsics": np.eye(3), "ray_directions": np.ones((30, 40, 3))}
    refused(InputError, "view 0|both intrinsics and ray_directions", lambda: preprocess_inputs([raw]))


@pytest.mark.parametrize(
    ("rays", "words"),
    [
        (RAYS * 0, "length 0|unit vectors"),
        (RAYS * np.float32(1e38), "unit vectors"),
        (RAYS * np.nan, "NaN"),
        (RAYS[0], "(42, 56, 3)|(1, 42, 56, 3)"),
    ],
)
def test_rays_that_infer_refuses(small: Engine, rays: Any, words: str) -> None:
    refused(InputError, "view 0: ray_directions|" + words, lambda: small.infer([view(ray_directions=rays)]))


# Depth


@pytest.mark.parametrize(
    ("depth", "words"),
    [
        (DEPTH[:, 1:], "(1, 41, 56)|(1, 42, 56)"),
        (-DEPTH, "negative|0 where depth is missing"),
        (DEPTH * np.nan, "NaN|0 where depth is missing"),
        (np.where(DEPTH > 1.5, np.inf, DEPTH), "infinite|0 where"),
        (DEPTH.astype(np.float64) * 1e300, "infinite|0 where"),
        (DEPTH * np.float32(1e38), "no distance|0 where"),
        ((DEPTH * 1000).astype(np.uint16), "uint16|divide millimetres by 1000"),
        (DEPTH > 0, "bool"),
        (DEPTH.astype(object), "object"),
        (np.ma.masked_array(DEPTH, DEPTH > 1.5), "masked array|filled(0)"),
    ],
)
def test_depth_that_infer_refuses(small: Engine, depth: Any, words: str) -> None:
    refused(InputError, "view 0: depth_z|" + words, lambda: small.infer([view(intrinsics=K, depth_z=depth)]))


def test_depth_behind_the_camera(small: Engine) -> None:
    backwards = view(ray_directions=-RAYS, depth_z=DEPTH)
    refused(InputError, "view 0: depth_z|sideways or backwards", lambda: small.infer([backwards]))


@pytest.mark.parametrize(
    ("depth", "words"),
    [
        (SMALL_DEPTH.T, "view 0: depth|(40, 30)|resize it to the image"),
        (-SMALL_DEPTH, "view 0: depth is negative"),
        ((SMALL_DEPTH * 1000).astype(np.uint16), "view 0: depth|divide millimetres"),
        (SMALL_DEPTH * np.float32(1e38), "view 0: depth reaches|no distance"),
        ("far.png", "view 0: depth|far.png|no such file"),
    ],
)
def test_depth_that_reconstruct_refuses(small: Engine, depth: Any, words: str) -> None:
    error = ImageReadError if isinstance(depth, str) else InputError
    refused(error, words, lambda: small.reconstruct([PIXELS], SMALL_K, depths=[depth], size=SIZE))


def test_maps_without_any_depth(small: Engine) -> None:
    """All zero is a legitimate map of a camera that saw nothing; NaN and infinity mean the same in files and arrays."""
    assert finite(small.infer([view(intrinsics=K, depth_z=DEPTH * 0), view()]))
    nothing = small.reconstruct([PIXELS], SMALL_K, depths=[SMALL_DEPTH * 0], size=SIZE)
    for value in (np.nan, np.inf):
        scene = small.reconstruct([PIXELS], SMALL_K, depths=[SMALL_DEPTH * np.float32(value)], size=SIZE)
        np.testing.assert_array_equal(scene.points, nothing.points)


@pytest.mark.parametrize("factor", [1e-44, 1e-30, 1e-6, 1e6, 1e8])
def test_extreme_depth_stays_finite(small: Engine, factor: float) -> None:
    assert finite(small.infer([view(intrinsics=K, depth_z=DEPTH * np.float32(factor))]))
    single = np.zeros_like(DEPTH)
    single[0, 3, 4] = factor
    assert finite(small.infer([view(intrinsics=K, depth_z=single)]))


# Poses


@pytest.mark.parametrize(
    ("poses", "words"),
    [
        (pose(rotation=np.diag([2, 2, 2])), "off orthonormal|remove scale or shear"),
        (pose(rotation=np.zeros((3, 3))), "off orthonormal"),
        (pose(rotation=np.diag([1, 1, -1])), "mirrors (determinant -1)|right-handed"),
        (pose(rotation=[[0, 1, 0], [1, 0, 0], [0, 0, 1]]), "mirrors"),
        (pose(x=np.nan), "NaN"),
        (pose(x=1e300), "1e+300 from the origin|metres"),
        (pose(3).swapaxes(1, 2), "last row|transposed"),
        (EYE[:, :3], "(1, 3, 4)|(1, 4, 4)"),
        (EYE[0], "(4, 4)|(1, 4, 4)"),
        ((np.zeros((1, 4)), np.zeros((1, 3))), "length 0|unit quaternions in xyzw"),
        ((np.ones((1, 4)), np.full((1, 3), 1e20)), "from the origin"),
        ((np.ones((1, 3)), np.ones((1, 4))), "has shapes (1, 3) and (1, 4)|quaternions (1, 4)"),
        (("a", "b"), "numbers"),
        (3, "()|(1, 4, 4)"),
    ],
)
def test_poses_that_infer_refuses(small: Engine, poses: Any, words: str) -> None:
    views = [view(camera_poses=EYE), view(camera_poses=poses)]
    refused(InputError, "view 1: camera_poses|" + words, lambda: small.infer(views))


def test_a_pose_on_view_1_only(small: Engine) -> None:
    words = "view 1|camera_poses|view 0, the reference, has none|posed view first"
    refused(InputError, words, lambda: small.infer([view(), view(camera_poses=EYE)]))
    refused(InputError, words, lambda: small.reconstruct([PIXELS, PIXELS], poses=[None, np.eye(4)], size=SIZE))
    assert finite(small.infer([view(camera_poses=EYE), view()]))


@pytest.mark.parametrize(
    ("poses", "words"),
    [
        ([np.diag([1, 1, -1, 1])], "view 0: pose|mirrors"),
        ([np.eye(3)], "view 0: pose|(3, 3)|4x4"),
        ([np.full((4, 4), np.nan)], "view 0: pose|NaN"),
        ([np.eye(4)] * 2, "poses has 2 entries for 1 images"),
        ("missing.txt", "view 0: pose|missing.txt|cannot be read"),
        (object(), "poses is a object"),
    ],
)
def test_poses_that_reconstruct_refuses(small: Engine, poses: Any, words: str) -> None:
    refused(InputError, words, lambda: small.reconstruct([PIXELS], poses=poses, size=SIZE))


@pytest.mark.parametrize("distance", [0, 1e-30, 1e-7, 1e7, 1e12])
def test_extreme_positions_stay_finite(small: Engine, distance: float) -> None:
    assert finite(small.infer([view(camera_poses=pose()), view(camera_poses=pose(distance))]))
    assert finite(small.infer([view(camera_poses=pose(distance)), view(camera_poses=pose(distance))]))


def test_far_from_the_origin_is_the_same_scene(small: Engine) -> None:
    near = small.infer([view(camera_poses=pose(0)), view(camera_poses=pose(0.5))])
    far = small.infer([view(camera_poses=pose(1e7)), view(camera_poses=pose(1e7 + 0.5))])
    for a, b in zip(near, far, strict=True):
        np.testing.assert_allclose(a["pts3d"], b["pts3d"], atol=1e-5)
