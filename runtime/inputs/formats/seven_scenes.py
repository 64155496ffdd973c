"""RGB-D recordings in the layout of 7-Scenes: colour, depth and pose of each frame in files of their own."""

from __future__ import annotations

from pathlib import Path

from ...errors import ImageReadError, InputError
from ...geometry import Array
from .image_files import warn_of_unlisted
from .selection import natural_key
from .values import camera_matrix, is_one_camera, pose_matrix
from .view_files import InputFormat, ReadOptions, ViewFiles

CAMERA_FILE = "camera-intrinsics.txt"
LAYOUT = f"NAME.color.jpg (or .png), NAME.depth.png, NAME.pose.txt and {CAMERA_FILE}"
_COLOR, _DEPTH, _POSE = ".color", ".depth.png", ".pose.txt"
_COLOR_SUFFIXES = (".jpg", ".jpeg", ".png")


def _matches(path: Path) -> bool:
    """Whether a folder has images of that name with depth or with a camera beside them."""
    if not path.is_dir():
        return False
    images = _color_images(path)
    return bool(images) and ((path / CAMERA_FILE).is_file() or any(_beside(i, _DEPTH).is_file() for i in images))


def _read(folder: Path, options: ReadOptions) -> list[ViewFiles]:
    """Return the views in the order of their names: 16 bits, millimetres (0 and 65535: none), metres in poses."""
    intrinsics = recording_camera(folder, (CAMERA_FILE,), options)
    views = []
    for image in _color_images(folder):
        depth: Path | None = _beside(image, _DEPTH)
        pose = _beside(image, _POSE)
        if not options.gives("depth"):
            depth = None
        elif depth is not None and not depth.is_file():
            raise ImageReadError(f"{folder}: {image.name} has no depth map {depth.name}; add it or remove the image")
        if options.gives("poses") and not pose.is_file():
            raise InputError(f"{folder}: {image.name} has no pose {pose.name}; add it or remove the image")
        matrix = pose_matrix(pose, "pose") if options.gives("poses") else None
        views.append(ViewFiles(image, intrinsics=intrinsics, depth=depth, pose=matrix, name=image.name))
    known = (file for view in views for file in (view.image, _beside(view.image, _DEPTH)))
    warn_of_unlisted(folder, known, f"are no {_COLOR} or {_DEPTH} of a view")
    return views


def recording_camera(folder: Path, names: tuple[str, ...], options: ReadOptions) -> Array | None:
    """Return the camera of a recording (3, 3): what is given, else a file of the folder; None where nothing needs it.

    Raises:
        InputError: there is none.
    """
    if options.intrinsics is not None and not is_one_camera(options.intrinsics):
        return None  # each view gets its own
    if options.intrinsics is not None:
        return camera_matrix(options.intrinsics, "intrinsics")
    for name in names:
        if (folder / name).is_file():
            return camera_matrix(folder / name, "intrinsics")
    if not options.gives("intrinsics") and not options.gives("depth"):
        return None
    raise InputError(
        f"{folder}: has no {' or '.join(names)}; add the 3x3 camera matrix of its images in pixels, or give intrinsics "
        "(--intrinsics)"
    )


def _color_images(folder: Path) -> list[Path]:
    try:
        files = [f for f in folder.iterdir() if f.suffix.lower() in _COLOR_SUFFIXES and f.stem.endswith(_COLOR)]
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed as a folder of RGB-D views: {error.strerror}") from error
    return sorted((file for file in files if not file.name.startswith(".")), key=natural_key)


def _beside(image: Path, suffix: str) -> Path:
    return image.with_name(f"{image.stem.removesuffix(_COLOR)}{suffix}")


SEVEN_SCENES = InputFormat("7-Scenes", _matches, _read)
