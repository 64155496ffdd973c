"""Camera matrices and poses in the forms that people write them in."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ...errors import InputError
from ...geometry import Array
from ...system.reading import read_file, shown_path
from ..checks import as_array, camera_intrinsics, camera_pose, finite_array

_LARGEST_TEXT = 65536  # bytes; a matrix of 16 numbers needs far less
_LAST_ROW = (0, 0, 0, 1)
_CAMERA = "3x3 numbers, 4x4 numbers or [fx, fy, cx, cy]"
_MATRICES = ((3, 3), (4,))
_POSE = "4x4 numbers or 3x4 numbers"


def camera_matrix(value: Any, where: str) -> Array:
    """Return intrinsics (3, 3) float32 of a matrix (3, 3) or (4, 4), four numbers, or a text file with one of these."""
    where, value = _numbers(value, {4: (4,), 9: (3, 3), 16: (4, 4)}, "3x3 numbers", _CAMERA, where)
    numbers = as_array(value, where)
    if numbers.shape == (4,):
        fx, fy, cx, cy = numbers
        numbers = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    elif is_4x4_camera(numbers):
        numbers = numbers[:3, :3]
    return camera_intrinsics(numbers, (), where, np.float32, _CAMERA).copy()


def is_one_camera(value: Any) -> bool:
    """Return whether a value is the camera of all views, and no list of one per view."""
    if value is None:
        return False
    if isinstance(value, str | os.PathLike):
        return True
    shape = shape_of(value)
    return shape in _MATRICES or (shape == (4, 4) and is_4x4_camera(np.asarray(value)))


def is_4x4_camera(numbers: Array) -> bool:
    """Return whether numbers are a camera matrix that was filled up to (4, 4), and not four cameras of four numbers."""
    return numbers.shape == (4, 4) and bool((numbers[3] == _LAST_ROW).all() and (numbers[:3, 3] == 0).all())


def pose_matrix(value: Any, where: str) -> Array:
    """Return a camera-to-world matrix (4, 4) float64 of a matrix (4, 4) or (3, 4), or a text file with one of these."""
    where, value = _numbers(value, {16: (4, 4), 12: (3, 4)}, "4x4 numbers", _POSE, where)
    numbers = as_array(value, where)
    if numbers.shape == (3, 4):
        numbers = np.vstack([numbers, _LAST_ROW])
    matrix = finite_array(numbers, (4, 4), where, np.float64, _POSE)
    camera_pose(matrix, (), where)
    return matrix.copy()


def shape_of(values: Any) -> tuple[int, ...] | None:
    """Return the shape of an array or of nested lists of numbers; None for anything else (such as a list with None)."""
    if hasattr(values, "shape"):
        return tuple(values.shape)
    try:
        array = np.asarray(values)
    except (ValueError, TypeError):
        return None
    return array.shape if array.dtype.kind in "fiu" else None


def _numbers(value: Any, shapes: dict[int, tuple[int, ...]], usual: str, needed: str, where: str) -> tuple[str, Any]:
    """The place and the numbers of a text file, in the shape of their number; anything else as it is."""
    if not isinstance(value, str | os.PathLike):
        return where, value
    where = f"{where}: {shown_path(value)}"
    try:
        text = read_file(value, _LARGEST_TEXT).decode("utf-8-sig")
        lines = (line.partition("#")[0] for line in text.splitlines())
        numbers = np.array([float(word) for line in lines for word in line.translate(_BRACKETS).split()])
    except OSError as error:
        raise InputError(f"{where}: cannot be read: {error.strerror or error}") from error
    except ValueError:
        raise InputError(f"{where}: is not a text file of {usual}") from None
    if numbers.size not in shapes:
        raise InputError(f"{where}: holds {numbers.size} numbers; it must be {needed}")
    return where, numbers.reshape(shapes[numbers.size])


_BRACKETS = str.maketrans("[](),;", "      ")
