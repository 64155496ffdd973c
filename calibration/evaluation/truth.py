"""The scenes that a network is judged on, and what of them is compared with its predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mapengine.runtime.errors import InputError
from mapengine.runtime.geometry import rays_from_intrinsics
from mapengine.runtime.inputs.normalization import normalize_image
from mapengine.runtime.inputs.prepared import prepare_views

from .metrics import in_first_view

Array = NDArray[Any]


class EvaluationScene(Protocol):
    """V views of one scene with exact geometry, such as :class:`..scenes.RenderedScene` or :class:`.rgbd.RgbdScene`."""

    @property
    def images(self) -> Array:
        """(V, H, W, 3) uint8."""

    @property
    def depth_z(self) -> Array:
        """(V, H, W) float32, metres along the camera's z axis, 0 where there is none or it is not known."""

    @property
    def mask(self) -> Array | None:
        """(V, H, W) bool, False where there is no surface (sky); None where that is not known."""

    @property
    def intrinsics(self) -> Array:
        """(V, 3, 3) pixels, pixel centres at integers."""

    @property
    def poses(self) -> Array:
        """(V, 4, 4) camera-to-world, OpenCV axes, metres; the world is any frame."""

    @property
    def seed(self) -> int:
        """Seed of what is drawn at random for this scene, such as the pixels of sparse depth."""


@dataclass(frozen=True, eq=False)
class Truth:
    """True geometry of V views, float64, in the frame of view 0, which is the frame that networks answer in.

    Attributes:
        depth_z: (V, H, W) metres.
        valid: (V, H, W) bool, pixels with depth.
        mask: (V, H, W) bool, pixels that show a surface; None where that is not known.
        rays: (V, H, W, 3) unit ray directions in camera axes.
        poses: (V, 4, 4) camera-to-world.
        points: (V, H, W, 3) metres, at valid pixels.
    """

    depth_z: Array
    valid: Array
    mask: Array | None
    rays: Array
    poses: Array
    points: Array

    @classmethod
    def of(cls, scene: EvaluationScene, where: str = "scene") -> Truth:
        """Check a scene and compute what its predictions are compared with.

        Raises:
            InputError: shapes that do not fit together, or values that no camera gives; names ``where``, view and key.
        """
        _check(scene, where)
        depth = np.asarray(scene.depth_z, np.float64)
        rays = rays_from_intrinsics(np.asarray(scene.intrinsics, np.float64), *depth.shape[1:])
        poses = in_first_view(np.asarray(scene.poses, np.float64))
        in_camera = rays / rays[..., 2:] * depth[..., None]
        points = in_camera @ poses[:, None, :3, :3].swapaxes(-1, -2) + poses[:, None, None, :3, 3]
        mask = None if scene.mask is None else np.asarray(scene.mask, bool)
        return cls(depth, depth > 0, mask, rays, poses, points)

    def first(self, views: int) -> Truth:
        """Return the first ``views`` views."""
        mask = None if self.mask is None else self.mask[:views]
        part = slice(0, views)
        return Truth(self.depth_z[part], self.valid[part], mask, self.rays[part], self.poses[part], self.points[part])


def full_views(scene: EvaluationScene, norm_type: str, count: int | None = None) -> list[dict[str, Any]]:
    """Return the first ``count`` views of a scene with everything that is known of them, in the form that ``infer``
    takes."""
    return [
        full_view(image, scene.intrinsics[index], scene.depth_z[index], scene.poses[index], norm_type)
        for index, image in enumerate(scene.images[:count])
    ]


def full_view(image: Array, intrinsics: Array, depth_z: Array, pose: Array, norm_type: str) -> dict[str, Any]:
    """Return one view with everything that is known of it; metric, with the arrays of an :class:`EvaluationScene`."""
    return {
        "img": normalize_image(image, norm_type),
        "data_norm_type": [norm_type],
        "intrinsics": np.asarray(intrinsics)[None],
        "depth_z": np.asarray(depth_z)[None],
        "camera_poses": np.asarray(pose)[None],
        "is_metric_scale": np.array([True]),
    }


def _check(scene: EvaluationScene, where: str) -> None:
    images = np.asarray(scene.images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape:
        raise InputError(f"{where}: images are {images.dtype} of shape {images.shape}; give uint8 (V, H, W, 3)")
    count, height, width, _ = images.shape
    shapes: dict[str, tuple[int, ...]] = {"depth_z": (count, height, width), "intrinsics": (count, 3, 3)}
    shapes["poses"] = (count, 4, 4)
    if scene.mask is not None:
        shapes["mask"] = (count, height, width)
    for key, shape in shapes.items():
        found = np.shape(getattr(scene, key))
        if found != shape:
            raise InputError(f"{where}: {key} has shape {found}; it must be {shape}, as the images are")
    try:
        # What infer refuses as an input is no truth either.
        prepare_views(full_views(scene, "identity"), data_norm_type="identity")
    except InputError as error:
        raise type(error)(f"{where}: {error}") from error
    if not (np.asarray(scene.depth_z) > 0).any():
        raise InputError(f"{where}: holds no depth in any view, so nothing can be compared; check its depth maps")
