"""Views with random images and made-up geometry, and the comparison of predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Views = list[dict[str, Any]]


def random_views(count: int, given: str = "kdp", width: int = 42, height: int = 28, batch: int = 1) -> Views:
    """Views on a random walk of cameras; ``given`` says what is known: letters of k (camera), d (depth), p (pose)."""
    numbers = np.random.default_rng(7)
    views: Views = []
    for index in range(count):
        image = numbers.normal(size=(batch, 3, height, width)).astype(np.float32)
        view: dict[str, Any] = {"img": image, "data_norm_type": ["dinov2"]}
        if "k" in given:
            matrix = np.array([[40, 0, width / 2], [0, 44, height / 2], [0, 0, 1]], np.float32)
            view["intrinsics"] = np.repeat(matrix[None], batch, axis=0)
        if "d" in given:
            view["depth_z"] = numbers.uniform(0.5, 4, (batch, height, width)).astype(np.float32)
        if "p" in given:
            view["camera_poses"] = np.repeat(np.eye(4, dtype=np.float32)[None], batch, axis=0)
            view["camera_poses"][:, :3, 3] = numbers.normal(size=(batch, 3)) * (1 + index)
        views.append(view)
    return views


def mixed_views(count: int, width: int = 42, height: int = 28) -> Views:
    """Views of which one after the other has everything, its image only, its camera, its pose, camera and depth."""
    kept = (
        {"intrinsics", "depth_z", "camera_poses"},
        set(),
        {"intrinsics"},
        {"camera_poses"},
        {"intrinsics", "depth_z"},
    )
    views = random_views(count, width=width, height=height)
    always = {"img", "data_norm_type"}
    return [
        {key: value for key, value in view.items() if key in always | kept[index % len(kept)]}
        for index, view in enumerate(views)
    ]


def input_configuration(number: int) -> tuple[Views, dict[str, bool]]:
    """Two views and options of ``infer`` for one of the 64 combinations of: ray directions, depth, metric depth, poses,
    metric poses, each given or not, in all views or in the first one only."""
    rays, depth, depth_scale, pose, pose_scale, all_views = (bool(number >> bit & 1) for bit in range(6))
    given = ("k" if rays or depth else "") + ("d" if depth else "") + ("p" if pose else "")
    views = random_views(2, given)
    if not all_views:
        views[1] = {key: views[1][key] for key in ("img", "data_norm_type")}
    options = {
        # Depth comes with a calibration; this leaves the depth and takes the ray directions away.
        "ignore_calibration_inputs": not rays,
        "ignore_depth_scale_inputs": not depth_scale,
        "ignore_pose_scale_inputs": not pose_scale,
    }
    return views, options


def assert_close(
    found: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]], tolerance: float = 2e-5
) -> None:
    """Predictions before masks that agree; ``tolerance`` is relative to the largest value of an output in all views."""
    assert len(found) == len(expected)
    for got, want in zip(found, expected, strict=True):
        assert got.keys() == want.keys()
    for key in expected[0]:
        one, other = (np.stack([np.asarray(view[key]) for view in views]) for views in (found, expected))
        assert one.shape == other.shape, key
        assert np.isfinite(one).all(), key
        if one.dtype == bool:
            assert (one != other).mean() < 1e-3, key
        elif key != "intrinsics":  # a fit to the ray directions, which are compared
            assert np.abs(one - other).max() <= tolerance * np.abs(other).max(), key
