"""Poses of messages and of TF: camera axes (REP 103), and where the camera sits on what the pose is of.

``tf2_ros`` comes with ROS 2, but not with its packages on PyPI: it is imported where poses are asked of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapengine.runtime import InputError
from mapengine.runtime.geometry import matrix_to_quaternion, pose_matrix
from mapengine.runtime.inputs.checks import camera_pose

Array = NDArray[np.float64]

_UNIT = 1e-2  # that the length of a quaternion may be off 1: what is farther off is no rounding

OPTICAL_IN_BODY: Array = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], np.float64)
"""The optical frame (x right, y down, z forward) in body axes (x forward, y left, z up), as REP 103 has both."""


def matrix_of(position: Sequence[float] | Array, quaternion: Sequence[float] | Array, where: str = "the pose") -> Array:
    """Return the (4, 4) float64 matrix of a position and a quaternion xyzw.

    Raises:
        InputError: not finite, or a quaternion that is not of length 1, as one that nobody has filled.
    """
    turn, place = np.array(quaternion, np.float64), np.array(position, np.float64)
    length = float(np.linalg.norm(turn))
    if not abs(length - 1) < _UNIT:
        raise InputError(f"{where} has a quaternion of length {length:g}; it must be 1, as (0, 0, 0, 1) is")
    return np.asarray(pose_matrix(*camera_pose((turn, place), (), where)), np.float64)


def read_pose(pose: Any, where: str = "the pose") -> Array:
    """Return the (4, 4) matrix of a ``geometry_msgs/Pose``; errors as :func:`matrix_of`."""
    p, q = pose.position, pose.orientation
    return matrix_of([p.x, p.y, p.z], [q.x, q.y, q.z, q.w], where)


def read_transform(transform: Any, where: str = "the transform") -> Array:
    """Return the (4, 4) matrix of a ``geometry_msgs/Transform``; errors as :func:`matrix_of`."""
    p, q = transform.translation, transform.rotation
    return matrix_of([p.x, p.y, p.z], [q.x, q.y, q.z, q.w], where)


def split(matrix: Array) -> tuple[list[float], list[float]]:
    """Return position and quaternion xyzw of a (4, 4) matrix."""
    return matrix[:3, 3].tolist(), matrix_to_quaternion(matrix[:3, :3].astype(np.float64)).tolist()


def mounts(values: Sequence[float], cameras: int) -> list[Array]:
    """Return per camera the (4, 4) pose of its optical frame in the frame that its pose is of.

    Args:
        values: 7 numbers per camera, x y z and a quaternion xyzw; none: the poses are of the optical frames.
        cameras: how many there are.

    Raises:
        InputError: another count of numbers, or no poses.
    """
    if not values:
        return [np.eye(4)] * cameras
    if len(values) != 7 * cameras:
        raise InputError(
            f"camera_mounts has {len(values)} numbers; give 7 for each of {cameras} cameras (x y z, quaternion xyzw)"
        )
    rows = np.array(values, np.float64).reshape(cameras, 7)
    return [matrix_of(row[:3], row[3:], f"camera_mounts of camera {index}") for index, row in enumerate(rows)]


class TfPoses:
    """Where camera frames are in a fixed frame, as TF has it."""

    def __init__(self, node: Any, frame: str) -> None:
        """Listen to TF.

        Args:
            node: of rclpy.
            frame: the fixed frame, such as odom.

        Raises:
            InputError: ``tf2_ros`` is not installed.
        """
        try:
            import tf2_ros
        except ImportError as error:
            raise InputError(
                f"pose_source is tf, but tf2_ros cannot be imported ({error}); install it with ROS 2, or take poses "
                "from a topic"
            ) from error
        self._buffer = tf2_ros.Buffer(node=node)
        self._listener = tf2_ros.TransformListener(self._buffer, node)
        self._error: type[Exception] = tf2_ros.TransformException
        self._frame = frame

    def pose(self, frame: str, stamp: Any) -> Array:
        """Return the (4, 4) pose of a frame at the time of a header's stamp.

        Raises:
            InputError: TF does not know it.
        """
        from rclpy.time import Time

        try:
            found = self._buffer.lookup_transform(self._frame, frame, Time.from_msg(stamp))
        except self._error as error:
            raise InputError(f"TF has no transform from {frame!r} to {self._frame!r}: {error}") from error
        return read_transform(found.transform, f"the transform of {frame}")
