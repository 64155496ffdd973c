"""Image files, one by one or all of a folder."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ...errors import ImageReadError, InputError, warn
from ..files.opening import VIDEO_SUFFIXES
from ..images import IMAGE_EXTENSIONS, has_depth_pixels, image_suffixes, missing_extra
from .selection import listed, natural_key
from .view_files import InputFormat, ReadOptions, ViewFiles

_MAY_BE_DEPTH = (".png", ".tif", ".tiff", ".pgm", ".pnm", ".jp2", ".j2k")
"""Formats that hold 16 bits in one channel."""


def _matches(path: Path) -> bool:
    return True


def _read(path: Path, options: ReadOptions) -> list[ViewFiles]:
    if not path.is_dir():
        return [ViewFiles(path)]
    return [ViewFiles(file, name=file.relative_to(path).as_posix()) for file in images_of(path, options)]


def images_of(folder: Path, options: ReadOptions) -> list[Path]:
    """Return the images in a folder in natural order; one warning says what is left out.

    Raises:
        InputError: the folder cannot be listed, or holds no photographs.
    """
    try:
        files, folders = _walk(folder, options.recursive)
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed as a folder of images: {error.strerror or error}") from error
    others_use = {os.path.abspath(path) for path in options.not_images}
    files, folders = (
        [path for path in paths if others_use.isdisjoint(map(os.path.abspath, (path, *path.parents)))]
        for paths in (files, folders)
    )
    hidden = [file for file in files if any(part.startswith(".") for part in file.relative_to(folder).parts)]
    seen = [file for file in files if file not in set(hidden)]
    images = [file for file in seen if file.suffix.lower() in image_suffixes()]
    lacking = [file for file in seen if missing_extra(file) is not None]
    extra = f"pip install 'mapengine[{missing_extra(lacking[0])}]'" if lacking else ""
    videos = [file for file in seen if file.suffix.lower() in VIDEO_SUFFIXES]
    others = [file for file in seen if file not in {*images, *lacking, *videos}]
    depth = [file for file in images if file.suffix.lower() in _MAY_BE_DEPTH and _is_depth(file)]
    images = [file for file in images if file not in set(depth)]
    notes = [
        _note(hidden, folder, ("hidden file", "hidden files")),
        _note(depth, folder, ("16-bit depth map", "16-bit depth maps")),
        _note(lacking, folder, (f"image that needs {extra}", f"images that need {extra}")),
        _note(videos, folder, ("video, to be given by its name", "videos, to be given by name")),
        _note(others, folder, ("file that is no image", "files that are no images")),
        _note(folders, folder, ("sub-folder, which --recursive reads", "sub-folders, which --recursive reads")),
    ]
    left_out = "; ".join(note for note in notes if note)
    if not images:
        if depth:
            raise InputError(
                f"{folder}: holds only 16-bit images of one channel ({listed(f.name for f in depth)}), which are depth "
                "maps and no photographs; give the folder of the colour images, or a views.json that names both"
            )
        raise InputError(
            f"{folder}: holds no images ({' '.join(IMAGE_EXTENSIONS)} and what else Pillow reads)"
            f"{f', only {left_out}' if left_out else ''}; check the folder"
        )
    if left_out:
        warn(f"{folder}: left out {left_out}")
    return images


def warn_of_unlisted(folder: Path, listed_files: Iterable[Path], why: str, recursive: bool = False) -> None:
    """Say in one warning which images of a folder are not among those that a recording lists.

    Args:
        why: what is true of the others, such as ``views.json does not name``.
    """
    known = {os.path.abspath(file) for file in listed_files}
    files = folder.rglob("*") if recursive else folder.iterdir()
    images = (file for file in files if file.suffix.lower() in image_suffixes() and not file.name.startswith("."))
    others = sorted((file for file in images if os.path.abspath(file) not in known), key=natural_key)
    if others:
        warn(f"{folder}: left out {_note(others, folder, ('image', 'images'))} that {why}")


def _walk(folder: Path, recursive: bool) -> tuple[list[Path], list[Path]]:
    """Files, and the sub-folders that were not looked into, both in natural order."""
    files: list[Path] = []
    folders: list[Path] = []

    def fail(error: OSError) -> None:
        raise error

    for place, names, inside in os.walk(folder, onerror=fail, followlinks=False):
        files += [path for path in (Path(place) / name for name in inside) if path.is_file()]
        if not recursive:
            folders = [Path(place) / name for name in names]
            break
    return sorted(files, key=natural_key), sorted(folders, key=natural_key)


def _note(paths: list[Path], folder: Path, what: tuple[str, str]) -> str:
    if not paths:
        return ""
    names = listed(path.relative_to(folder).as_posix() for path in paths)
    return f"{len(paths)} {what[0] if len(paths) == 1 else what[1]} ({names})"


def _is_depth(path: Path) -> bool:
    try:
        return has_depth_pixels(path)
    except ImageReadError:
        return False  # it is named when it is read


IMAGE_FILES = InputFormat("images", _matches, _read)
