"""``transforms.json`` of nerfstudio and instant-ngp: cameras with OpenGL axes."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ImageReadError, InputError
from ...geometry import Array
from ...system.reading import read_file, shown_path
from ...typed_json.text import Document, parse_json, shorten
from ..images import image_size
from ..lenses import Lens
from ..resolutions import Size
from .selection import natural_key
from .values import pose_matrix
from .view_files import InputFormat, ReadOptions, ViewFiles

_NAMES = ("transforms.json", "transforms_train.json")
_ENDINGS = ("", ".png", ".jpg", ".jpeg")  # instant-ngp leaves the ending out
_LARGEST = 256 * 1024 * 1024
_OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])
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
    if path.is_dir():
        path = next(path / name for name in _NAMES if (path / name).is_file())
    document = Document(str(path), "correct the file", InputError, root="")
    try:
        content = read_file(path, _LARGEST)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    shared = parse_json(content, document)
    frames = shared.get("frames") if isinstance(shared, dict) else None
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise InputError(f'{path}: has no "frames", a list of objects with file_path and transform_matrix')
    views = [_view({**shared, **frame}, path, f"{path}: frame {index}", options) for index, frame in enumerate(frames)]
    return sorted(views, key=lambda view: natural_key(view.name))


def _view(values: Mapping[str, Any], path: Path, where: str, options: ReadOptions) -> ViewFiles:
    image = _file(values, "file_path", path, where)
    if image is None:
        raise InputError(f"{where}: has no file_path; add the path of its image")
    depth = None
    if options.gives("depth"):
        depth = _file(values, "depth_file_path", path, where) or _file(values, "depth_path", path, where)
    pose = None
    if options.gives("poses") and values.get("transform_matrix") is not None:
        pose = pose_matrix(values["transform_matrix"], f"{where}: transform_matrix") @ _OPENGL_TO_OPENCV
    intrinsics, lens, size = _camera(values, image, where)
    scale = _number(values, "depth_unit_scale_factor", where) or _number(values, "integer_depth_scale", where)
    return ViewFiles(
        image,
        intrinsics=intrinsics,
        depth=depth,
        depth_scale=scale if depth is not None and depth.suffix.lower() in (".png", ".tif", ".tiff") else None,
        pose=pose,
        metric=None if depth is not None else False,
        mask=_file(values, "mask_path", path, where),
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
    size = (int(width), int(height)) if width and height else image_size(image)
    fx, fy = _number(values, "fl_x", where), _number(values, "fl_y", where)
    for axis, side in (("x", size[0]), ("y", size[1])):
        angle = _number(values, f"camera_angle_{axis}", where)
        if angle is not None and not 0 < angle < math.pi:
            raise InputError(f"{where}: camera_angle_{axis} is {angle:g}; it must be an angle in radians below pi")
        focal = None if angle is None else side / (2 * math.tan(angle / 2))
        fx, fy = (fx if fx else focal, fy) if axis == "x" else (fx, fy if fy else focal)
    if not (fx or fy):
        return None, None, None
    fx, fy = fx or fy, fy or fx
    if min(fx or 0, fy or 0) <= 0:
        raise InputError(f"{where}: has the focal length {min(fx or 0, fy or 0):g}; fl_x and fl_y are pixels above 0")
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
    for ending in _ENDINGS:
        found = path.parent / f"{name}{ending}"
        if os.path.isfile(found):  # unlike Path.is_file, false for a name that is too long
            return found
    raise ImageReadError(
        f"{where}: {key}: there is no file {shown_path(path.parent / name)}; paths are relative to the JSON file"
    )


TRANSFORMS = InputFormat("transforms.json", _matches, _read)
