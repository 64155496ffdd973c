"""The other forms in which images, depth and poses come."""

from __future__ import annotations

import io
import time
from array import array
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture

pytest.importorskip("rclpy", reason="rclpy is not installed; `make ros` runs the tests of the node where it is")

from geometry_msgs.msg import Point, Pose, PoseStamped, PoseWithCovariance, Quaternion
from nav_msgs.msg import Odometry
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header

from mapengine.calibration.scenes import RenderedScene
from mapengine_ros.poses import split

from .robot import Robot, image_message, info_message, read_image, read_pose, running, stamp

WINDOW: dict[str, Any] = {"window": 2, "keyframe_every": 0}


def png(values: np.ndarray, seconds: float, form: str, head: bytes = b"") -> CompressedImage:
    """A ``CompressedImage`` of values (H, W) or (H, W, 3), without loss."""
    file = io.BytesIO()
    Picture.fromarray(values).save(file, "png")
    header = Header(stamp=stamp(seconds), frame_id="optical")
    return CompressedImage(header=header, format=form, data=array("B", head + file.getvalue()))


def pose_of(matrix: np.ndarray) -> Pose:
    """A (4, 4) matrix as a message."""
    (x, y, z), (qx, qy, qz, qw) = split(matrix.astype(np.float64))
    return Pose(position=Point(x=x, y=y, z=z), orientation=Quaternion(x=qx, y=qy, z=qz, w=qw))


def results(robot: Robot, stamps: list[float]) -> list[np.ndarray]:
    """Depth of every image."""
    return [read_image(robot.result(seconds)) for seconds in stamps]


def test_compressed_images_depth_and_odometry_give_what_plain_ones_give(nano: Any, scene: RenderedScene) -> None:
    stamps = [10.0, 10.5]
    millimetres = np.rint(scene.depth_z * 1000).astype(np.uint16)
    plain = {"depth_transport": "raw", "pose_source": "pose", **WINDOW}
    with running(nano, **plain) as (robot, _):
        for view, seconds in enumerate(stamps):
            robot.say("/camera/camera_info", info_message(scene.intrinsics[view], (140, 112), seconds))
            header = Header(stamp=stamp(seconds), frame_id="odom")
            robot.say("/camera/pose", PoseStamped(header=header, pose=pose_of(scene.poses[view])))
            robot.say("/camera/depth", image_message(millimetres[view], "16UC1", seconds))
            robot.say("/camera/image", image_message(scene.images[view], "rgb8", seconds))
            robot.result(seconds)
        expected = results(robot, stamps)
        pose = robot.result(stamps[-1], "/mapengine/camera/pose")
    other = {"image_transport": "compressed", "depth_transport": "compressed", "pose_source": "odometry", **WINDOW}
    with running(nano, **other) as (robot, node):
        for view, seconds in enumerate(stamps):
            robot.say("/camera/camera_info", info_message(scene.intrinsics[view], (140, 112), seconds))
            header = Header(stamp=stamp(seconds), frame_id="odom")
            odometry = Odometry(header=header, pose=PoseWithCovariance(pose=pose_of(scene.poses[view])))
            robot.say("/camera/odometry", odometry)
            depth = png(millimetres[view], seconds, "16UC1; compressedDepth png", bytes(12))
            robot.say("/camera/depth/compressedDepth", depth)
            robot.say("/camera/image/compressed", png(scene.images[view], seconds, "rgb8; png compressed rgb8"))
            robot.result(seconds)
        for found, want in zip(results(robot, stamps), expected, strict=True):
            np.testing.assert_array_equal(found, want)
        other_pose = robot.result(stamps[-1], "/mapengine/camera/pose")
        assert other_pose.header.frame_id == pose.header.frame_id == "odom"
        np.testing.assert_array_equal(read_pose(other_pose), read_pose(pose))
        assert node.record.counts("camera") == {"received": 2, "used": 2}


def test_depth_that_stops_is_done_without_after_the_timeout(nano: Any, scene: RenderedScene) -> None:
    with running(nano, depth_transport="raw", timeout=0.4, window=1, keyframe_every=0) as (robot, node):
        for index in range(5):
            seconds = 10 + index / 4
            robot.say("/camera/camera_info", info_message(scene.intrinsics[0], (140, 112), seconds))
            if index == 0:
                robot.say("/camera/depth", image_message(scene.depth_z[0], "32FC1", seconds))
            robot.say("/camera/image", image_message(scene.images[0], "rgb8", seconds))
            if index == 0:
                given = read_image(robot.result(seconds))
            time.sleep(0.25)
        alone = read_image(robot.result(11.0))
        both = np.isfinite(given) & np.isfinite(alone) & (scene.depth_z[0] > 0)

        def error(depth: np.ndarray) -> float:
            return float(np.mean(np.abs(depth - scene.depth_z[0])[both] / scene.depth_z[0][both]))

        assert error(given) < 0.05 < error(alone) + 0.03
        assert not np.array_equal(given[both], alone[both])

        def said() -> Any:  # between the end of depth and that of the images
            entries = (status for message in robot.heard["/diagnostics"] for status in message.status)
            wanted = (status for status in entries if status.name == "mapengine: camera" and status.level == b"\x01")
            return next((status for status in wanted if "depth" in status.message), None)

        robot.wait(said, "a warning that depth has stopped")
        assert node.record.counts("camera")["used"] >= 2
