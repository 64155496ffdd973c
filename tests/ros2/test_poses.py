"""Poses of messages, where cameras sit, and TF by a stand-in: ``tf2_ros`` is on no machine of ours."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mapengine.runtime import InputError
from mapengine_ros.poses import OPTICAL_IN_BODY, TfPoses, matrix_of, mounts, read_pose, split

from .plain_messages import pose


def test_a_pose_is_read_back() -> None:
    turn = matrix_of([1, 2, 3], [0.5, 0.5, 0.5, 0.5])
    np.testing.assert_allclose(turn[:3, :3], [[0, 0, 1], [1, 0, 0], [0, 1, 0]], atol=1e-12)
    np.testing.assert_allclose(read_pose(pose(turn)), turn, atol=1e-12)
    position, quaternion = split(turn)
    np.testing.assert_allclose([*position, *quaternion], [1, 2, 3, 0.5, 0.5, 0.5, 0.5])


def test_optical_axes_in_body_axes() -> None:
    forward, right, down = OPTICAL_IN_BODY[:3, 2], OPTICAL_IN_BODY[:3, 0], OPTICAL_IN_BODY[:3, 1]
    np.testing.assert_array_equal([forward, right, down], [[1, 0, 0], [0, -1, 0], [0, 0, -1]])


@pytest.mark.parametrize("quaternion", [[0, 0, 0, 0], [0, 0, 0, 2], [float("nan"), 0, 0, 1]])
def test_a_quaternion_that_nobody_filled_is_refused(quaternion: list[float]) -> None:
    with pytest.raises(InputError, match="has a quaternion of length"):
        matrix_of([0, 0, 0], quaternion)


def test_a_position_that_is_no_number_is_refused() -> None:
    with pytest.raises(InputError, match="the pose"):
        matrix_of([float("inf"), 0, 0], [0, 0, 0, 1])


def test_mounts_are_one_pose_per_camera() -> None:
    np.testing.assert_array_equal(mounts((), 2), [np.eye(4)] * 2)
    one, two = mounts((1, 0, 0, 0, 0, 0, 1, 0, 2, 0, 0, 0, 0, 1), 2)
    assert (one[0, 3], two[1, 3]) == (1, 2)
    with pytest.raises(InputError, match="camera_mounts has 7 numbers; give 7 for each of 2 cameras"):
        mounts((0, 0, 0, 0, 0, 0, 1), 2)


def test_without_tf2_poses_of_tf_are_refused() -> None:
    with pytest.raises(InputError, match="tf2_ros cannot be imported"):
        TfPoses(None, "odom")


def test_poses_of_tf(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unknown(Exception):
        pass

    class Buffer:
        def __init__(self, node: Any) -> None:
            self.node = node

        def lookup_transform(self, target: str, source: str, time: Any) -> Any:
            if source != "optical":
                raise Unknown("frame does not exist")
            assert (target, time) == ("odom", "stamp as time")
            place = SimpleNamespace(x=1.0, y=2.0, z=3.0)
            return SimpleNamespace(
                transform=SimpleNamespace(translation=place, rotation=SimpleNamespace(x=0.0, y=0.0, z=0.0, w=1.0))
            )

    tf2, rclpy, rclpy_time = ModuleType("tf2_ros"), ModuleType("rclpy"), ModuleType("rclpy.time")
    vars(tf2).update(Buffer=Buffer, TransformListener=lambda buffer, node: buffer, TransformException=Unknown)
    vars(rclpy_time).update(Time=SimpleNamespace(from_msg=lambda stamp: f"{stamp} as time"))
    for module in (tf2, rclpy, rclpy_time):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    poses = TfPoses("node", "odom")
    np.testing.assert_array_equal(poses.pose("optical", "stamp")[:3, 3], [1, 2, 3])
    with pytest.raises(InputError, match="TF has no transform from 'other' to 'odom': frame does not exist"):
        poses.pose("other", "stamp")
