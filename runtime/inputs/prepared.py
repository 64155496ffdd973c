"""Views in the form that the network's inputs are made of, and those inputs.

The keys, the conversions and the meaning of a missing input are those of MapAnything inference. Where its documentation
and its behaviour disagree both forms are accepted as long as they cannot be confused. Input that can only give a wrong
reconstruction is refused with an error that names the view, the key and the remedy.
"""

from __future__ import annotations

import difflib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter
from typing import Any

import numpy as np

from .. import geometry
from ..errors import InputError, ViewMismatchError
from ..geometry import Array
from ..options import DEFAULTS, InferOptions
from ..system.sequences import Arriving, Each
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
    rgb_pixels,
    unit_rays,
)
from .encoded import ImageFeatures, unpack_views
from .normalization import normalize_image
from .raw_view import Known, RawView

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
        image: (B, 3, H, W) float, if it came normalised; else (B, H, W, 3) uint8, which is normalised where and when
            the network takes it.
        is_metric: (B,) bool, whether depth and pose are in metres.
        rays: (B, H, W, 3) unit ray directions in the camera's frame, or None.
        distance: (B, H, W, 1) depth along the ray, 0 where there is none, or None.
        pose: camera-to-world quaternion (B, 4) xyzw and translation (B, 3) in float64, or None.
        features: what the image encoder gave for the image before, or None.
        mask: (B, H, W) bool, True where the view counts, or None for all of it.
        original_pixels: (3, 3) float64, see :class:`.raw_view.RawView`, or None if it came at the network's size.
        data_norm_type: that bytes are normalised for.
    """

    image: Array
    is_metric: Array
    rays: Array | None = None
    distance: Array | None = None
    pose: tuple[Array, Array] | None = None
    features: ImageFeatures | None = None
    mask: Array | None = None
    original_pixels: Array | None = None
    data_norm_type: str = "dinov2"

    @property
    def pixels(self) -> Array | None:
        """The image as bytes (B, H, W, 3), or None if it came normalised."""
        return self.image if self.image.dtype == np.uint8 else None

    @property
    def normalized(self) -> Array:
        """The image as the encoder takes it: (B, 3, H, W) float; computed from bytes at each access."""
        if self.pixels is None:
            return self.image
        every = [normalize_image(sample, self.data_norm_type) for sample in self.pixels]
        return every[0] if len(every) == 1 else np.concatenate(every)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, H, W)."""
        batch, *sides = self.image.shape
        height, width = sides[:2] if self.pixels is not None else sides[1:]
        return batch, height, width

    @property
    def floating(self) -> np.dtype[Any]:
        """Floating type of what is made for the network."""
        return np.dtype(np.float32) if self.pixels is not None else self.image.dtype

    @property
    def known(self) -> Known:
        """What is known besides the image."""
        return Known(self.rays is not None, self.distance is not None, self.pose is not None)


class ArrivingViews(Arriving[PreparedView]):
    """Views of :func:`prepare_raw` on their way: each is made when it is first asked for, and kept.

    So the first ones are encoded while others are still read.
    """

    def __init__(
        self, views: Generator[PreparedView, None, None], known: Sequence[Known], size: tuple[int, int]
    ) -> None:
        """Take the views of a call from ``views``; ``known`` is what each brings, ``size`` their (W, H)."""
        super().__init__(views, len(known))
        self._known, self._size = known, size

    def together(self, options: InferOptions) -> PreparedViews:
        """Do what :func:`network_inputs` does, without waiting for a view.

        Raises:
            InputError: a view has a pose but view 0 has none; or there is none.
        """
        _check_list(self)
        _check_reference(self._known)
        shape, none = (1, self._size[1], self._size[0]), [None] * len(self)
        return PreparedViews(self, shape, self._known, none, [True] * len(self), options)


@dataclass(frozen=True, eq=False)
class PreparedViews:
    """The views of one call, all of one batch and size. They may still be on their way: what is not of a view itself is
    known before it is there.

    Attributes:
        views: waits for those that are asked for.
        shape: (B, H, W) of each.
        known: per view what it brings besides its image.
        features: per view what the image encoder gave before.
        as_bytes: per view whether its image comes as bytes.
        options: of the call.
    """

    views: Sequence[PreparedView]
    shape: tuple[int, int, int]
    known: Sequence[Known]
    features: Sequence[ImageFeatures | None]
    as_bytes: Sequence[bool]
    options: InferOptions = DEFAULTS

    @property
    def images(self) -> Sequence[Array]:
        """V times (B, 3, H, W), float; normalised when one is taken."""
        return Each(attrgetter("normalized"), self.views)

    @property
    def masks(self) -> Sequence[Array | None]:
        """Per view (B, H, W) bool, True where it counts; None for all of it."""
        return Each(attrgetter("mask"), self.views)

    @property
    def brings_geometry(self) -> list[bool]:
        """Per view whether the geometry encoder gets anything of it."""
        ignored = (
            self.options.ignore_calibration_inputs,
            self.options.ignore_depth_inputs,
            self.options.ignore_pose_inputs,
        )
        return [any(has and not ignore for has, ignore in zip(known, ignored, strict=True)) for known in self.known]

    @cached_property
    def geometry(self) -> Sequence[ViewGeometry | None]:
        """Per view what the geometry encoder gets of it; waits for all views that bring any, whose poses are relative
        to view 0."""
        if not any(self.brings_geometry):
            return [None] * len(self.views)
        poses = [None if self.options.ignore_pose_inputs else view.pose for view in self.views]
        relative = _relative_poses(poses, self.batch, self.views[0].floating)
        return [_view_geometry(*given, self.options) for given in zip(self.views, relative, strict=True)]

    @property
    def batch(self) -> int:
        """Samples of each view."""
        return self.shape[0]

    @property
    def height(self) -> int:
        """Of the images, pixels."""
        return self.shape[1]

    @property
    def width(self) -> int:
        """Of the images, pixels."""
        return self.shape[2]


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
            as they are, and may be on their way.
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
    if isinstance(views, ArrivingViews):
        return views.together(options)
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
    return PreparedView(
        image=rgb_pixels(np.asarray(view.image))[None],
        is_metric=np.array([view.metric is not False]),
        rays=rays,
        distance=None if view.depth is None else _distance(view.depth[None], rays, f"{view.name}: depth"),
        pose=None if pose is None else _quaternion_and_translation(pose),
        mask=None if view.mask is None else view.mask[None],
        original_pixels=view.original_pixels,
        data_norm_type=data_norm_type,
    )


def network_inputs(views: Sequence[PreparedView], options: InferOptions = DEFAULTS) -> PreparedViews:
    """Bring the views of a call together: poses become relative to view 0, and what ``options`` ignore is left out.

    Raises:
        ViewMismatchError: views of different size or batch.
        InputError: a view has a pose but view 0 has none.
    """
    first = views[0]
    for index, view in enumerate(views):
        if view.shape != first.shape:
            raise ViewMismatchError(
                f"view {index}: img has shape {_image_shape(view)} but view 0 has {_image_shape(first)}; all views of "
                "a call share one size and batch: load them together with load_images or preprocess_inputs"
            )
    known = [view.known for view in views]
    _check_reference(known)
    features, as_bytes = [view.features for view in views], [view.pixels is not None for view in views]
    result = PreparedViews(views, first.shape, known, features, as_bytes, options)
    _ = result.geometry  # now: the arrays of a caller may change afterwards
    return result


def _check_reference(known: Sequence[Known]) -> None:
    """Refuse poses without one of view 0."""
    for index, view in enumerate(known):
        if view.pose and not known[0].pose:
            raise InputError(
                f"view {index}: camera_poses is given but view 0, the reference, has none; "
                "add camera_poses to view 0 or put a posed view first"
            )


def _image_shape(view: PreparedView) -> tuple[int, ...]:
    batch, height, width = view.shape
    return batch, 3, height, width


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
