"""A recorded scene is played to the node: what comes, and how right it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed; `make ros` runs the tests of the node where it is")

from mapengine.calibration.scenes import RenderedScene
from mapengine_ros.poses import OPTICAL_IN_BODY

from .robot import Robot, play, read_cloud, read_image, read_pose, running, seconds_of, write_bag


def depth_error(robot: Robot, seconds: float, truth: np.ndarray) -> float:
    """Mean relative error of the metric depth of a result, where both have one."""
    depth = read_image(robot.result(seconds))
    assert depth.shape == truth.shape
    both = np.isfinite(depth) & (truth > 0)
    assert both.mean() > 0.4
    assert not (depth[np.isfinite(depth)] <= 0).any()
    return float(np.mean(np.abs(depth - truth)[both] / truth[both]))


def pose_error(found: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Distance in metres and angle in degrees between two poses."""
    cosine = (np.trace(found[:3, :3].T @ truth[:3, :3]) - 1) / 2
    return float(np.linalg.norm(found[:3, 3] - truth[:3, 3])), float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def test_images_alone_give_depth_and_poses_in_the_frame_of_the_first_camera(
    nano: Any, scene: RenderedScene, tmp_path: Path
) -> None:
    with running(nano, window=4, keyframe_every=0) as (robot, _):
        stamps = play(write_bag(tmp_path / "bag", scene), robot, ["image", "camera_info"])
        assert stamps == [100.0, 100.5, 101.0, 101.5]
        for index, seconds in enumerate(stamps):
            assert depth_error(robot, seconds, scene.depth_z[index]) < 0.2
            confidence = robot.result(seconds, "/mapengine/camera/confidence")
            assert (read_image(confidence) >= 1).all()
            assert confidence.header.frame_id == robot.result(seconds).header.frame_id == "optical"
            info = robot.result(seconds, "/mapengine/camera/camera_info")
            assert (info.width, info.height) == (140, 112)
            np.testing.assert_allclose(info.k.reshape(3, 3), scene.intrinsics[index], rtol=0.05, atol=0.5)
            np.testing.assert_array_equal(info.p.reshape(3, 4)[:, :3], info.k.reshape(3, 3))
            pose = robot.result(seconds, "/mapengine/camera/pose")
            assert pose.header.frame_id == "reconstruction"
            truth = OPTICAL_IN_BODY @ np.linalg.inv(scene.poses[0]) @ scene.poses[index]
            metres, degrees = pose_error(read_pose(pose), truth)
            assert metres < 0.35
            assert degrees < 8


def test_all_that_is_known_gives_a_cloud_in_the_map(nano: Any, scene: RenderedScene, tmp_path: Path) -> None:
    topics = ["image", "camera_info", "depth", "pose"]
    parameters = {"depth_transport": "raw", "pose_source": "pose", "window": 4, "keyframe_every": 0}
    with running(nano, **parameters) as (robot, node):
        stamps = play(write_bag(tmp_path / "bag", scene), robot, topics)
        for index, seconds in enumerate(stamps):
            assert depth_error(robot, seconds, scene.depth_z[index]) < 0.06
            pose = robot.result(seconds, "/mapengine/camera/pose")
            assert pose.header.frame_id == "map"
            metres, degrees = pose_error(read_pose(pose), scene.poses[index])
            assert metres < 0.08
            assert degrees < 3
        message = robot.result(stamps[-1], "/mapengine/points")
        assert message.header.frame_id == "map"
        cloud = read_cloud(message)
        assert set(cloud.dtype.names or ()) == {"x", "y", "z", "rgb", "confidence"}
        assert 4 * 56 * 70 * 0.4 < len(cloud) <= 4 * 56 * 70  # every second pixel of rows and columns of four views
        assert (cloud["confidence"] >= 1).all()
        # Points are near the true surface: from the first camera most are as far as it is in their pixel.
        points = np.stack([cloud[axis] for axis in "xyz"], axis=-1).astype(np.float64)
        local = (points - scene.poses[0][:3, 3]) @ scene.poses[0][:3, :3]
        pixels = local @ scene.intrinsics[0].T
        u, v = np.rint(pixels[:, :2] / pixels[:, 2:]).astype(int).T
        seen = (local[:, 2] > 0.1) & (u >= 0) & (u < 140) & (v >= 0) & (v < 112)
        truth = scene.depth_z[0][v[seen], u[seen]]
        assert seen.mean() > 0.4
        assert np.median(np.abs(local[seen, 2] - truth) / np.maximum(truth, 0.1)) < 0.06
        # And have the colours of the images: the mean is that of the pictures.
        rgb = np.stack([cloud["rgb"] >> shift & 255 for shift in (16, 8, 0)], axis=-1)
        np.testing.assert_allclose(rgb.mean(axis=0), scene.images.mean(axis=(0, 1, 2)), atol=25)
        assert node.record.counts("camera")["used"] == 4


def test_the_node_gives_what_the_engine_gives(nano: Any, scene: RenderedScene, tmp_path: Path) -> None:
    with running(nano, window=2, keyframe_every=0) as (robot, _):
        stamps = play(write_bag(tmp_path / "bag", scene), robot, ["image", "camera_info"])
        found = read_image(robot.result(stamps[-1]))
    raw = [{"img": scene.images[i], "intrinsics": scene.intrinsics[i].astype(np.float64)} for i in (2, 3)]
    expected = nano.infer(nano.preprocess(raw))[-1]
    depth = expected["depth_z"][0, ..., 0]
    mask = expected["mask"][0, ..., 0]
    np.testing.assert_array_equal(np.isfinite(found), mask & (depth > 0))
    np.testing.assert_allclose(found[mask], depth[mask], rtol=1e-5)


def test_stamps_are_those_of_the_images(nano: Any, scene: RenderedScene, tmp_path: Path) -> None:
    with running(nano, window=1, keyframe_every=0) as (robot, _):
        stamps = play(write_bag(tmp_path / "bag", scene, begin=1234.000000001), robot, ["image", "camera_info"])
        robot.result(stamps[-1], "/mapengine/points")  # the last that is published
        for topic in ("camera/depth", "camera/confidence", "camera/camera_info", "camera/pose", "points"):
            heard = [seconds_of(message.header) for message in robot.heard[f"/mapengine/{topic}"]]
            np.testing.assert_allclose(heard, stamps, rtol=0, atol=1e-7)
