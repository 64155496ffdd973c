"""A scene as a COLMAP model (the formats of https://colmap.github.io/format.html), text and binary.

COLMAP's conventions: world-to-camera poses, OpenCV camera axes, quaternions w x y z, and the centre of the upper left
pixel at (0.5, 0.5), where this project counts pixel centres from 0: principal points and observations move by half a
pixel.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..geometry import matrix_to_quaternion, quaternion_to_matrix
from ..inputs.resolutions import Size
from ..writing.folders import atomic_folder
from ..writing.recognition import marker
from .original_images import check_originals, save_image, save_original
from .original_names import image_names
from .scene_arrays import SceneArrays, check_cameras
from .tracks import Tracks, find_tracks

COLMAP_NAMES = ("sparse", "images", "names.json")
"""What is written into a COLMAP folder itself; the names only where one had to change."""

COLMAP_MAX_POINTS = 100_000
"""How many points a COLMAP folder gets unless ``max_points`` says otherwise."""

_PINHOLE = 1  # COLMAP's number for the model with parameters fx, fy, cx, cy
_POINT = np.dtype([("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("length", "<u8")])
_ELEMENT = np.dtype([("image", "<u4"), ("observation", "<u4")])
_OBSERVATION = np.dtype([("xy", "<f8", 2), ("point", "<u8")])


class _View(NamedTuple):
    number: int  # COLMAP counts images and cameras from 1
    name: str
    size: Size
    parameters: NDArray[np.float64]  # fx, fy, cx, cy
    quaternion: NDArray[np.float64]  # w, x, y, z of the world-to-camera rotation
    translation: NDArray[np.float64]
    observations: NDArray[Any]  # _OBSERVATION records, of ascending points


class _Points(NamedTuple):
    records: NDArray[Any]  # _POINT
    elements: NDArray[Any]  # _ELEMENT, of one point after the other


def write_colmap(
    folder: str | os.PathLike[str],
    scene: SceneArrays,
    keep: NDArray[np.bool_],
    *,
    voxel: float | None = None,
    max_points: int = COLMAP_MAX_POINTS,
    original_size: bool = False,
) -> None:
    """Write ``sparse/0/{cameras,images,points3D}.{txt,bin}`` and the images into ``images/``.

    Images keep their names, see :func:`~.original_names.image_names`; where one had to change, ``names.json`` says
    which. Each view has its own PINHOLE camera. Points are merged by voxel, and their tracks are all views that see
    them, see :func:`~.tracks.find_tracks`; an observation is where the point falls in the image.

    Args:
        scene: arrays as in :class:`~.scene.Scene`.
        keep: (V, H, W) bool, the pixels that count.
        voxel, max_points: see :func:`~.tracks.find_tracks`.
        original_size: write images and cameras of the size of the original images, not of the network's.

    Raises:
        InputError: a camera without finite intrinsics and pose, a voxel that is too small, or images that are not at
            hand at their original size.
        ImageReadError: such an image cannot be read.
        OutputError: the folder could not be written, or holds something else than an older model of ours; it is then
            unchanged.
    """
    check_cameras(scene)
    if original_size:
        check_originals(scene)
    names = image_names(scene.names)
    # Through the quaternion and back: the tracks are then those of the rotations that are written.
    poses = scene.poses.astype(np.float64)
    quaternions = matrix_to_quaternion(poses[:, :3, :3].transpose(0, 2, 1))
    quaternions /= np.linalg.norm(quaternions, axis=-1, keepdims=True)
    rotations = quaternion_to_matrix(quaternions)
    translations = -np.einsum("vij,vj->vi", rotations, poses[:, :3, 3])
    tracks = find_tracks(scene, keep, rotations, translations, voxel, max_points)
    views = []
    with atomic_folder(folder, "COLMAP model") as temporary:
        for index, name in enumerate(names):
            path = temporary / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            height, width = keep.shape[1:]
            size, to_image = (width, height), np.eye(3)
            if original_size:
                size, to_image = save_original(scene, index, path)
            else:
                save_image(Image.fromarray(scene.colors[index]), path)
            to_image[:2, 2] += 0.5
            intrinsics = to_image @ scene.intrinsics[index]
            observations = np.zeros(len(tracks.seen[index]), _OBSERVATION)
            observations["xy"] = tracks.pixels[index] @ to_image[:2, :2].T + to_image[:2, 2]
            observations["point"] = tracks.seen[index] + 1
            parameters = np.array([intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]])
            pose = np.roll(quaternions[index], 1), translations[index]
            views.append(_View(index + 1, name, size, parameters, *pose, observations))
        points = _points(tracks, views, rotations)
        sparse = temporary / "sparse" / "0"
        sparse.mkdir(parents=True)
        _write_text(sparse, views, points)
        _write_binary(sparse, views, points)
        changed = _changed_names(scene, names)
        if changed:
            document = {"generator": marker("COLMAP names"), "images": changed}
            text = json.dumps(document, indent=1, ensure_ascii=True)
            (temporary / "names.json").write_text(text + "\n", encoding="utf-8")


def _changed_names(scene: SceneArrays, names: list[str]) -> list[dict[str, str]]:
    """Which views have another name in the model: that name, their own, and the path of the file if there is one."""
    result = []
    for index, (name, given) in enumerate(zip(names, scene.names, strict=True)):
        if name != given:
            result.append({"image": name, "name": given})
            source = scene.sources[index] if scene.sources else None
            if source is not None and source.is_file:
                result[-1]["file"] = os.fspath(source.files.image)
    return result


def _points(tracks: Tracks, views: list[_View], rotations: NDArray[np.float64]) -> _Points:
    seen = np.concatenate([view.observations["point"].astype(np.intp) - 1 for view in views])
    records = np.zeros(len(tracks.points), _POINT)
    records["id"] = np.arange(1, len(records) + 1)
    records["xyz"], records["rgb"] = tracks.points, tracks.colors
    records["length"] = np.bincount(seen, minlength=len(records))
    errors = [_errors(view, rotation, tracks) for view, rotation in zip(views, rotations, strict=True)]
    records["error"] = np.bincount(seen, np.concatenate(errors), len(records)) / np.maximum(records["length"], 1)
    elements = np.zeros(len(seen), _ELEMENT)
    elements["image"] = np.concatenate([np.full(len(view.observations), view.number) for view in views])
    elements["observation"] = np.concatenate([np.arange(len(view.observations)) for view in views])
    return _Points(records, elements[np.argsort(seen, kind="stable")])


def _errors(view: _View, rotation: NDArray[np.float64], tracks: Tracks) -> NDArray[np.float64]:
    """Reprojection error of each observation of a view, pixels."""
    camera = tracks.points[view.observations["point"].astype(np.intp) - 1] @ rotation.T + view.translation
    projected = camera[:, :2] / camera[:, 2:] * view.parameters[:2] + view.parameters[2:]
    return np.asarray(np.linalg.norm(projected - view.observations["xy"], axis=-1))


def _numbers(values: Iterable[float]) -> str:
    return " ".join(format(float(v), ".15g") for v in values)


def _write_text(folder: Path, views: list[_View], points: _Points) -> None:
    with (folder / "cameras.txt").open("w", encoding="ascii") as file:
        file.write("# CAMERA_ID, MODEL, WIDTH, HEIGHT, FX, FY, CX, CY\n")
        for view in views:
            width, height = view.size
            file.write(f"{view.number} PINHOLE {width} {height} {_numbers(view.parameters)}\n")
    with (folder / "images.txt").open("w", encoding="utf-8") as file:
        file.write("# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME\n# X, Y, POINT3D_ID, ...\n")
        for view in views:
            pose = _numbers([*view.quaternion, *view.translation])
            file.write(f"{view.number} {pose} {view.number} {view.name}\n")
            file.write(" ".join(f"{x:.9g} {y:.9g} {p}" for (x, y), p in view.observations.tolist()) + "\n")
    elements = [f"{image} {observation}" for image, observation in points.elements.tolist()]
    with (folder / "points3D.txt").open("w", encoding="ascii") as file:
        file.write("# POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[] as (IMAGE_ID, POINT2D_IDX)\n")
        start = 0
        for number, (x, y, z), (r, g, b), error, length in points.records.tolist():
            track = " ".join(elements[start : start + length])
            file.write(f"{number} {x:.12g} {y:.12g} {z:.12g} {r} {g} {b} {error:.6g} {track}\n")
            start += length


def _write_binary(folder: Path, views: list[_View], points: _Points) -> None:
    with (folder / "cameras.bin").open("wb") as file:
        file.write(struct.pack("<Q", len(views)))
        for view in views:
            file.write(struct.pack("<IiQQ4d", view.number, _PINHOLE, *view.size, *view.parameters))
    with (folder / "images.bin").open("wb") as file:
        file.write(struct.pack("<Q", len(views)))
        for view in views:
            file.write(struct.pack("<I7dI", view.number, *view.quaternion, *view.translation, view.number))
            file.write(view.name.encode() + b"\0" + struct.pack("<Q", len(view.observations)))
            file.write(view.observations.tobytes())
    with (folder / "points3D.bin").open("wb") as file:
        file.write(struct.pack("<Q", len(points.records)))
        start = 0
        for record in points.records:
            end = start + int(record["length"])
            file.write(record.tobytes() + points.elements[start:end].tobytes())
            start = end
