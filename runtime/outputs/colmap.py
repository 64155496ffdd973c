"""A scene as a COLMAP model (the formats of https://colmap.github.io/format.html), text and binary.

COLMAP's conventions: world-to-camera poses, OpenCV camera axes, quaternions w x y z, and the centre of the upper left
pixel at (0.5, 0.5), where this project counts pixel centres from 0: principal points and observations move by half a
pixel.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError
from ..geometry import matrix_to_quaternion, quaternion_to_matrix
from ..writing.folders import atomic_folder
from .scene_arrays import SceneArrays

COLMAP_NAMES = ("sparse", "images")
"""What is written into a COLMAP folder itself."""

COLMAP_MAX_POINTS = 100_000
"""How many points a COLMAP folder gets unless ``max_points`` says otherwise."""

_PINHOLE = 1  # COLMAP's number for the model with parameters fx, fy, cx, cy
_POINT = np.dtype(
    [
        ("id", "<u8"),
        ("xyz", "<f8", 3),
        ("rgb", "u1", 3),
        ("error", "<f8"),
        ("length", "<u8"),
        ("image", "<u4"),
        ("observation", "<u4"),
    ]
)
_OBSERVATION = np.dtype([("xy", "<f8", 2), ("point", "<u8")])


class _View(NamedTuple):
    number: int  # COLMAP counts images and cameras from 1
    name: str
    size: tuple[int, int]  # (W, H)
    parameters: NDArray[np.float64]  # fx, fy, cx, cy
    quaternion: NDArray[np.float64]  # w, x, y, z of the world-to-camera rotation
    translation: NDArray[np.float64]
    points: NDArray[Any]  # _POINT records seen by this view
    observations: NDArray[Any]  # _OBSERVATION records in the same order


def write_colmap(folder: str | os.PathLike[str], scene: SceneArrays, selection: NDArray[np.bool_]) -> None:
    """Write ``sparse/0/{cameras,images,points3D}.{txt,bin}`` and the images as PNG into ``images/``.

    Each view gets its own PINHOLE camera for the H x W image that the network saw (not for the original photo). Each
    selected pixel becomes a 3D point with one observation, the centre of its pixel; the point's error is its
    reprojection error in pixels. Points that are not in front of their own camera are left out: a pinhole camera
    cannot see them.

    Args:
        scene: arrays as in :class:`~.scene.Scene`.
        selection: (V, H, W) bool, the pixels that become points.

    Raises:
        InputError: a camera without finite intrinsics and pose.
        OutputError: the folder could not be written, or holds something else than an older model of ours; it is then
            unchanged.
    """
    names = image_names(scene.names)
    views: list[_View] = []
    first = 1
    for index, name in enumerate(names):
        view = _view(scene, selection[index], index, name, first)
        first += len(view.points)
        views.append(view)
    with atomic_folder(folder, "COLMAP model", COLMAP_NAMES) as temporary:
        sparse = temporary / "sparse" / "0"
        sparse.mkdir(parents=True)
        (temporary / "images").mkdir()
        for view, pixels in zip(views, scene.colors, strict=True):
            Image.fromarray(pixels).save(temporary / "images" / view.name)
        _write_text(sparse, views)
        _write_binary(sparse, views)


def image_names(names: Sequence[str]) -> list[str]:
    """Return file names ``<name>.png``, all different, of characters that COLMAP's text format can hold."""
    result: list[str] = []
    taken: set[str] = set()
    for index, name in enumerate(names):
        stem = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(name).stem).strip("._")[:100] or f"view_{index}"
        unique = stem
        while unique.lower() in taken:  # some file systems do not tell cases apart
            unique = f"{stem}_{index}" if unique == stem else f"{unique}_"
        taken.add(unique.lower())
        result.append(f"{unique}.png")
    return result


def _view(scene: SceneArrays, selected: NDArray[np.bool_], index: int, name: str, first_point: int) -> _View:
    intrinsics = scene.intrinsics[index].astype(np.float64)
    pose = scene.poses[index].astype(np.float64)
    if not (np.isfinite(intrinsics).all() and np.isfinite(pose).all() and intrinsics[0, 0] and intrinsics[1, 1]):
        raise InputError(
            f"view {index}: intrinsics or pose are not finite or have no focal length, which no COLMAP camera can "
            "hold; save the scene as .ply or .npz, or leave this view out"
        )
    parameters = np.array(
        [intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2] + 0.5, intrinsics[1, 2] + 0.5], dtype=np.float64
    )
    # Through the quaternion and back: the errors below are then those of the rotation that is written.
    xyzw = matrix_to_quaternion(pose[:3, :3].T)
    xyzw = xyzw / np.linalg.norm(xyzw)
    rotation = quaternion_to_matrix(xyzw)
    translation = -rotation @ pose[:3, 3]

    rows, columns = np.nonzero(selected & np.isfinite(scene.points[index]).all(axis=-1))
    world = scene.points[index][rows, columns].astype(np.float64)  # (N, 3)
    camera = world @ rotation.T + translation
    visible = camera[:, 2] > 1e-6
    rows, columns, world, camera = rows[visible], columns[visible], world[visible], camera[visible]

    count = len(rows)
    observations = np.zeros(count, dtype=_OBSERVATION)
    observations["xy"] = np.stack([columns + 0.5, rows + 0.5], axis=-1)
    observations["point"] = np.arange(first_point, first_point + count)
    points = np.zeros(count, dtype=_POINT)
    points["id"], points["xyz"], points["length"], points["image"] = observations["point"], world, 1, index + 1
    points["rgb"] = scene.colors[index][rows, columns]
    points["observation"] = np.arange(count)
    projected = camera[:, :2] / camera[:, 2:] * parameters[:2] + parameters[2:]
    points["error"] = np.linalg.norm(projected - observations["xy"], axis=-1)
    height, width = selected.shape
    return _View(index + 1, name, (width, height), parameters, np.roll(xyzw, 1), translation, points, observations)


def _numbers(values: Iterable[float]) -> str:
    return " ".join(format(float(v), ".12g") for v in values)


def _write_text(folder: Path, views: list[_View]) -> None:
    with (folder / "cameras.txt").open("w", encoding="ascii") as file:
        file.write("# CAMERA_ID, MODEL, WIDTH, HEIGHT, FX, FY, CX, CY\n")
        for view in views:
            width, height = view.size
            file.write(f"{view.number} PINHOLE {width} {height} {_numbers(view.parameters)}\n")
    with (folder / "images.txt").open("w", encoding="ascii") as file:
        file.write("# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME\n# X, Y, POINT3D_ID, ...\n")
        for view in views:
            pose = _numbers([*view.quaternion, *view.translation])
            file.write(f"{view.number} {pose} {view.number} {view.name}\n")
            file.write(" ".join(f"{x} {y} {p}" for (x, y), p in view.observations.tolist()) + "\n")
    with (folder / "points3D.txt").open("w", encoding="ascii") as file:
        file.write("# POINT3D_ID, X, Y, Z, R, G, B, ERROR, IMAGE_ID, POINT2D_IDX\n")
        for view in views:
            for number, (x, y, z), (r, g, b), error, _, image, observation in view.points.tolist():
                file.write(f"{number} {x:.9g} {y:.9g} {z:.9g} {r} {g} {b} {error:.6g} {image} {observation}\n")


def _write_binary(folder: Path, views: list[_View]) -> None:
    with (folder / "cameras.bin").open("wb") as file:
        file.write(struct.pack("<Q", len(views)))
        for view in views:
            file.write(struct.pack("<IiQQ4d", view.number, _PINHOLE, *view.size, *view.parameters))
    with (folder / "images.bin").open("wb") as file:
        file.write(struct.pack("<Q", len(views)))
        for view in views:
            file.write(struct.pack("<I7dI", view.number, *view.quaternion, *view.translation, view.number))
            file.write(view.name.encode("ascii") + b"\0" + struct.pack("<Q", len(view.observations)))
            file.write(view.observations.tobytes())
    with (folder / "points3D.bin").open("wb") as file:
        file.write(struct.pack("<Q", sum(len(view.points) for view in views)))
        for view in views:
            file.write(view.points.tobytes())
