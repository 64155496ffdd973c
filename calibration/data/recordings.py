"""Recorded RGB-D views in a folder: a view list, or the layout of 7-Scenes."""

from __future__ import annotations

from pathlib import Path

from mapengine.runtime.errors import ImageReadError, InputError
from mapengine.runtime.inputs.sources import camera_matrix, pose_matrix
from mapengine.runtime.inputs.view_lists import ViewFiles

VIEW_LIST = "views.json"
CAMERA_FILE = "camera-intrinsics.txt"
_COLOR, _DEPTH, _POSE = ".color", ".depth.png", ".pose.txt"
_COLOR_SUFFIXES = (".jpg", ".jpeg", ".png")


def is_recording(folder: Path) -> bool:
    """Return whether a folder is laid out like 7-Scenes: images of that name with depth or with a camera beside
    them."""
    images = _color_images(folder)
    known = (folder / CAMERA_FILE).is_file() or any(_beside(image, _DEPTH).is_file() for image in images)
    return bool(images) and known


def recorded_views(folder: Path) -> list[ViewFiles]:
    """List the views of a folder that is laid out like 7-Scenes, in the order of their names.

    Args:
        folder: with ``NAME.color.jpg`` (or ``.png``), ``NAME.depth.png`` (16 bits, millimetres, 0 and 65535 mean none),
            ``NAME.pose.txt`` (4x4, camera-to-world, metres) and one ``camera-intrinsics.txt`` (3x3, pixels).

    Raises:
        InputError: no such folder, no views in it, or a camera or pose that is missing or wrong.
        ImageReadError: a depth map is missing.
    """
    try:
        images = _color_images(folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed as a folder of RGB-D views: {error.strerror}") from error
    if not images:
        raise InputError(
            f"{folder}: holds no RGB-D views; give a folder with {VIEW_LIST}, or with NAME{_COLOR}.jpg, NAME{_DEPTH}, "
            f"NAME{_POSE} and {CAMERA_FILE}"
        )
    camera = folder / CAMERA_FILE
    if not camera.is_file():
        raise InputError(f"{folder}: has no {CAMERA_FILE}; add the 3x3 camera matrix of its images, in pixels")
    intrinsics = camera_matrix(camera, "intrinsics")
    views = []
    for image in images:
        depth, pose = _beside(image, _DEPTH), _beside(image, _POSE)
        if not depth.is_file():
            raise ImageReadError(f"{folder}: {image.name} has no depth map {depth.name}; add it or remove the image")
        if not pose.is_file():
            raise InputError(f"{folder}: {image.name} has no pose {pose.name}; add it or remove the image")
        matrix = pose_matrix(pose, "pose")
        views.append(ViewFiles(image, intrinsics=intrinsics, depth=depth, pose=matrix))
    return views


def _color_images(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in _COLOR_SUFFIXES and f.stem.endswith(_COLOR))


def _beside(image: Path, suffix: str) -> Path:
    return image.with_name(f"{image.stem.removesuffix(_COLOR)}{suffix}")
