"""The checks of what a view holds: images, cameras, depth, poses and flags. Each stands here, once.

``where`` names the view and the key for the message; every refusal names the remedy. Shapes are those of MapAnything
inference; B is the batch, and ``lead`` are the axes before those of a single value: () or (B,).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import geometry
from ..bundle.requests import PATCH_SIZE
from ..errors import DataNormTypeError, ImageSizeError, InputError
from ..geometry import Array

Pose = Array | tuple[Array, Array]
"""Camera-to-world: a matrix (4, 4), or a quaternion (4,) xyzw and a translation (3,); with a batch axis where said."""

NORMALIZED_LIMIT = 16.0
"""Normalised images stay within 3 of zero; anything beyond this bound was not normalised (0..255, say)."""

MIN_FOCAL = 1.0  # pixels; less means a fraction of the image size
MIN_RELATIVE_FOCAL = 0.01  # of the image's longer side, which is a field of view of 179 degrees
MAX_FOCAL = 1e9  # pixels; beyond it all rays of an image are one in float32
MAX_TANGENT = 1e4  # of the angle between the optical axis and the image's corner, where float32 rays lose their meaning
MAX_SKEW = 0.5  # pixels; a camera's own is less, and its rays are computed without
MAX_DEPTH = 1e9  # metres; more is a marker for missing depth
MAX_POSITION = 1e12  # metres; more is a marker, and float64 has no millimetres left

TOLERANCE = 1e-2
"""How far a rotation or the last row of a matrix may be off: files that print three digits still pass."""


def as_array(value: Any, where: str) -> Array:
    """Return an array, a nested list or a torch tensor (of any device) as a NumPy array, without importing torch."""
    if is_tensor(value):
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


def is_tensor(value: Any) -> bool:
    """Return whether a value is a torch tensor."""
    return hasattr(value, "detach")


def _tensor_as_array(value: Any, where: str) -> Array:
    try:
        value = value.detach().cpu()
        try:
            return np.asarray(value.numpy())
        except TypeError:  # bfloat16 has no NumPy type
            return np.asarray(value.float().numpy())
    except (TypeError, RuntimeError) as error:  # sparse, quantised or without data
        raise InputError(f"{where} is a tensor that has no NumPy form; give a dense tensor with data") from error


def finite_array(
    value: Any,
    shape: tuple[int, ...],
    where: str,
    dtype: Any = None,
    needed: str = "",
    remedy: str = "",
    *,
    booleans: bool = False,
) -> Array:
    """Return an array of ``shape`` with finite values.

    Args:
        value: as :func:`as_array` takes it.
        dtype: what it is converted to, before the values are looked at; None keeps its own.
        needed: the shape in words, for the message.
        remedy: what to do about values that are not finite.
        booleans: whether they may be True and False.
    """
    array = as_array(value, where)
    if array.shape != shape:
        raise InputError(f"{where} has shape {array.shape}; it must be {needed or shape}")
    if not booleans and (array.dtype.kind == "b" or (isinstance(value, list | tuple) and _has_bool(value))):
        raise InputError(f"{where} holds True or False where numbers belong; give numbers")
    if dtype is not None:
        with np.errstate(over="ignore"):
            array = array.astype(dtype, copy=False)
    if not np.isfinite(array).all():
        raise InputError(f"{where} holds NaN or infinite values; {remedy or 'correct its source'}")
    return array


def _has_bool(value: list[Any] | tuple[Any, ...]) -> bool:
    """Whether nested lists hold a bool, which NumPy would take for 0 or 1."""
    return any(_has_bool(part) if isinstance(part, list | tuple) else isinstance(part, bool) for part in value)


def rgb_pixels(image: Array) -> npt.NDArray[np.uint8]:
    """Return an image that is uint8 (H, W, 3), and refuse any other."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"the image is {image.dtype} of shape {image.shape}; needed is uint8 (H, W, 3)")
    return image


def finite_range(pixels: Array, where: str) -> tuple[Any, Any]:
    """Return the smallest and the largest value of an image, both finite."""
    low, high = pixels.min(), pixels.max()  # NaN passes through both
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(f"{where} holds NaN or infinite values; check where the image comes from")
    return low, high


def normalized_image(value: Any, where: str, dtype: Any = np.float32, *, copy: bool = False) -> Array:
    """Return a normalised image (B, 3, H, W), contiguous and of the wanted type; ``value`` itself unless ``copy``."""
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
        image = np.array(image, dtype, order="C") if copy else np.ascontiguousarray(image, dtype)
    low, high = finite_range(image, where)
    if max(-low, high) > NORMALIZED_LIMIT:
        raise InputError(
            f"{where} has values up to {max(-low, high):g}, so it is not normalised; pass it through preprocess_inputs"
        )
    return image


def check_norm_type(value: Any, expected: str, where: str) -> None:
    """Refuse images that were normalised for another encoder than ``expected``."""
    names = [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else []
    if not names or any(not isinstance(name, str) or name != expected for name in names):
        raise DataNormTypeError(
            f"{where} is {value!r} but the image encoder expects [{expected!r}]; "
            f"load the images with norm_type={expected!r}"
        )


def metric_flags(value: Any, batch: int, where: str) -> Array:
    """Return metric flags (B,) bool of a Python bool, (B,) or (B, 1)."""
    flags = as_array(value, where)
    if flags.ndim == 0:
        flags = np.full(batch, flags)
    elif flags.shape == (batch, 1):
        flags = flags[:, 0]
    if flags.shape != (batch,):
        raise InputError(f"{where} has shape {flags.shape}; give one bool, or an array of shape ({batch},)")
    if not np.isin(flags, (0, 1)).all():
        raise InputError(f"{where} holds values other than True and False; give bools (it is not a scale factor)")
    return flags.astype(bool)


def check_one_calibration(view: Mapping[str, Any], where: str) -> None:
    """Refuse a view's dictionary with two calibrations."""
    if view.get("intrinsics") is not None and view.get("ray_directions") is not None:
        raise InputError(f"{where}: has both intrinsics and ray_directions; give only one of them")


def camera_intrinsics(value: Any, lead: tuple[int, ...], where: str, dtype: Any = None, needed: str = "") -> Array:
    """Return intrinsics (*lead, 3, 3) in pixels; float32 or float64 as given, or ``dtype``."""
    matrix = as_array(value, where)
    if dtype is None:
        dtype = matrix.dtype if matrix.dtype in (np.float32, np.float64) else np.float32
    matrix = finite_array(matrix, (*lead, 3, 3), where, dtype, needed)
    focal, centre = matrix[..., (0, 1), (0, 1)], matrix[..., :2, 2]
    if focal.min() <= 0:
        raise InputError(f"{where} has the focal length {focal.min():g}; fx and fy must be positive, in pixels")
    if focal.max() > MAX_FOCAL:
        raise InputError(f"{where} has the focal length {focal.max():g}, which no camera has; give it in pixels")
    if focal.min() < MIN_FOCAL or (np.abs(centre) > MAX_TANGENT * focal).any():
        raise InputError(
            f"{where} has the focal length {focal.min():g} and the principal point {centre.reshape(-1)[:2].tolist()}, "
            "which no camera has; give them in pixels, not as a fraction of the image"
        )
    skew = np.abs(matrix[..., 0, 1]).max()
    if skew > MAX_SKEW:
        raise InputError(
            f"{where} has a skew of {skew:g} pixels, which the network's cameras do not have; give the intrinsics of "
            "square axes, and the image without the skew"
        )
    if np.abs(matrix[..., 2, :] - (0, 0, 1)).max() > TOLERANCE or np.abs(matrix[..., 1, 0]).max() > TOLERANCE:
        raise InputError(f"{where} is not of the form [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]; is it transposed?")
    return matrix


def check_camera_of_image(matrix: Array, size: tuple[int, int], turned: bool, where: str) -> None:
    """Refuse intrinsics that belong to an image of another size or orientation: they would bend the reconstruction.

    Args:
        matrix: (3, 3), pixels of the upright image.
        size: (width, height) of the upright image.
        turned: whether EXIF turned the image sideways from how it is stored.
    """
    (width, height), (cx, cy) = size, (float(matrix[0, 2]), float(matrix[1, 2]))

    def off_centre(w: int, h: int) -> float:
        return float(np.hypot((cx - (w - 1) / 2) / w, (cy - (h - 1) / 2) / h))

    if min(matrix[0, 0], matrix[1, 1]) < MIN_RELATIVE_FOCAL * max(size):
        raise InputError(
            f"{where} has the focal length {min(matrix[0, 0], matrix[1, 1]):g} for an image of {width}x{height}, "
            "which no camera has; give pixels of this image"
        )
    if turned and off_centre(height, width) < off_centre(width, height):
        raise InputError(
            f"{where} fits the image as it is stored ({height}x{width}), but its EXIF orientation turns it upright "
            f"({width}x{height}); give intrinsics of the upright image or remove the EXIF orientation"
        )
    if not (-0.5 <= cx <= width - 0.5 and -0.5 <= cy <= height - 0.5):
        raise InputError(
            f"{where} has its principal point ({cx:g}, {cy:g}) outside the image of {width}x{height}; "
            "scale it to the size of this image"
        )


def unit_rays(value: Any, shape: tuple[int, ...], where: str, dtype: Any) -> Array:
    """Return ray directions (B, H, W, 3) of unit length."""
    rays = finite_array(value, shape, where, dtype)
    with np.errstate(over="ignore"):
        length = geometry.vector_norm(rays)
    if length.min() < 1e-6 or not np.isfinite(length).all():
        raise InputError(f"{where} has a ray of length {length.min():g} to {length.max():g}; give unit vectors")
    return geometry.normalize_rays(rays)


def depth_map(
    value: Any,
    shape: tuple[int, ...],
    where: str,
    dtype: Any = np.float32,
    *,
    fill_missing: bool = False,
    remedy: str = "they must be equal",
) -> Array:
    """Return depth along the optical axis in metres, of the image's ``shape``, 0 where there is none.

    Args:
        value: ``shape``, or with one channel at the end as upstream documents it.
        shape: (H, W) or (B, H, W).
        fill_missing: take NaN and infinity, with which cameras mark missing depth (ROS REP 118), as 0; the result is a
            copy. They are refused without.
        remedy: for a map of another shape.
    """
    depth = as_array(value, where)
    if depth.dtype.kind != "f":
        raise InputError(f"{where} holds {depth.dtype} values; give metres as float (divide millimetres by 1000)")
    if depth.shape == (*shape, 1):
        depth = depth[..., 0]
    if depth.shape != shape:
        raise InputError(f"{where} has shape {depth.shape}, the image {shape}; {remedy}")
    with np.errstate(over="ignore"):
        depth = depth.astype(dtype, copy=fill_missing)
    if fill_missing:
        depth[~np.isfinite(depth)] = 0
    elif not np.isfinite(depth).all():
        raise InputError(f"{where} holds NaN or infinite values; use 0 where depth is missing")
    if depth.min() < 0:
        raise InputError(f"{where} is negative somewhere ({depth.min():g}); use 0 where depth is missing")
    if depth.max() > MAX_DEPTH:
        raise InputError(f"{where} reaches {depth.max():g}, which is no distance; use 0 where depth is missing")
    return depth


def camera_pose(value: Any, lead: tuple[int, ...], where: str) -> Pose:
    """Return a camera-to-world matrix (*lead, 4, 4), or a quaternion (*lead, 4) xyzw and translation (*lead, 3)."""
    if isinstance(value, tuple | list) and len(value) == 2:
        quaternion, translation = (as_array(part, where) for part in value)
        if quaternion.shape[-1:] == (4,) and translation.shape[-1:] == (3,):
            quaternion = finite_array(quaternion, (*lead, 4), f"{where} (quaternion)")
            translation = finite_array(translation, (*lead, 3), f"{where} (translation)")
            with np.errstate(over="ignore"):
                length = np.sqrt((quaternion.astype(np.float64) ** 2).sum(axis=-1))
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
                f"quaternions {(*lead, 4)} in xyzw order and translations {(*lead, 3)}"
            )
    needed = f"{(*lead, 4, 4)}, camera-to-world, or a pair of quaternion {(*lead, 4)} and translation {(*lead, 3)}"
    matrix = finite_array(value, (*lead, 4, 4), where, needed=needed)
    exact = matrix.astype(np.float64)
    off = np.abs(exact[..., 3, :] - (0, 0, 0, 1)).max(axis=-1)
    if off.max() > TOLERANCE:
        row = ", ".join(f"{x:g}" for x in exact[..., 3, :].reshape(-1, 4)[off.argmax()])
        raise InputError(f"{where} has the last row [{row}]; it must be [0, 0, 0, 1]: is the matrix transposed?")
    rotation = exact[..., :3, :3]
    error = np.abs(rotation @ rotation.swapaxes(-1, -2) - np.eye(3)).max()
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
    _check_position(exact[..., :3, 3], where)
    return matrix


def _check_position(translation: Array, where: str) -> None:
    largest = np.abs(translation).max()
    if largest > MAX_POSITION:
        raise InputError(f"{where} is {largest:g} from the origin, which is no position; give metres")
