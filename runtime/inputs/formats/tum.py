"""RGB-D recordings of TUM: ``rgb.txt``, ``depth.txt`` and ``groundtruth.txt`` with timestamps."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...errors import ImageReadError, InputError, warn
from ...geometry import Array, pose_matrix
from ...system.reading import read_file
from ..checks import camera_pose
from .image_files import warn_of_unlisted
from .selection import listed
from .seven_scenes import CAMERA_FILE, recording_camera
from .view_files import InputFormat, ReadOptions, ViewFiles

DEPTH_SCALE = 1 / 5000
"""Metres per unit of TUM's depth maps."""
_CAMERA_FILES = (CAMERA_FILE, "intrinsics.txt", "camera.txt", "calibration.txt", "K.txt")
_LARGEST = 2**28  # bytes of a list
_NEAR = 0.02  # seconds, as TUM's own tool for association has it


def _matches(path: Path) -> bool:
    return (path / "rgb.txt").is_file()


def _read(folder: Path, options: ReadOptions) -> list[ViewFiles]:
    """Return the frames that have depth and a pose within 20 ms, in order; one warning names the others."""
    rgb = _rows(folder / "rgb.txt", 2)
    if not rgb:
        raise InputError(f"{folder / 'rgb.txt'}: lists no images; give lines of: timestamp, file")
    times = np.array([time for time, _ in rgb])
    depth = _rows(folder / "depth.txt", 2) if options.gives("depth") and (folder / "depth.txt").is_file() else None
    truth = folder / "groundtruth.txt"
    poses = _rows(truth, 8) if options.gives("poses") and truth.is_file() else None
    keep = np.ones(len(rgb), bool)
    near: dict[str, Array] = {}
    for name, rows in (("depth", depth), ("pose", poses)):
        if rows is not None:
            near[name], apart = _nearest(times, np.array([time for time, _ in rows]))
            keep &= apart <= _NEAR
    if not keep.any():
        raise InputError(f"{folder}: no image has {' and '.join(near)} within {_NEAR} s; check the timestamps")
    if not keep.all():
        names = listed(rgb[i][1][0] for i in np.flatnonzero(~keep))
        warn(f"{folder}: left out {(~keep).sum()} images without {' and '.join(near)} within {_NEAR} s ({names})")
    camera = recording_camera(folder, _CAMERA_FILES, options)
    views = []
    for index in np.flatnonzero(keep):
        time, (name, *_) = rgb[index]
        file = None
        if depth is not None:
            file = _file(folder, depth[near["depth"][index]][1][0], "depth.txt")
        pose = None
        if poses is not None:
            pose = _pose(poses[near["pose"][index]][1], f"{truth}: pose at {time:.4f}")
        views.append(
            ViewFiles(
                _file(folder, name, "rgb.txt"),
                intrinsics=camera,
                depth=file,
                depth_scale=DEPTH_SCALE if file else None,
                pose=pose,
                name=name,
                time=time,
            )
        )
    files = [folder / name for _, (name, *_) in (*rgb, *(depth or ()))]
    for place in sorted({file.parent for file in files[: len(rgb)]}):
        warn_of_unlisted(place, files, "rgb.txt does not name")
    return views


def _rows(path: Path, columns: int) -> list[tuple[float, list[str]]]:
    """Lines of a timestamp and further columns, in the order of time."""
    try:
        lines = read_file(path, _LARGEST).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a list with timestamps ({error}); check the file") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        # A name may hold spaces; numbers may be followed by a comment.
        words = line.partition("#")[0].replace(",", " ").split()
        if columns == 2:
            words = [word.strip(" \t,") for word in line.strip().replace(",", " ", 1).split(maxsplit=1)]
        try:
            time = float(words[0])
        except ValueError:
            time = float("nan")
        if len(words) < columns or not np.isfinite(time):
            raise InputError(f"{path}: line {number} is not a timestamp with {columns - 1} more values; correct it")
        rows.append((time, words[1:]))
    return sorted(rows, key=lambda row: row[0])


def _nearest(times: Array, others: Array) -> tuple[Array, Array]:
    """Per time the index of the nearest of the others, and how far it is."""
    if not len(others):
        return np.zeros(len(times), int), np.full(len(times), np.inf)
    right = np.clip(np.searchsorted(others, times), 1, max(len(others) - 1, 1))
    left = right - 1
    right = np.minimum(right, len(others) - 1)
    nearest = np.where(np.abs(others[left] - times) <= np.abs(others[right] - times), left, right)
    return nearest, np.abs(others[nearest] - times)


def _file(folder: Path, name: str, where: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise ImageReadError(f"{folder / where}: names {name}, which is not there; correct the list")
    return path


def _pose(words: list[str], where: str) -> Array:
    """tx ty tz qx qy qz qw, camera-to-world."""
    try:
        numbers = np.array([float(word) for word in words[:7]])
    except ValueError:
        raise InputError(f"{where} is not tx ty tz qx qy qz qw; correct it") from None
    camera_pose((numbers[3:], numbers[:3]), (), where)
    return pose_matrix(numbers[3:], numbers[:3])


TUM = InputFormat("TUM RGB-D", _matches, _read)
