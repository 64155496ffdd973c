"""``CameraInfo`` as what the network takes: a pinhole camera, or rays; images of other lenses are undistorted.

The formulas are those of the runtime (``mapengine.runtime.inputs.lenses``), which are OpenCV's and so ROS's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapengine.runtime import InputError
from mapengine.runtime.inputs.checks import camera_intrinsics
from mapengine.runtime.inputs.lenses import Lens, Undistortion, scaled_camera

Array = NDArray[Any]

_MODELS = {"": 0, "plumb_bob": 5, "rational_polynomial": 8, "equidistant": 4, "fisheye": 4}
"""Coefficients of each distortion model that is read; missing ones at the end are 0."""


@dataclass(frozen=True)
class Camera:
    """A camera as its ``CameraInfo`` describes it, for images of one size.

    Attributes:
        intrinsics: (3, 3) float64, pixels of the image as it is published, pixel centres at integers.
        size: (W, H) of that image.
        lens: how it departs from a pinhole; None where it does not.
    """

    intrinsics: Array
    size: tuple[int, int]
    lens: Lens | None = None

    @cached_property
    def _undistortion(self) -> Undistortion:
        assert self.lens is not None
        return Undistortion.of(self.lens, self.intrinsics, self.size)

    @cached_property
    def _rays(self) -> Array:
        assert self.lens is not None
        return self.lens.rays(self.intrinsics, self.size)

    def view(self, pixels: NDArray[np.uint8], depth: NDArray[np.float32] | None = None) -> dict[str, Any]:
        """Return an image and its depth as a view of ``mapengine.runtime``, with what is known of the camera.

        Args:
            pixels: (H, W, 3) RGB.
            depth: (H, W) metres, of the same pixels, or None.

        Raises:
            InputError: the image has another size than the ``CameraInfo``, or the distortion has no inverse.
        """
        size = pixels.shape[1], pixels.shape[0]
        if size != self.size:
            raise InputError(
                f"CameraInfo is of an image of {self.size[0]}x{self.size[1]} pixels, but the image has "
                f"{size[0]}x{size[1]}; publish the CameraInfo of this image"
            )
        view: dict[str, Any] = {"img": pixels, "intrinsics": self.intrinsics}
        if self.lens is not None and self.lens.fisheye:
            view = {"img": pixels, "ray_directions": self._rays}
        elif self.lens is not None:
            view = {"img": self._undistortion.image(pixels), "intrinsics": self._undistortion.intrinsics}
            depth = None if depth is None else self._undistortion.nearest(depth)
        if depth is not None:
            view["depth_z"] = depth
        return view


def read_camera(info: Any, rectified: bool) -> Camera | None:
    """Return the camera of a ``CameraInfo``; None where it says that the camera is not calibrated (K[0] is 0).

    Args:
        info: the message. Binning and the region of interest are applied.
        rectified: the images are rectified already: P counts, and the distortion does not. Otherwise K and D count.

    Raises:
        InputError: a distortion model that is not read, or numbers that no camera has.
    """
    matrix = np.array(info.p if rectified else info.k, np.float64).reshape(3, -1)[:, :3]
    if matrix[0, 0] == 0:
        return None
    matrix = camera_intrinsics(matrix, (), f"CameraInfo: {'P' if rectified else 'K'}", np.float64)
    roi = info.roi
    size = (int(roi.width) or int(info.width), int(roi.height) or int(info.height))
    if min(size) < 1:
        raise InputError(f"CameraInfo is of an image of {size[0]}x{size[1]} pixels; give its width and height")
    matrix[:2, 2] -= (roi.x_offset, roi.y_offset)
    binned = size[0] // max(int(info.binning_x), 1), size[1] // max(int(info.binning_y), 1)
    if binned != size:
        matrix = scaled_camera(matrix, size, binned).astype(np.float64)
    lens = None if rectified else _lens(info)
    return Camera(matrix, binned, None if lens is None or lens.is_pinhole else lens)


def _lens(info: Any) -> Lens | None:
    model, given = info.distortion_model, [float(value) for value in info.d]
    if not any(given) and model not in ("equidistant", "fisheye"):
        return None
    if model not in _MODELS:
        names = ", ".join(name for name in _MODELS if name)
        raise InputError(
            f"CameraInfo has the distortion model {model!r}, and read are {names}; publish rectified images and set "
            "the parameter rectified"
        )
    if len(given) > _MODELS[model] or not np.isfinite(given).all():
        raise InputError(
            f"CameraInfo: D has {len(given)} numbers, {model or 'no model'} has up to {_MODELS[model]}, all finite"
        )
    d = given + [0.0] * (_MODELS[model] - len(given))
    if model in ("equidistant", "fisheye"):
        return Lens(model, radial=tuple(d), fisheye=True)
    return Lens(model, radial=(d[0], d[1], d[4]), denominator=tuple(d[5:]), tangential=(d[2], d[3]))


def camera_info_fields(intrinsics: Array, width: int, height: int) -> dict[str, Any]:
    """Return the fields of the ``CameraInfo`` of a pinhole camera with ``intrinsics`` (3, 3) for W x H pixels."""
    matrix = intrinsics.astype(np.float64)
    projection = np.concatenate([matrix, np.zeros((3, 1))], axis=1)
    return {
        "height": height,
        "width": width,
        "distortion_model": "plumb_bob",
        "d": [0.0] * 5,
        "k": matrix.reshape(-1),
        "r": np.eye(3).reshape(-1),
        "p": projection.reshape(-1),
    }
