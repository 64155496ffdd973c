"""Checks and conversions of the single values of a view: images, cameras, depth, poses and flags.

Every refusal names the view, the key and the remedy. Shapes are those of MapAnything inference; B is the batch.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import geometry
from ..bundle.requests import PATCH_SIZE
from ..errors import DataNormTypeError, ImageSizeError, InputError
from ..geometry import Array

VIEW_KEYS = (
    "img",
    "data_norm_type",
    "intrinsics",
    "ray_directions",
    "depth_z",
    "camera_poses",
    "is_metric_scale",
    "true_shape",
    "idx",
    "instance",
)

NORMALIZED_LIMIT = 16.0
"""Normalised images stay within 3 of zero; anything beyond this bound was not normalised (0..255, say)."""

MIN_FOCAL = 1.0  # pixels; less means a fraction of the image size
MAX_FOCAL = 1e9  # pixels; beyond it all rays of an image are one in float32
MAX_TANGENT = 1e4  # of the angle between the optical axis and the image's corner, where float32 rays lose their meaning
MAX_DEPTH = 1e9  # metres; more is a marker for missing depth
MAX_POSITION = 1e12  # metres; more is a marker, and float64 has no millimetres left

TOLERANCE = 1e-2
"""How far a rotation or the last row of a matrix may be off: files that print three digits still pass."""


def as_array(value: Any, where: str) -> Array:
    """A NumPy array of an array, a nested list or a torch tensor (of any device), without importing torch."""
    if hasattr(value, "detach"):
        return _tensor_as_array(value, where)
    if isinstance(value, np.ma.MaskedArray):
        # np.asarray would drop the mask and let the masked values pass for measured ones.
        raise InputError(f"{where} is a masked array; fill it first, as with filled(0) where depth is missing")
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise InputError(f"{where} is not a rectangular array of numbers; give a NumPy array") from error
    if array.dtype.kind not in "fiub":
        raise InputError(f"{where} holds {array.dtype} values; give an array of numbers")
    return array


def _tensor_as_array(value: Any, where: str) -> Array:
    try:
        value = value.detach().cpu()
        try:
            return np.asarray(value.numpy())
        except TypeError:  # bfloat16 has no NumPy type
            return np.asarray(value.float().numpy())
    except (TypeError, RuntimeError) as error:  # sparse, quantised or without data
        raise InputError(f"{where} is a tensor that has no NumPy form; give a dense tensor with data") from error


def check_keys(views: Sequence[Mapping[str, Any]]) -> None:
    """The rules about which keys may and must be there (None counts as absent for the optional ones)."""
    if isinstance(views, Mapping) or not isinstance(views, Sequence) or isinstance(views, str | bytes):
        raise InputError(
            f"views is a {type(views).__name__}; give a list of dictionaries, one per view (a single view too)"
        )
    if len(views) == 0:
        raise InputError("views is empty; give at least one view")
    for index, view in enumerate(views):
        if not isinstance(view, Mapping):
            raise InputError(f"view {index}: is a {type(view).__name__}; give a dictionary with img and data_norm_type")
        for key in view:
            if key not in VIEW_KEYS:
                near = difflib.get_close_matches(str(key), VIEW_KEYS, n=1, cutoff=0.0)
                raise InputError(
                    f"view {index}: unknown key {key!r}; the nearest known key is {near[0]!r} "
                    f"(known: {', '.join(VIEW_KEYS)})"
                )
        for key in ("img", "data_norm_type"):
            if view.get(key) is None:
                raise InputError(f"view {index}: {key} is missing; load_images and preprocess_inputs provide it")
        calibrations = [key for key in ("intrinsics", "ray_directions") if view.get(key) is not None]
        if len(calibrations) == 2:
            raise InputError(f"view {index}: has both intrinsics and ray_directions; give only one of them")
        if view.get("depth_z") is not None and not calibrations:
            raise InputError(
                f"view {index}: depth_z needs the calibration of its view; add intrinsics or ray_directions"
            )
        if view.get("camera_poses") is not None and views[0].get("camera_poses") is None:
            raise InputError(
                f"view {index}: camera_poses is given but view 0, the reference, has none; "
                "add camera_poses to view 0 or put a posed view first"
            )


def read_image_tensor(value: Any, index: int, dtype: np.dtype[Any]) -> Array:
    """Normalised image (B, 3, H, W), contiguous and of the wanted dtype."""
    where = f"view {index}: img"
    image = as_array(value, where)
    if image.dtype.kind != "f":
        raise InputError(f"{where} holds {image.dtype} pixels; normalise it with load_images or preprocess_inputs")
    if image.ndim != 4 or image.shape[1] != 3 or image.shape[0] == 0:
        hint = "give a normalised (B, 3, H, W) array"
        if image.ndim == 3:
            hint += "; this one lacks the batch axis"
        elif image.ndim == 4 and image.shape[-1] == 3:
            hint += "; here the channels come last"
        raise InputError(f"{where} has shape {image.shape}; {hint}")
    height, width = image.shape[2:]
    if height % PATCH_SIZE or width % PATCH_SIZE or not height or not width:
        raise ImageSizeError(
            f"{where} is {width}x{height} pixels (width x height); both must be positive multiples of {PATCH_SIZE}: "
            "use load_images or preprocess_inputs to resize"
        )
    with np.errstate(over="ignore"):
        image = np.ascontiguousarray(image, dtype)
    low, high = image.min(), image.max()  # NaN passes through both
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(f"{where} holds NaN or infinite values; check where the image comes from")
    if max(-low, high) > NORMALIZED_LIMIT:
        raise InputError(
            f"{where} has values up to {max(-low, high):g}, so it is not normalised; pass it through preprocess_inputs"
        )
    return image


def check_norm_type(value: Any, expected: str, index: int) -> None:
    """Refuse images that were normalised for another encoder than ``expected``."""
    names = [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else []
    if not names or any(not isinstance(name, str) or name != expected for name in names):
        raise DataNormTypeError(
            f"view {index}: data_norm_type is {value!r} but the image encoder expects [{expected!r}]; "
            f"load the images with norm_type={expected!r}"
        )


def read_metric_flags(value: Any, batch: int, index: int) -> Array:
    """Metric flags (B,) bool of a Python bool, (B,) or (B, 1)."""
    where = f"view {index}: is_metric_scale"
    flags = as_array(True if value is None else value, where)
    if flags.ndim == 0:
        flags = np.full(batch, flags)
    elif flags.shape == (batch, 1):
        flags = flags[:, 0]
    if flags.shape != (batch,):
        raise InputError(f"{where} has shape {flags.shape}; give one bool, or an array of shape ({batch},)")
    if not np.isin(flags, (0, 1)).all():
        raise InputError(f"{where} holds values other than True and False; give bools (it is not a scale factor)")
    return flags.astype(bool)


def read_rays(view: Mapping[str, Any], image: Array, index: int, dtype: np.dtype[Any]) -> Array | None:
    """Unit ray directions (B, H, W, 3) of the view's calibration, or None."""
    batch, _, height, width = image.shape
    if view.get("intrinsics") is not None:
        where = f"view {index}: intrinsics"
        matrix = _finite(as_array(view["intrinsics"], where), (batch, 3, 3), where, dtype)
        focal, centre = matrix[:, (0, 1), (0, 1)], matrix[:, :2, 2]
        if (focal <= 0).any():
            raise InputError(f"{where} has the focal length {focal.min():g}; fx and fy must be positive, in pixels")
        if focal.max() > MAX_FOCAL:
            raise InputError(f"{where} has the focal length {focal.max():g}, which no camera has; give it in pixels")
        if (focal < MIN_FOCAL).any() or (np.abs(centre) > MAX_TANGENT * focal).any():
            raise InputError(
                f"{where} has the focal length {focal.min():g} and the principal point {centre.ravel()[:2].tolist()}, "
                "which no camera has; give them in pixels, not as a fraction of the image"
            )
        if np.abs(matrix[:, 2] - (0, 0, 1)).max() > TOLERANCE or np.abs(matrix[:, 1, 0]).max() > TOLERANCE:
            raise InputError(f"{where} is not of the form [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]; is it transposed?")
        return geometry.rays_from_intrinsics(matrix, height, width)
    if view.get("ray_directions") is not None:
        where = f"view {index}: ray_directions"
        rays = _finite(as_array(view["ray_directions"], where), (batch, height, width, 3), where, dtype)
        with np.errstate(over="ignore"):
            length = geometry.vector_norm(rays)
        if length.min() < 1e-6 or not np.isfinite(length).all():
            raise InputError(f"{where} has a ray of length {length.min():g} to {length.max():g}; give unit vectors")
        return geometry.normalize_rays(rays)
    return None


def read_distance(value: Any, rays: Array, index: int, dtype: np.dtype[Any]) -> Array:
    """Depth along the ray (B, H, W, 1) of depth_z (B, H, W) or (B, H, W, 1)."""
    where = f"view {index}: depth_z"
    depth = as_array(value, where)
    if depth.dtype.kind != "f":
        raise InputError(f"{where} holds {depth.dtype} values; give metres as float (divide millimetres by 1000)")
    if depth.ndim == 4 and depth.shape[-1] == 1:
        depth = depth[..., 0]
    depth = _finite(depth, rays.shape[:-1], where, dtype, "use 0 where depth is missing")
    if depth.min() < 0:
        raise InputError(f"{where} is negative somewhere ({depth.min():g}); use 0 where depth is missing")
    if depth.max() > MAX_DEPTH:
        raise InputError(f"{where} reaches {depth.max():g}, which is no distance; use 0 where depth is missing")
    if ((depth > 0) & (rays[..., 2] <= 0)).any():
        raise InputError(
            f"{where} is positive where the ray points sideways or backwards (its z is not positive); "
            "use 0 there or correct ray_directions"
        )
    return geometry.depth_along_ray(depth, rays)


def read_pose(value: Any, batch: int, index: int) -> tuple[Array, Array]:
    """Camera-to-world quaternion (B, 4) and translation (B, 3) in float64 of a matrix (B, 4, 4) or a pair."""
    where = f"view {index}: camera_poses"
    if isinstance(value, tuple | list) and len(value) == 2:
        quaternion, translation = (as_array(part, where) for part in value)
        if quaternion.shape[-1:] == (4,) and translation.shape[-1:] == (3,):
            quaternion = _finite(quaternion, (batch, 4), f"{where} (quaternions)")
            translation = _finite(translation, (batch, 3), f"{where} (translations)")
            with np.errstate(over="ignore"):
                length = np.sqrt((quaternion * quaternion).sum(axis=-1))
            if length.min() < 1e-6 or length.max() > 1e6:
                raise InputError(
                    f"{where} has a quaternion of length {length.min():g} to {length.max():g}; "
                    "give unit quaternions in xyzw order"
                )
            _check_position(translation, where)
            return quaternion, translation
        if quaternion.shape != translation.shape:  # two equal ones may be the matrices of two samples
            raise InputError(
                f"{where} has shapes {quaternion.shape} and {translation.shape}; give camera-to-world "
                f"quaternions {(batch, 4)} in xyzw order and translations {(batch, 3)}"
            )
    matrix = as_array(value, where)
    if matrix.shape != (batch, 4, 4):
        raise InputError(
            f"{where} has shape {matrix.shape}; give camera-to-world matrices {(batch, 4, 4)}, or a pair of xyzw "
            f"quaternions {(batch, 4)} and translations {(batch, 3)}"
        )
    matrix = _finite(matrix, (batch, 4, 4), where)
    if np.abs(matrix[:, 3] - (0, 0, 0, 1)).max() > TOLERANCE:
        row = ", ".join(f"{x:g}" for x in matrix[np.abs(matrix[:, 3] - (0, 0, 0, 1)).max(axis=-1).argmax(), 3])
        raise InputError(f"{where} has the last row [{row}]; it must be [0, 0, 0, 1]: is the matrix transposed?")
    rotation = matrix[:, :3, :3]
    error = np.abs(rotation @ rotation.swapaxes(1, 2) - np.eye(3)).max()
    if error > TOLERANCE:
        raise InputError(
            f"{where} has a rotation that is off orthonormal by {error:.3g} (at most {TOLERANCE:g}); "
            "remove scale or shear from it"
        )
    if (np.linalg.det(rotation) < 0).any():
        raise InputError(
            f"{where} has a rotation that mirrors (determinant -1); convert it to right-handed OpenCV axes: "
            "x right, y down, z forward"
        )
    _check_position(matrix[:, :3, 3], where)
    return geometry.split_pose_matrix(matrix)


def _check_position(translation: Array, where: str) -> None:
    largest = np.abs(translation).max()
    if largest > MAX_POSITION:
        raise InputError(f"{where} is {largest:g} from the origin, which is no position; give metres")


def _finite(
    array: Array, shape: tuple[int, ...], where: str, dtype: Any = np.float64, remedy: str = "correct its source"
) -> Array:
    """The array in ``dtype``, checked for its shape and, after the conversion, for finite values."""
    if array.shape != shape:
        raise InputError(f"{where} has shape {array.shape}; it must be {shape}")
    with np.errstate(over="ignore"):
        array = array.astype(dtype, copy=False)
    if not np.isfinite(array).all():
        raise InputError(f"{where} holds NaN or infinite values; {remedy}")
    return array
