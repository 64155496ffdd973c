"""From the list of view dictionaries that ``infer`` takes to checked arrays and the inputs of the geometry encoder.

The keys, the conversions and the meaning of a missing input are those of MapAnything inference. Where its documentation
and its behaviour disagree both forms are accepted as long as they cannot be confused. Input that can only give a wrong
reconstruction is refused with an error that names the view, the key and the remedy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import geometry
from ..errors import ViewMismatchError
from ..geometry import Array
from ..options import DEFAULTS, InferOptions
from .checks import (
    check_keys,
    check_norm_type,
    read_distance,
    read_image_tensor,
    read_metric_flags,
    read_pose,
    read_rays,
)
from .encoded import ImageFeatures

MODALITIES = ("ray_directions", "depth", "depth_scale", "pose", "pose_scale")
"""Columns of the flags that say what a view gives to the geometry encoder."""


@dataclass(frozen=True)
class ViewGeometry:
    """What one view gives to the geometry encoder; ``None`` where it gives nothing. B is the batch.

    ``flags`` (B, 5) bool says per sample what is used, in the order of ``MODALITIES``.
    """

    flags: Array
    ray_directions: Array | None = None  # (B, H, W, 3), unit length
    depth: Array | None = None  # (B, H, W, 1), along the ray, over its mean, logged
    depth_log_scale: Array | None = None  # (B, 1), log of that mean
    rotation: Array | None = None  # (B, 4), xyzw, relative to view 0
    translation: Array | None = None  # (B, 3), relative to view 0, over the mean distance
    translation_log_scale: Array | None = None  # (B, 1), log of that mean

    @property
    def has_any(self) -> bool:
        """Whether any sample of this view uses any geometry."""
        return bool(self.flags.any())


@dataclass(frozen=True)
class PreparedViews:
    """The checked views of one call.

    ``converted`` holds per view what the input was turned into, before normalisation: ``ray_directions_cam``
    (B, H, W, 3), ``depth_along_ray`` (B, H, W, 1), ``camera_pose_quats`` (B, 4), ``camera_pose_trans`` (B, 3) where
    given and not ignored, and always ``is_metric_scale`` (B,).
    """

    images: list[Array]  # V times (B, 3, H, W), float
    geometry: list[ViewGeometry | None]
    batch: int
    height: int
    width: int
    converted: list[dict[str, Array]]
    features: Sequence[ImageFeatures | None] = ()  # per view what the image encoder gave before; empty for no view


def prepare_views(
    views: Sequence[Mapping[str, Any]],
    options: InferOptions = DEFAULTS,
    *,
    data_norm_type: str = "dinov2",
    dtype: Any = np.float32,
) -> PreparedViews:
    """Check the views of a call and convert what they bring (MapAnything inference, input conversion).

    The dictionaries are not modified; images that are already ``dtype`` and contiguous are used without a copy. Torch
    tensors are accepted. Ignored inputs are still checked.

    Raises ``InputError`` (a ``ValueError``), ``ImageSizeError`` (size not a multiple of 14), ``DataNormTypeError``
    (images normalised for another encoder) or ``ViewMismatchError`` (views of different size or batch).
    """
    check_keys(views)
    dtype = np.dtype(dtype)
    images = [read_image_tensor(view["img"], index, dtype) for index, view in enumerate(views)]
    batch, _, height, width = images[0].shape
    for index, image in enumerate(images):
        if image.shape != images[0].shape:
            raise ViewMismatchError(
                f"view {index}: img has shape {image.shape} but view 0 has {images[0].shape}; all views of a call "
                "share one size and batch: load them together with load_images or preprocess_inputs"
            )
    for index, view in enumerate(views):
        check_norm_type(view["data_norm_type"], data_norm_type, index)

    converted: list[dict[str, Array]] = []
    poses: list[tuple[Array, Array] | None] = []
    for index, view in enumerate(views):
        entry = {"is_metric_scale": read_metric_flags(view.get("is_metric_scale", True), batch, index)}
        rays = read_rays(view, images[index], index, dtype)
        if rays is not None and not options.ignore_calibration_inputs:
            entry["ray_directions_cam"] = rays
        if view.get("depth_z") is not None and rays is not None:
            distance = read_distance(view["depth_z"], rays, index, dtype)
            if not options.ignore_depth_inputs:
                entry["depth_along_ray"] = distance
        pose = None if view.get("camera_poses") is None else read_pose(view["camera_poses"], batch, index)
        poses.append(None if options.ignore_pose_inputs else pose)
        if pose is not None and not options.ignore_pose_inputs:
            entry["camera_pose_quats"], entry["camera_pose_trans"] = pose[0].astype(dtype), pose[1].astype(dtype)
        converted.append(entry)

    relative = _relative_poses(poses, batch, dtype)
    geometries = [
        _view_geometry(entry, pose, not options.ignore_depth_scale_inputs, not options.ignore_pose_scale_inputs)
        for entry, pose in zip(converted, relative, strict=True)
    ]
    return PreparedViews(images, geometries, batch, height, width, converted)


def _relative_poses(
    poses: Sequence[tuple[Array, Array] | None], batch: int, dtype: np.dtype[Any]
) -> list[tuple[Array, Array, Array] | None]:
    """Per posed view: rotation (B, 4), normalised translation (B, 3) and log scale (B, 1), relative to view 0.

    Works in float64, so that positions far from the origin (map coordinates) keep their digits.
    """
    reference = poses[0]
    if reference is None:
        return [None] * len(poses)
    rotations: list[Array | None] = []
    translations = np.zeros((len(poses), batch, 3))  # a view without a pose counts as not moved
    for index, pose in enumerate(poses):
        rotation = None
        if pose is not None:
            rotation, translations[index] = geometry.relative_pose(*reference, *pose)
        rotations.append(rotation)
    translations, scale = geometry.normalize_translations(translations)
    log_scale = np.log(scale + geometry.EPSILON)[:, None].astype(dtype)
    return [
        None if rotation is None else (rotation.astype(dtype), translation.astype(dtype), log_scale)
        for rotation, translation in zip(rotations, translations, strict=True)
    ]


def _view_geometry(
    entry: Mapping[str, Array], pose: tuple[Array, Array, Array] | None, use_depth_scale: bool, use_pose_scale: bool
) -> ViewGeometry | None:
    """The geometry encoder's inputs of one view, or None when it has none."""
    rays, distance, metric = entry.get("ray_directions_cam"), entry.get("depth_along_ray"), entry["is_metric_scale"]
    if rays is None and distance is None and pose is None:
        return None
    flags = np.zeros((len(metric), len(MODALITIES)), bool)
    flags[:, 0] = rays is not None
    depth = depth_log_scale = rotation = translation = translation_log_scale = None
    if distance is not None:
        normalized, factor = geometry.normalize_depth(distance)
        depth = geometry.log_normalize(normalized)
        depth_log_scale = np.log(factor + factor.dtype.type(geometry.EPSILON))[:, None]
        flags[:, 1], flags[:, 2] = True, metric & use_depth_scale
    if pose is not None:
        rotation, translation, translation_log_scale = pose
        flags[:, 3], flags[:, 4] = True, metric & use_pose_scale
    return ViewGeometry(flags, rays, depth, depth_log_scale, rotation, translation, translation_log_scale)
