"""``transforms.json`` of nerfstudio and instant-ngp: cameras with OpenGL axes."""

from __future__ import annotations

import codecs
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ImageReadError, InputError, warn
from ...geometry import Array
from ...system.reading import read_file, shown_path
from ...typed_json.text import Document, parse_json, shorten
from ..images import image_size
from ..lenses import Lens
from ..resolutions import Size
from .image_files import warn_of_unlisted
from .selection import listed, natural_key
from .values import pose_matrix
from .view_files import InputFormat, ReadOptions, ViewFiles

_NAMES = ("transforms.json", "transforms_train.json")
_ENDINGS = ("", ".png", ".jpg", ".jpeg", ".PNG", ".JPG", ".JPEG")  # instant-ngp leaves the ending out
_DEPTHS, _MASK = ("depth_file_path", "depth_path"), "mask_path"
_FILES = (*_DEPTHS, _MASK)
_MOST_PIXELS = 2**31  # of a side, which no image has
_LARGEST = 256 * 1024 * 1024
_OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])
_INTEGERS = (".png", ".tif", ".tiff")
_PINHOLES = ("PINHOLE", "SIMPLE_PINHOLE", "OPENCV", "SIMPLE_RADIAL", "RADIAL", "FULL_OPENCV", "PERSPECTIVE")


def _matches(path: Path) -> bool:
    if path.is_dir():
        return any((path / name).is_file() for name in _NAMES)
    return path.suffix.lower() == ".json" and path.name.startswith("transforms")


def _read(path: Path, options: ReadOptions) -> list[ViewFiles]:
    """Return the frames in natural order of their files.

    Depth is in millimetres unless the file says otherwise. Poses beside depth are taken to be in metres; without depth
    nothing says their scale, so that they count as not metric.
    """
    folder = path if path.is_dir() else None
    if folder is not None:
        path = next(folder / name for name in _NAMES if (folder / name).is_file())
    document = Document(str(path), "correct the file", InputError, root="")
    try:
        content = read_file(path, _LARGEST)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    shared = parse_json(content.removeprefix(codecs.BOM_UTF8), document)
    frames = shared.get("frames") if isinstance(shared, dict) else None
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise InputError(f'{path}: has no "frames", a list of objects with file_path and transform_matrix')
    views = [_view({**shared, **frame}, path, f"{path}: frame {index}", options) for index, frame in enumerate(frames)]
    if folder is not None:
        _warn_of_others(folder, path, views, frames)
    return sorted(views, key=lambda view: natural_key(view.name))


def _warn_of_others(folder: Path, path: Path, views: list[ViewFiles], frames: list[Any]) -> None:
    """Say which images and other such files the folder holds."""
    named = [path.parent / frame[key] for frame in frames for key in _FILES if isinstance(frame.get(key), str)]
    files = [*named, *(view.image for view in views)]
    for place in sorted({view.image.parent for view in views}):
        warn_of_unlisted(place, files, f"{path.name} does not name")
    others = sorted(file.name for file in folder.glob("transforms*.json") if file != path)
    if others:
        warn(f"{folder}: left out {listed(others)}; give one of them by name")


def _view(values: Mapping[str, Any], path: Path, where: str, options: ReadOptions) -> ViewFiles:
    image = _file(values, "file_path", path, where)
    if image is None:
        raise InputError(f"{where}: has no file_path; add the path of its image")
    depth = None
    if options.gives("depth"):
        depth = next((file for file in (_file(values, key, path, where) for key in _DEPTHS) if file is not None), None)
    pose = None
    matrix = values.get("transform_matrix")
    if options.gives("poses") and matrix is not None:
        if not isinstance(matrix, list):
            raise InputError(f"{where}: transform_matrix is {shorten(matrix)}; it must be 4x4 or 3x4 numbers")
        pose = pose_matrix(matrix, f"{where}: transform_matrix") @ _OPENGL_TO_OPENCV
    intrinsics, lens, size = _camera(values, image, where)
    scale = _number(values, "depth_unit_scale_factor", where)
    if scale is None and depth is not None and depth.suffix.lower() in _INTEGERS:
        scale = _number(values, "integer_depth_scale", where)
    return ViewFiles(
        image,
        intrinsics=intrinsics,
        depth=depth,
        depth_scale=None if depth is None else scale,
        pose=pose,
        metric=None if depth is not None else False,
        mask=_file(values, _MASK, path, where),
        lens=lens,
        camera_size=size,
        name=_name(image, path.parent),
    )


def _name(image: Path, folder: Path) -> str:
    """The path of an image as it stands below the file that names it."""
    return image.relative_to(folder).as_posix() if image.is_relative_to(folder) else image.name


def _camera(values: Mapping[str, Any], image: Path, where: str) -> tuple[Array | None, Lens | None, Size | None]:
    """Intrinsics with pixel centres at integers, distortion, and the size that they are of."""
    width, height = _number(values, "w", where), _number(values, "h", where)
    for key, side in (("w", width), ("h", height)):
        if side is not None and not 1 <= side < _MOST_PIXELS:
            raise InputError(f"{where}: {key} is {side:g}; it must be the size of the image in pixels")
    size = image_size(image) if width is None or height is None else (int(width), int(height))
    fx, fy = _number(values, "fl_x", where), _number(values, "fl_y", where)
    for axis, side in (("x", size[0]), ("y", size[1])):
        angle = _number(values, f"camera_angle_{axis}", where)
        if angle is not None and not 0 < angle < math.pi:
            raise InputError(f"{where}: camera_angle_{axis} is {angle:g}; it must be an angle in radians below pi")
        focal = None if angle is None else side / (2 * math.tan(angle / 2))
        fx, fy = (focal if fx is None else fx, fy) if axis == "x" else (fx, focal if fy is None else fy)
    if fx is None and fy is None:
        return None, None, None
    fx, fy = (fy if fx is None else fx) or 0, (fx if fy is None else fy) or 0
    if min(fx, fy) <= 0:
        raise InputError(f"{where}: has the focal length {min(fx, fy):g}; fl_x and fl_y are pixels above 0")
    cx, cy = _number(values, "cx", where), _number(values, "cy", where)
    cx, cy = size[0] / 2 if cx is None else cx, size[1] / 2 if cy is None else cy
    matrix = np.array([[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1]], np.float32)
    k = tuple(_number(values, f"k{i}", where) or 0.0 for i in range(1, 5))
    p = (_number(values, "p1", where) or 0.0, _number(values, "p2", where) or 0.0)
    model = str(values.get("camera_model", "OPENCV"))
    if model in ("OPENCV_FISHEYE", "FISHEYE") or values.get("is_fisheye") is True:
        return matrix, Lens(model, k, fisheye=True), size
    if model not in _PINHOLES:
        raise InputError(
            f"{where}: has the camera_model {shorten(model)[1:-1]}, which is not read; undistort the images first"
        )
    lens = Lens(model, k, tangential=p)
    return matrix, None if lens.is_pinhole else lens, size


def _number(values: Mapping[str, Any], key: str, where: str) -> float | None:
    value = values.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{where}: {key} is {shorten(value)}; it must be a number")
    return float(value)


def _file(values: Mapping[str, Any], key: str, path: Path, where: str) -> Path | None:
    name = values.get(key)
    if name is None:
        return None
    if not isinstance(name, str) or not name or "\0" in name:
        raise InputError(f"{where}: {key} is {shorten(name)}; it must be the path of a file")
    for spelling in (name, name.replace("\\", "/")):  # Windows
        for ending in _ENDINGS:
            found = path.parent / f"{spelling}{ending}"
            if os.path.isfile(found):  # unlike Path.is_file, false for a name that is too long
                return found
    raise ImageReadError(
        f"{where}: {key}: there is no file {shown_path(path.parent / name)}; paths are relative to the JSON file"
    )


TRANSFORMS = InputFormat("transforms.json", _matches, _read)
