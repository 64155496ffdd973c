"""What people hold (files, folders, arrays, Pillow images) as raw views."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import InputError, MapEngineError
from ..geometry import Array
from ..system.threads import in_order
from .checks import (
    as_array,
    camera_intrinsics,
    camera_pose,
    check_camera_of_image,
    depth_map,
    finite_array,
    finite_range,
)
from .images import IMAGE_EXTENSIONS, read_depth, read_upright, upright
from .raw_view import RawView

NO_CAMERA = "has a depth map but no intrinsics"
_UNIT_OVERSHOOT = 1.5
_LARGEST_TEXT = 65536  # bytes; a matrix of 16 numbers needs far less


def read_views(
    images: Any,
    intrinsics: Any = None,
    poses: Any = None,
    depths: Any = None,
    metric: bool | Sequence[bool | None] | None = None,
    depth_scale: float | Sequence[float | None] | None = None,
    *,
    copy: bool = True,
) -> list[RawView]:
    """Read the views of one call. V is the number of images.

    Args:
        images: a folder (its images, sorted by name), a file, an image, or a sequence of these: paths, Pillow images
            (EXIF orientation is applied to both), arrays (H, W, 3) of uint8 or of floats in 0..1 or 0..255.
        intrinsics: one camera for all views, or one (or None) per view: (3, 3), ``[fx, fy, cx, cy]``, or a text file.
            Pixels of the upright image, pixel centres at integers.
        poses: one (or None) per view: (4, 4) camera-to-world in OpenCV axes, or a text file.
        depths: one (or None) per view: (H, W) float metres with 0 where there is none, or a file for ``read_depth``.
            A view with depth needs intrinsics.
        metric: whether the depth and poses are in metres, for all or per view; None: upstream's default, yes.
        depth_scale: metres per stored unit of depth files, for all or per view; None: see ``read_depth``.
        copy: keep no image array of the caller, who may fill it anew before the views are used.

    Returns:
        V views, with float32 intrinsics and depth and float64 poses; the name is that of the file, or ``view 0``.

    Raises:
        InputError: numbers of entries that differ, a wrong shape, values that cannot be right; names view and key.
        ImageReadError: an image or depth file that cannot be read.
    """
    sources = _sources(images)
    count = len(sources)
    cameras = _per_view(intrinsics, count, "intrinsics", shared_shapes=((3, 3), (4,)), shared_path=True)
    pose_list = _per_view(poses, count, "poses", shared_shapes=((4, 4),) if count == 1 else (), shared_path=count == 1)
    depth_list = _per_view(depths, count, "depths", shared_ndim=2 if count == 1 else None, shared_path=count == 1)
    metric_list = _flags(metric, count)
    scales = _per_view(depth_scale, count, "depth_scale", shared_shapes=((),))
    views: list[RawView] = []
    read = in_order(lambda index: _image(sources[index], f"view {index}: image"), range(count))
    for index, (source, (image, turned)) in enumerate(zip(sources, read, strict=True)):
        where = f"view {index}"
        if copy and isinstance(image, np.ndarray):
            image = image.copy()
        size = image.size if isinstance(image, Image.Image) else (image.shape[1], image.shape[0])
        camera, depth, pose = cameras[index], depth_list[index], pose_list[index]
        if camera is not None:
            camera = camera_matrix(camera, f"{where}: intrinsics")
            check_camera_of_image(camera, size, turned, f"{where}: intrinsics")
        if depth is not None:
            if camera is None:
                raise InputError(f"{where}: {NO_CAMERA}; give its intrinsics or leave the depth out")
            depth = _depth(depth, scales[index], size, turned, f"{where}: depth")
        if pose is not None:
            pose = pose_matrix(pose, f"{where}: pose")
        name = Path(source).name if isinstance(source, str | os.PathLike) else where
        views.append(RawView(image, camera, depth, pose, metric_list[index], name))
    return views


def camera_matrix(value: Any, where: str) -> Array:
    """Return intrinsics (3, 3) float32 of a matrix, four numbers or a text file."""
    where, value = _numbers(value, (3, 3), where)
    numbers = as_array(value, where)
    if numbers.shape == (4,):
        fx, fy, cx, cy = numbers
        numbers = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    return camera_intrinsics(numbers, (), where, np.float32, "3x3 numbers or [fx, fy, cx, cy]").copy()


def pose_matrix(value: Any, where: str) -> Array:
    """Return a camera-to-world matrix (4, 4) float64 of a matrix or a text file."""
    where, value = _numbers(value, (4, 4), where)
    matrix = finite_array(value, (4, 4), where, np.float64, "4x4 numbers")
    camera_pose(matrix, (), where)
    return matrix.copy()


def _numbers(value: Any, shape: tuple[int, int], where: str) -> tuple[str, Any]:
    """The place and the numbers of a text file, as an array of ``shape``; anything else as it is."""
    if not isinstance(value, str | os.PathLike):
        return where, value
    where, needed = f"{where}: {os.fspath(value)}", f"{shape[0]}x{shape[1]} numbers"
    try:
        with open(value, "rb") as file:
            text = file.read(_LARGEST_TEXT).decode("utf-8-sig")
        numbers = np.array([float(word) for word in text.replace(",", " ").split()])
    except OSError as error:
        raise InputError(f"{where}: cannot be read: {error.strerror or error}") from error
    except ValueError:
        raise InputError(f"{where}: is not a text file of {needed}") from None
    if numbers.size != shape[0] * shape[1]:
        raise InputError(f"{where}: holds {numbers.size} numbers; it must be {needed}")
    return where, numbers.reshape(shape)


def _image(source: Any, where: str) -> tuple[Image.Image | npt.NDArray[np.uint8], bool]:
    """The upright image, and whether EXIF turned it sideways from how it is stored."""
    if isinstance(source, str | os.PathLike | Image.Image):
        try:
            return upright(source) if isinstance(source, Image.Image) else read_upright(source)
        except MapEngineError as error:
            raise type(error)(f"{where}: {error}") from error
    if source is None or isinstance(source, bytes | Mapping):
        raise InputError(f"{where} is a {type(source).__name__}; give a path, a Pillow image or an array (H, W, 3)")
    pixels = as_array(source, where)
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or 0 in pixels.shape:
        raise InputError(f"{where} has shape {pixels.shape}; give colour arrays (H, W, 3)")
    return pixels if pixels.dtype == np.uint8 else _to_uint8(pixels, where), False


def _to_uint8(pixels: Array, where: str) -> npt.NDArray[np.uint8]:
    """Floats in 0..1 or 0..255 as uint8, truncated as upstream does."""
    if pixels.dtype.kind != "f":
        raise InputError(f"{where} holds {pixels.dtype} values; give uint8, or floats in 0..1 or 0..255")
    low, high = finite_range(pixels, where)
    if low < 0 or high > 255:
        raise InputError(
            f"{where} has values from {low:.4g} to {high:.4g}; give 0..1 or 0..255, before any mean or scale is applied"
        )
    # A resized picture overshoots 1 a little; a picture in 0..255 that stays below 1.5 would be black.
    return np.asarray(np.minimum(pixels, 1) * 255 if high <= _UNIT_OVERSHOOT else pixels).astype(np.uint8)


def _depth(value: Any, scale: Any, size: tuple[int, int], turned: bool, where: str) -> Array:
    """Depth (H, W) float32 metres of a file or an array, of an image of ``size`` = (W, H)."""
    if isinstance(value, str | os.PathLike):
        try:
            value = read_depth(value, scale)
        except MapEngineError as error:
            raise type(error)(f"{where}: {error}") from error
    remedy = "resize it to the image"
    if turned and tuple(getattr(value, "shape", ()))[:2] == size:
        remedy = "the EXIF orientation turns the image but not the depth: turn the depth map too"
    return depth_map(value, size[::-1], where, fill_missing=True, remedy=remedy)


def _sources(images: Any) -> list[Any]:
    """The images one by one; folders are listed."""
    if isinstance(images, str | os.PathLike):
        folder = Path(images)
        if not folder.is_dir():
            return [images]
        try:
            files = sorted(f for f in folder.iterdir() if f.suffix.lower() in IMAGE_EXTENSIONS and f.is_file())
        except OSError as error:
            raise InputError(f"{folder}: cannot be listed as a folder of images: {error.strerror}") from error
        if not files:
            raise InputError(f"{folder}: holds no images ({' '.join(IMAGE_EXTENSIONS)}); check the folder")
        return list(files)
    if isinstance(images, Image.Image) or getattr(images, "ndim", None) == 3:
        return [images]
    if getattr(images, "ndim", 4) != 4:
        raise InputError(f"images has shape {tuple(images.shape)}; give (H, W, 3), (V, H, W, 3) or a list of images")
    # A set has no first image, and the first is the reference view.
    if isinstance(images, Mapping | bytes | Set) or not isinstance(images, Iterable):
        raise InputError(f"images is a {type(images).__name__}; give paths, Pillow images, arrays or a folder")
    sources = list(images)
    if not sources:
        raise InputError("there are no images; give at least one")
    return sources


def _per_view(
    values: Any,
    count: int,
    name: str,
    shared_shapes: tuple[tuple[int, ...], ...] = (),
    shared_ndim: int | None = None,
    shared_path: bool = False,
) -> list[Any]:
    """One entry per view; a single value of a shared shape (or one file) stands for all views."""
    if values is None:
        return [None] * count
    if isinstance(values, str | os.PathLike):
        if shared_path:
            return [values] * count
        raise InputError(f"{name} is a {type(values).__name__}; give a list with one entry (or None) per view")
    shape = _shape(values)
    if shape is not None and (shape in shared_shapes or len(shape) == shared_ndim):
        return [values] * count
    if isinstance(values, Mapping) or not isinstance(values, Iterable) or shape == ():
        raise InputError(f"{name} is a {type(values).__name__}; give a list with one entry (or None) per view")
    entries = list(values)
    if len(entries) != count:
        raise InputError(f"{name} has {len(entries)} entries for {count} images; give one (or None) per view")
    return entries


def _shape(values: Any) -> tuple[int, ...] | None:
    """Shape of an array or of nested lists of numbers; None for anything else (such as a list with None)."""
    if hasattr(values, "shape"):
        return tuple(values.shape)
    try:
        array = np.asarray(values)
    except (ValueError, TypeError):
        return None
    return array.shape if array.dtype.kind in "fiu" else None


def _flags(metric: Any, count: int) -> list[bool | None]:
    entries: list[Any] = [metric] * count
    if not isinstance(metric, bool | np.bool_):
        entries = _per_view(metric, count, "metric")
    for index, flag in enumerate(entries):
        if flag is not None and not isinstance(flag, bool | np.bool_):
            raise InputError(f"view {index}: metric is {flag!r}; give True, False or None")
    return entries
