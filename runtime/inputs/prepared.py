"""Views in the form that the network's inputs are made of, and those inputs.

The keys, the conversions and the meaning of a missing input are those of MapAnything inference. Where its documentation
and its behaviour disagree both forms are accepted as long as they cannot be confused. Input that can only give a wrong
reconstruction is refused with an error that names the view, the key and the remedy.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import geometry
from ..errors import InputError, ViewMismatchError
from ..geometry import Array
from ..options import DEFAULTS, InferOptions
from .checks import (
    Pose,
    camera_intrinsics,
    camera_pose,
    check_norm_type,
    check_one_calibration,
    depth_map,
    finite_array,
    metric_flags,
    normalized_image,
    unit_rays,
)
from .encoded import ImageFeatures, unpack_views
from .normalization import normalize_image
from .raw_view import RawView

VIEW_KEYS = (
    "img",
    "data_norm_type",
    "intrinsics",
    "ray_directions",
    "depth_z",
    "camera_poses",
    "is_metric_scale",
    "mask",
    "true_shape",
    "idx",
    "instance",
)

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


@dataclass(frozen=True, eq=False)
class PreparedView:
    """One view of the network's size, checked and converted. B is the batch.

    Attributes:
        image: (B, 3, H, W), normalised.
        is_metric: (B,) bool, whether depth and pose are in metres.
        rays: (B, H, W, 3) unit ray directions in the camera's frame, or None.
        distance: (B, H, W, 1) depth along the ray, 0 where there is none, or None.
        pose: camera-to-world quaternion (B, 4) xyzw and translation (B, 3) in float64, or None.
        features: what the image encoder gave for the image before, or None.
        mask: (B, H, W) bool, True where the view counts, or None for all of it.
        pixels: (B, H, W, 3) uint8, the image before it was normalised, or None if it came normalised.
        original_pixels: (3, 3) float64, see :class:`.raw_view.RawView`, or None if it came at the network's size.
    """

    image: Array
    is_metric: Array
    rays: Array | None = None
    distance: Array | None = None
    pose: tuple[Array, Array] | None = None
    features: ImageFeatures | None = None
    mask: Array | None = None
    pixels: Array | None = None
    original_pixels: Array | None = None


@dataclass(frozen=True, eq=False)
class PreparedViews:
    """The views of one call, all of one batch and size, and per view what the geometry encoder gets of it."""

    views: Sequence[PreparedView]
    geometry: Sequence[ViewGeometry | None]

    @property
    def images(self) -> list[Array]:
        """V times (B, 3, H, W), float."""
        return [view.image for view in self.views]

    @property
    def features(self) -> list[ImageFeatures | None]:
        """Per view what the image encoder gave before."""
        return [view.features for view in self.views]

    @property
    def masks(self) -> list[Array | None]:
        """Per view (B, H, W) bool, True where it counts; None for all of it."""
        return [view.mask for view in self.views]

    @property
    def batch(self) -> int:
        """Samples of each view."""
        return int(self.views[0].image.shape[0])

    @property
    def height(self) -> int:
        """Of the images, pixels."""
        return int(self.views[0].image.shape[2])

    @property
    def width(self) -> int:
        """Of the images, pixels."""
        return int(self.views[0].image.shape[3])


def prepare_views(
    views: Sequence[Any],
    options: InferOptions = DEFAULTS,
    *,
    data_norm_type: str = "dinov2",
    dtype: Any = np.float32,
    encoder: str | None = None,
    copy: bool = False,
) -> PreparedViews:
    """Check the views of a call and convert what they bring (MapAnything inference, input conversion).

    The dictionaries are not modified; images that are already ``dtype`` and contiguous are used without a copy. Torch
    tensors are accepted. Ignored inputs are still checked.

    Args:
        views: dictionaries, encoded views, dictionaries with an encoded view as ``img``, or prepared views, which stay
            as they are.
        options: of the call.
        data_norm_type: what the images must have been normalised for.
        dtype: floating type of the result.
        encoder: identity of the image encoder whose encoded views may be among them.
        copy: keep no array of the caller, who may fill it anew before the views are used.

    Raises:
        InputError: what is wrong, in which view, under which key.
        ImageSizeError: a size that is no multiple of 14.
        DataNormTypeError: images normalised for another encoder.
        ViewMismatchError: views of different size or batch.
    """
    plain, features = unpack_views(views, encoder)
    _check_list(plain)
    prepared = [
        view
        if isinstance(view, PreparedView)
        else replace(
            _prepare(view, f"view {index}", data_norm_type, np.dtype(dtype), copy=copy and known is None),
            features=known,
        )
        for index, (view, known) in enumerate(zip(plain, features, strict=True))
    ]
    return network_inputs(prepared, options)


def prepare_raw(view: RawView, data_norm_type: str = "dinov2") -> PreparedView:
    """Convert a view that was resized to the network's size; its values were checked when it was read."""
    width, height = view.size
    rays, pose = None, view.batched_pose
    if view.intrinsics is not None:
        rays = geometry.rays_from_intrinsics(view.intrinsics[None].astype(np.float32, copy=False), height, width)
    elif view.rays is not None:
        rays = unit_rays(view.rays[None], (1, height, width, 3), f"{view.name}: ray_directions", np.float32)
    pixels = np.asarray(view.image)
    return PreparedView(
        image=normalize_image(pixels, data_norm_type),
        is_metric=np.array([view.metric is not False]),
        rays=rays,
        distance=None if view.depth is None else _distance(view.depth[None], rays, f"{view.name}: depth"),
        pose=None if pose is None else _quaternion_and_translation(pose),
        mask=None if view.mask is None else view.mask[None],
        pixels=pixels[None],
        original_pixels=view.original_pixels,
    )


def network_inputs(views: Sequence[PreparedView], options: InferOptions = DEFAULTS) -> PreparedViews:
    """Bring the views of a call together: poses become relative to view 0, and what ``options`` ignore is left out.

    Raises:
        ViewMismatchError: views of different size or batch.
        InputError: a view has a pose but view 0 has none.
    """
    first = views[0]
    for index, view in enumerate(views):
        if view.image.shape != first.image.shape:
            raise ViewMismatchError(
                f"view {index}: img has shape {view.image.shape} but view 0 has {first.image.shape}; all views of a "
                "call share one size and batch: load them together with load_images or preprocess_inputs"
            )
        if view.pose is not None and first.pose is None:
            raise InputError(
                f"view {index}: camera_poses is given but view 0, the reference, has none; "
                "add camera_poses to view 0 or put a posed view first"
            )
    poses = [None if options.ignore_pose_inputs else view.pose for view in views]
    relative = _relative_poses(poses, len(first.image), first.image.dtype)
    return PreparedViews(views, [_view_geometry(*given, options) for given in zip(views, relative, strict=True)])


def _check_list(views: Any) -> None:
    """Refuse what is no list of dictionaries."""
    if isinstance(views, Mapping) or not isinstance(views, Sequence) or isinstance(views, str | bytes):
        raise InputError(
            f"views is a {type(views).__name__}; give a list of dictionaries, one per view (a single view too)"
        )
    if len(views) == 0:
        raise InputError("views is empty; give at least one view")


def _prepare(view: Any, where: str, data_norm_type: str, dtype: np.dtype[Any], copy: bool) -> PreparedView:
    """The dictionary of one view, checked; None counts as absent for the optional keys."""
    if not isinstance(view, Mapping):
        raise InputError(f"{where}: is a {type(view).__name__}; give a dictionary with img and data_norm_type")
    for key in view:
        if key not in VIEW_KEYS:
            near = difflib.get_close_matches(str(key), VIEW_KEYS, n=1, cutoff=0.0)
            raise InputError(
                f"{where}: unknown key {key!r}; the nearest known key is {near[0]!r} (known: {', '.join(VIEW_KEYS)})"
            )
    given = {key: value for key, value in view.items() if value is not None}
    for key in ("img", "data_norm_type"):
        if key not in given:
            raise InputError(f"{where}: {key} is missing; load_images and preprocess_inputs provide it")
    check_one_calibration(given, where)
    image = normalized_image(given["img"], f"{where}: img", dtype, copy=copy)
    check_norm_type(given["data_norm_type"], data_norm_type, f"{where}: data_norm_type")
    batch, _, height, width = image.shape
    rays = distance = pose = None
    if "intrinsics" in given:
        matrix = camera_intrinsics(given["intrinsics"], (batch,), f"{where}: intrinsics", dtype)
        rays = geometry.rays_from_intrinsics(matrix, height, width)
    elif "ray_directions" in given:
        rays = unit_rays(given["ray_directions"], (batch, height, width, 3), f"{where}: ray_directions", dtype)
    if "depth_z" in given:
        depth = depth_map(given["depth_z"], (batch, height, width), f"{where}: depth_z", dtype)
        distance = _distance(depth, rays, f"{where}: depth_z")
    if "camera_poses" in given:
        pose = _quaternion_and_translation(camera_pose(given["camera_poses"], (batch,), f"{where}: camera_poses"))
    is_metric = metric_flags(given.get("is_metric_scale", True), batch, f"{where}: is_metric_scale")
    mask = None
    if "mask" in given:
        mask = finite_array(given["mask"], (batch, height, width), f"{where}: mask", booleans=True).astype(bool)
        distance = None if distance is None else np.where(mask[..., None], distance, distance.dtype.type(0))
    return PreparedView(image, is_metric, rays, distance, pose, mask=mask)


def _distance(depth: Array, rays: Array | None, where: str) -> Array:
    """Depth along the rays of a view."""
    if rays is None:
        raise InputError(f"{where} needs the calibration of its view; add intrinsics or ray_directions")
    if ((depth > 0) & (rays[..., 2] <= 0)).any():
        raise InputError(
            f"{where} is positive where the ray points sideways or backwards (its z is not positive); "
            "use 0 there or correct ray_directions"
        )
    return geometry.depth_along_ray(depth, rays)


def _quaternion_and_translation(pose: Pose) -> tuple[Array, Array]:
    """A pose in float64, so that positions far from the origin (map coordinates) keep their digits."""
    if isinstance(pose, tuple):
        return pose[0].astype(np.float64), pose[1].astype(np.float64)
    return geometry.split_pose_matrix(pose.astype(np.float64))


def _relative_poses(
    poses: Sequence[tuple[Array, Array] | None], batch: int, dtype: np.dtype[Any]
) -> list[tuple[Array, Array, Array] | None]:
    """Per posed view: rotation (B, 4), normalised translation (B, 3) and log scale (B, 1), relative to view 0."""
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
    view: PreparedView, pose: tuple[Array, Array, Array] | None, options: InferOptions
) -> ViewGeometry | None:
    """The geometry encoder's inputs of one view, or None when it has none."""
    rays = None if options.ignore_calibration_inputs else view.rays
    distance = None if options.ignore_depth_inputs else view.distance
    if rays is None and distance is None and pose is None:
        return None
    flags = np.zeros((len(view.is_metric), len(MODALITIES)), bool)
    flags[:, 0] = rays is not None
    depth = depth_log_scale = rotation = translation = translation_log_scale = None
    if distance is not None:
        normalized, factor = geometry.normalize_depth(distance)
        depth = geometry.log_normalize(normalized)
        depth_log_scale = np.log(factor + factor.dtype.type(geometry.EPSILON))[:, None]
        flags[:, 1], flags[:, 2] = True, view.is_metric & (not options.ignore_depth_scale_inputs)
    if pose is not None:
        rotation, translation, translation_log_scale = pose
        flags[:, 3], flags[:, 4] = True, view.is_metric & (not options.ignore_pose_scale_inputs)
    return ViewGeometry(flags, rays, depth, depth_log_scale, rotation, translation, translation_log_scale)
