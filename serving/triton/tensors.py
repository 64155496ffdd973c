"""The tensors of the two models: names, types and shapes, from which configurations, checks and the README are made.

The first axis of every tensor is that of the views, V. H and W are pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mapengine.runtime.options import OUTPUTS

_DTYPES = {"UINT8": np.uint8, "BOOL": np.bool_, "FP32": np.float32, "FP64": np.float64, "BYTES": np.object_}


@dataclass(frozen=True)
class Tensor:
    """A tensor of a model.

    Attributes:
        name: as in views and predictions of ``infer``, where it is there.
        dtype: in the words of Triton's protocol: ``FP32``, ``UINT8``, ``BOOL``, ``BYTES`` ...
        axes: what each axis is: V, H, W, or its length.
        about: what it is, in a few words.
        optional: whether a request may leave it out.
    """

    name: str
    dtype: str
    axes: tuple[str | int, ...]
    about: str
    optional: bool = False

    @property
    def dims(self) -> tuple[int, ...]:
        """Lengths of the axes, -1 where a request chooses."""
        return tuple(axis if isinstance(axis, int) else -1 for axis in self.axes)

    @property
    def config_type(self) -> str:
        """The type as configurations write it."""
        return f"TYPE_{'STRING' if self.dtype == 'BYTES' else self.dtype}"

    @property
    def numpy_type(self) -> npt.DTypeLike:
        """The type of the array that holds it."""
        return _DTYPES[self.dtype]


_PIXELS = ("V", "H", "W")

IMAGES = Tensor("images", "UINT8", (*_PIXELS, 3), "RGB, of a size that the bundle serves")
FILES = Tensor("files", "BYTES", ("V",), "the bytes of a JPEG or PNG file; sizes may differ")

PER_VIEW = (
    Tensor("intrinsics", "FP32", ("V", 3, 3), "pixels, pixel centres at integers"),
    Tensor("ray_directions", "FP32", (*_PIXELS, 3), "unit rays in the camera's frame, in place of intrinsics"),
    Tensor("depth_z", "FP32", _PIXELS, "metres, 0 where unknown; needs intrinsics or rays"),
    Tensor("camera_poses", "FP64", ("V", 4, 4), "camera-to-world, OpenCV axes"),
)
"""What may be known of some views and not of others; ``has_NAME`` says of which."""

GEOMETRY = (
    *(Tensor(t.name, t.dtype, t.axes, t.about, optional=True) for t in PER_VIEW),
    Tensor("is_metric_scale", "BOOL", ("V",), "whether depth and pose are in metres; true unless given", optional=True),
    Tensor("mask", "BOOL", _PIXELS, "true where the view counts; all of it unless given", optional=True),
    *(
        Tensor(f"has_{t.name}", "BOOL", ("V",), f"which views have {t.name}; all unless given", optional=True)
        for t in PER_VIEW
    ),
)
"""What both models take beside images, all of it optional."""

_MAP = "FP32", _PIXELS
_RESULTS: dict[str, Tensor] = {
    tensor.name: tensor
    for tensor in (
        Tensor("pts3d", "FP32", (*_PIXELS, 3), "points in the world's frame, metres"),
        Tensor("pts3d_cam", "FP32", (*_PIXELS, 3), "points in the camera's frame, metres"),
        Tensor("ray_directions", "FP32", (*_PIXELS, 3), "unit rays"),
        Tensor("depth_along_ray", "FP32", (*_PIXELS, 1), "metres"),
        Tensor("cam_trans", "FP32", ("V", 3), "position of the camera, metres"),
        Tensor("cam_quats", "FP32", ("V", 4), "its rotation, xyzw"),
        Tensor("metric_scaling_factor", "FP32", ("V", 1), "metres per unit of the network"),
        Tensor("conf", *_MAP, "confidence"),
        Tensor("non_ambiguous_mask", "BOOL", _PIXELS, "pixels whose geometry is defined"),
        Tensor("non_ambiguous_mask_logits", *_MAP, "what that mask is made of"),
        Tensor("img_no_norm", "FP32", (*_PIXELS, 3), "the image that the network saw, 0 to 1"),
        Tensor("depth_z", "FP32", (*_PIXELS, 1), "metres"),
        Tensor("intrinsics", "FP32", ("V", 3, 3), "pixels"),
        Tensor("camera_poses", "FP32", ("V", 4, 4), "camera-to-world"),
        Tensor("mask", "BOOL", (*_PIXELS, 1), "pixels with points"),
    )
}
RESULTS = tuple(_RESULTS[name] for name in OUTPUTS)
"""What both models return: the keys of ``infer``, without the axis of samples."""

ARRAY_INPUTS = (IMAGES, *GEOMETRY)
FILE_INPUTS = (FILES, *GEOMETRY)
