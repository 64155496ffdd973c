"""Messages of ROS as plain objects with the same fields: conversions read them by name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np


def header(seconds: float = 1.0, frame: str = "camera_optical") -> Any:
    """A header with a stamp."""
    nanoseconds = round(seconds * 1e9)
    return SimpleNamespace(stamp=SimpleNamespace(sec=nanoseconds // 10**9, nanosec=nanoseconds % 10**9), frame_id=frame)


def image(values: np.ndarray, encoding: str, *, padding: int = 0, big: bool = False, seconds: float = 1.0) -> Any:
    """An ``Image`` of values (H, W) or (H, W, C), with bytes behind each row, in either byte order."""
    stored = values.astype(values.dtype.newbyteorder(">" if big else "<"))
    rows = stored.reshape(len(values), -1).view(np.uint8)
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=77)
    return SimpleNamespace(
        header=header(seconds),
        height=values.shape[0],
        width=values.shape[1],
        encoding=encoding,
        step=padded.shape[1],
        is_bigendian=int(big),
        data=padded.tobytes(),
    )


def camera_info(width: int, height: int, focal: float = 100.0, /, **changes: Any) -> Any:
    """A ``CameraInfo`` of a pinhole camera with its principal point in the middle."""
    k = [focal, 0, (width - 1) / 2, 0, focal, (height - 1) / 2, 0, 0, 1.0]
    fields: dict[str, Any] = {
        "header": header(),
        "width": width,
        "height": height,
        "distortion_model": "plumb_bob",
        "d": [0.0] * 5,
        "k": k,
        "r": np.eye(3).reshape(-1).tolist(),
        "p": [*k[:3], 0, *k[3:6], 0, *k[6:], 0],
        "binning_x": 0,
        "binning_y": 0,
        "roi": SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0, do_rectify=False),
    }
    return SimpleNamespace(**{**fields, **changes})


def pose(matrix: np.ndarray) -> Any:
    """A ``Pose`` of a (4, 4) matrix."""
    from mapengine_ros.poses import split

    (x, y, z), (qx, qy, qz, qw) = split(matrix.astype(np.float64))
    return SimpleNamespace(position=SimpleNamespace(x=x, y=y, z=z), orientation=SimpleNamespace(x=qx, y=qy, z=qz, w=qw))
