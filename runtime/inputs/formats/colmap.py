"""A COLMAP project: a model with the images that it was made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...errors import ImageReadError, InputError, warn
from ...geometry import Array
from .colmap_model import ModelImage, has_model, read_model
from .image_files import warn_of_unlisted
from .selection import listed, natural_key
from .view_files import InputFormat, ReadOptions, ViewFiles

_MODELS = ("sparse/0", "sparse", ".", "0", "colmap/sparse/0", "distorted/sparse/0")
_IMAGES = ("images", "input", "rgb", ".")
_NO_POINTS = "{}: has no points3D, which depth from points needs; leave that option (--depth-from) out"
_ABOVE = 3  # folders from a model up to its project


def _matches(path: Path) -> bool:
    return _model_folder(path) is not None


def _model_folder(path: Path) -> Path | None:
    if not path.is_dir():
        return None
    found = next((path / name for name in _MODELS if has_model(path / name)), None)
    if found is None and (path / "sparse").is_dir():
        models = [folder for folder in (path / "sparse").iterdir() if folder.is_dir() and has_model(folder)]
        found = min(models, key=natural_key, default=None)
    return found


def _read(path: Path, options: ReadOptions) -> list[ViewFiles]:
    """Return the images of the model in the order of their names; their poses and points have no metric scale."""
    folder = _model_folder(path)
    if folder is None:
        raise InputError(f"{path}: holds no COLMAP model; give the folder with sparse/0 and images")
    from_points = options.depth_from == "points" and options.gives("depth")
    if from_points and not any((folder / f"points3D.{end}").is_file() for end in ("bin", "txt")):
        raise InputError(_NO_POINTS.format(folder))
    model = read_model(folder, from_points)
    if not model.images:
        raise InputError(f"{folder}: has no image with a pose; reconstruct it with COLMAP first")
    beside = folder.parent.iterdir() if folder.parent.name == "sparse" else ()
    others = [model for model in beside if model != folder and model.is_dir() and has_model(model)]
    if others and path != folder:
        names = listed(sorted(model.name for model in others))
        warn(f"{folder.parent}: left out {names}, which are models too; give one of them by name")
    images = sorted(model.images, key=lambda image: natural_key(image.name))
    place = _image_folder(path, folder, images)
    _say_unregistered(place, images)
    if from_points and not model.points:
        raise InputError(_NO_POINTS.format(folder))
    views = []
    for image in images:
        file = place / image.name
        if not file.is_file():
            raise ImageReadError(f"{folder}: names the image {image.name}, which is not in {place}; add it")
        camera = model.cameras[image.camera]
        pose = np.eye(4)
        pose[:3, :3] = image.rotation.T
        pose[:3, 3] = -image.rotation.T @ image.translation
        views.append(
            ViewFiles(
                file,
                intrinsics=camera.intrinsics,
                pose=pose if options.gives("poses") else None,
                metric=False,
                lens=camera.lens,
                camera_size=camera.size,
                points=_seen_points(image, model.points) if from_points else None,
                name=image.name,
            )
        )
    return views


def _image_folder(path: Path, model: Path, images: list[ModelImage]) -> Path:
    """The folder that has the first of the images: beside the model, or above it."""
    above = [path, *([model, *model.parents][: _ABOVE + 1])]
    for place in (folder / name for folder in above for name in _IMAGES):
        if (place / images[0].name).is_file():
            return place
    raise ImageReadError(f"{model}: names the image {images[0].name}, but {path / 'images'} does not hold it; add it")


def _say_unregistered(place: Path, images: list[ModelImage]) -> None:
    if place.name not in _IMAGES:
        return  # a folder of more than these images
    warn_of_unlisted(place, (place / image.name for image in images), "the COLMAP model has no pose of", recursive=True)


def _seen_points(image: ModelImage, points: dict[int, tuple[float, float, float]]) -> Array:
    """(N, 3) in the camera's frame."""
    seen = [points[number] for number in image.points.tolist() if number in points]
    world = np.array(seen, np.float64).reshape(-1, 3)
    return world @ image.rotation.T + image.translation


COLMAP = InputFormat("COLMAP", _matches, _read)
