"""Single values of a view (image, camera, pose, depth) from what people hold, checked one by one.

``where`` in every function names the view and the key for the error message.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from ..errors import ImageReadError, InputError, MapEngineError
from .checks import MIN_FOCAL, as_array
from .images import read_depth, read_image, to_rgb

Array = NDArray[Any]

_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_MIN_RELATIVE_FOCAL = 0.01  # of the image's longer side, which is a field of view of 179 degrees
_UNIT_OVERSHOOT = 1.5
_LARGEST_TEXT = 65536  # bytes; a matrix of 16 numbers needs far less


def read_view_image(source: Any, where: str) -> tuple[Image.Image | Array, tuple[int, int], bool]:
    """The upright image, its (H, W), and whether EXIF turned it sideways from how it is stored."""
    if isinstance(source, str | os.PathLike):
        try:
            image = read_image(source)
        except MapEngineError as error:
            raise type(error)(f"{where}: {error}") from error
        return image, (image.height, image.width), _stored_sideways(source)
    if isinstance(source, Image.Image):
        try:
            sideways = source.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS
            image = to_rgb(ImageOps.exif_transpose(source))
        except Exception as error:  # an opened file is decoded only here, and decoders raise many types
            raise ImageReadError(f"{where}: cannot be read: {error}") from error
        return image, (image.height, image.width), sideways
    if source is None or isinstance(source, bytes | Mapping):
        raise InputError(f"{where} is a {type(source).__name__}; give a path, a Pillow image or an array (H, W, 3)")
    pixels = as_array(source, where)
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or 0 in pixels.shape:
        raise InputError(f"{where} has shape {pixels.shape}; give colour arrays (H, W, 3)")
    if pixels.dtype != np.uint8:
        pixels = _to_uint8(pixels, where)
    return pixels, (pixels.shape[0], pixels.shape[1]), False


def _to_uint8(pixels: Array, where: str) -> NDArray[np.uint8]:
    """Floats in 0..1 or 0..255 as uint8, truncated as upstream does."""
    if pixels.dtype.kind != "f":
        raise InputError(f"{where} holds {pixels.dtype} values; give uint8, or floats in 0..1 or 0..255")
    low, high = float(pixels.min()), float(pixels.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(f"{where} holds NaN or infinite values; replace them")
    if low < 0 or high > 255:
        raise InputError(
            f"{where} has values from {low:.4g} to {high:.4g}; give 0..1 or 0..255, before any mean or scale is applied"
        )
    # A resized picture overshoots 1 a little; a picture in 0..255 that stays below 1.5 would be black.
    return np.asarray(np.minimum(pixels, 1) * 255 if high <= _UNIT_OVERSHOOT else pixels).astype(np.uint8)


def _stored_sideways(path: str | os.PathLike[str]) -> bool:
    try:
        with Image.open(path) as image:
            return image.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS
    except Exception:  # the image itself was read before; damaged EXIF data turn nothing
        return False


def camera_matrix(value: Any, where: str) -> Array:
    """Intrinsics (3, 3) float32 from a matrix, four numbers or a text file."""
    if not isinstance(value, str | os.PathLike):
        numbers = as_array(value, where)
        if numbers.shape == (4,):
            fx, fy, cx, cy = numbers
            value = [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]
    matrix = number_matrix(value, (3, 3), where, " or [fx, fy, cx, cy]")
    if matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
        raise InputError(f"{where} has the focal lengths {matrix[0, 0]:g} and {matrix[1, 1]:g}; they must be positive")
    return matrix


def number_matrix(
    value: Any, shape: tuple[int, int], where: str, alternative: str = "", dtype: Any = np.float32
) -> Array:
    """A finite matrix of ``shape`` and ``dtype`` from an array, nested lists or a text file of numbers."""
    needed = f"{shape[0]}x{shape[1]} numbers"
    if isinstance(value, str | os.PathLike):
        where = f"{where}: {os.fspath(value)}"
        try:
            with open(value, "rb") as file:
                text = file.read(_LARGEST_TEXT).decode("utf-8-sig")
            value = np.array([float(word) for word in text.replace(",", " ").split()])
        except OSError as error:
            raise InputError(f"{where}: cannot be read: {error.strerror or error}") from error
        except ValueError:
            raise InputError(f"{where}: is not a text file of {needed}") from None
        if value.size != shape[0] * shape[1]:
            raise InputError(f"{where}: holds {value.size} numbers; it must be {needed}")
        value = value.reshape(shape)
    matrix = as_array(value, where)
    if matrix.shape != shape:
        raise InputError(f"{where} has shape {matrix.shape}; give {needed}{alternative}")
    with np.errstate(over="ignore"):
        matrix = matrix.astype(dtype)
    if not np.isfinite(matrix).all():
        raise InputError(f"{where} holds NaN or infinite values; correct its source")
    return matrix


def check_camera(matrix: Array, size: tuple[int, int], stored_sideways: bool, where: str) -> None:
    """Refuse intrinsics that belong to an image of another size or orientation: they would bend the reconstruction."""
    (height, width), (cx, cy) = size, (float(matrix[0, 2]), float(matrix[1, 2]))

    def off_centre(w: int, h: int) -> float:
        return float(np.hypot((cx - (w - 1) / 2) / w, (cy - (h - 1) / 2) / h))

    smallest = max(MIN_FOCAL, _MIN_RELATIVE_FOCAL * max(size))
    if min(matrix[0, 0], matrix[1, 1]) < smallest:
        raise InputError(
            f"{where} have the focal length {min(matrix[0, 0], matrix[1, 1]):g} for an image of {width}x{height}, "
            "which no camera has; give pixels, not a fraction of the image size"
        )
    if stored_sideways and off_centre(height, width) < off_centre(width, height):
        raise InputError(
            f"{where} fit the image as it is stored ({height}x{width}), but its EXIF orientation turns it upright "
            f"({width}x{height}); give intrinsics of the upright image or remove the EXIF orientation"
        )
    if not (-0.5 <= cx <= width - 0.5 and -0.5 <= cy <= height - 0.5):
        raise InputError(
            f"{where} have their principal point ({cx:g}, {cy:g}) outside the image of {width}x{height}; "
            "scale them to the size of this image"
        )


def read_view_depth(value: Any, scale: Any, size: tuple[int, int], stored_sideways: bool, where: str) -> Array:
    """Depth (H, W) float32 metres from a file or an array, of the image's size (H, W)."""
    if isinstance(value, str | os.PathLike):
        try:
            depth = read_depth(value, scale)
        except MapEngineError as error:
            raise type(error)(f"{where}: {error}") from error
    else:
        depth = as_array(value, where)
        if depth.dtype.kind != "f":
            raise InputError(f"{where} holds {depth.dtype} values; give metres as float (divide millimetres by 1000)")
        if depth.ndim == 3 and depth.shape[-1] == 1:
            depth = depth[..., 0]
        with np.errstate(over="ignore"):
            depth = depth.astype(np.float32)
    if depth.shape != size:
        hint = "resize it to the image"
        if depth.shape == size[::-1] and stored_sideways:
            hint = "the EXIF orientation turns the image but not the depth: turn the depth map too"
        raise InputError(f"{where} has shape {depth.shape}, the image {size} (H, W); {hint}")
    return np.asarray(depth)
