"""Results as messages of ROS."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField
from std_msgs.msg import Header

from .cameras import camera_info_fields
from .clouds import cloud_fields, image_fields
from .diagnostics import Status
from .poses import split
from .reconstructor import CameraResult, SetResult


def image_message(header: Any, values: Any) -> Image:
    """Return a 32FC1 ``Image`` of values (H, W)."""
    return Image(header=header, **_with_array(image_fields(values)))


def camera_info_message(result: CameraResult) -> CameraInfo:
    """Return the ``CameraInfo`` of the network's camera and size."""
    height, width = result.depth.shape
    return CameraInfo(header=result.header, **camera_info_fields(result.intrinsics, width, height))


def pose_message(result: CameraResult, frame: str) -> PoseStamped:
    """Return the pose of the camera's optical frame."""
    (x, y, z), (qx, qy, qz, qw) = split(result.pose)
    pose = Pose(position=Point(x=x, y=y, z=z), orientation=Quaternion(x=qx, y=qy, z=qz, w=qw))
    return PoseStamped(header=Header(stamp=result.header.stamp, frame_id=frame), pose=pose)


def cloud_message(result: SetResult, cloud: NDArray[np.void]) -> PointCloud2:
    """Return the points of a set."""
    named = _with_array(cloud_fields(cloud))
    named["fields"] = [
        PointField(name=name, offset=offset, datatype=datatype, count=count)
        for name, offset, datatype, count in named["fields"]
    ]
    return PointCloud2(header=Header(stamp=result.newest.stamp, frame_id=result.frame), **named)


def diagnostic_message(stamp: Any, node: str, statuses: list[Status]) -> DiagnosticArray:
    """Return what is said in ``/diagnostics``."""
    entries = [
        DiagnosticStatus(
            level=bytes([status.level]),
            name=f"{node}: {status.name}",
            message=status.message,
            hardware_id=node,
            values=[KeyValue(key=key, value=value) for key, value in status.values.items()],
        )
        for status in statuses
    ]
    return DiagnosticArray(header=Header(stamp=stamp), status=entries)


def _with_array(fields: dict[str, Any]) -> dict[str, Any]:
    """Bytes as what messages hold: any other sequence is checked byte by byte."""
    values = array("B")
    values.frombytes(fields["data"])
    return {**fields, "data": values}
