"""The table of formats, and the one way from paths to the views behind them: a new format is a row here."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import ImageReadError, InputError
from ...system.reading import path_problem, shown_path
from ..images import image_suffixes
from .colmap import COLMAP
from .image_files import IMAGE_FILES
from .selection import chosen, natural_key, spread
from .seven_scenes import SEVEN_SCENES
from .transforms import TRANSFORMS
from .tum import TUM
from .video import VIDEO
from .view_files import InputFormat, ReadOptions, ViewFiles
from .view_lists import VIEW_LIST

FORMATS: tuple[InputFormat, ...] = (TRANSFORMS, VIEW_LIST, TUM, SEVEN_SCENES, COLMAP, VIDEO, IMAGE_FILES)
"""In the order in which they are asked whether a path is theirs; images take what is left."""


def find_format(path: Path) -> InputFormat:
    """Return the format of a path; of one that does not exist by its name."""
    return next(form for form in FORMATS if form.matches(path))


def is_without_images(path: Path) -> bool:
    """Return whether a path is a folder that is no recording and has no image right in it."""
    if not path.is_dir() or find_format(path) is not IMAGE_FILES:
        return False
    return not any(f.suffix.lower() in image_suffixes() and not f.name.startswith(".") for f in path.iterdir())


def find_views(sources: Sequence[Any], options: ReadOptions) -> list[ViewFiles]:
    """List the views behind some sources, one after the other: paths, patterns, images in memory, or views themselves.

    ``every`` and ``fps`` count in each sequence (a folder, a recording, a video; files and images that are given one by
    one are one), ``max_views`` over all.

    Raises:
        InputError: no such path, or what is there cannot be used; names the file.
        ImageReadError: a file that a view needs is missing.
    """
    found = [entry for source in sources for entry in _expanded(source)]
    several = len(found) > 1
    sequences: list[list[ViewFiles]] = []
    loose: list[ViewFiles] | None = None
    for entry in found:
        form = find_format(entry) if isinstance(entry, Path) else IMAGE_FILES
        if form is IMAGE_FILES and not (isinstance(entry, Path) and entry.is_dir()):
            if loose is None:
                loose = []
                sequences.append(loose)
            loose.append(entry if isinstance(entry, ViewFiles) else ViewFiles(entry))
            continue
        views = form.read(entry, options)
        if several and entry.is_dir():
            views = [replace(view, name=f"{entry.name}/{view.name or Path(view.image).name}") for view in views]
        sequences.append(views)
    from_points = options.depth_from == "points" and options.gives("depth")
    if from_points and all(view.points is None for views in sequences for view in views):
        raise InputError(
            "depth should come from the points of a COLMAP model, and what is given is none; leave depth_from "
            "(--depth-from) out"
        )
    result = spread([view for views in sequences for view in chosen(views, options)], options.max_views)
    for view in result:
        if hasattr(view.image, "expect"):
            view.image.expect()
    return _named(result)


def in_natural_order(paths: Sequence[Path]) -> list[Path]:
    """Return files as they are given, but for those of one folder in the order of a shell (``frame10`` before
    ``frame2``): in these, numbers count as numbers."""
    if len({path.parent for path in paths}) == 1 and list(paths) == sorted(paths, key=lambda path: path.name):
        return sorted(paths, key=natural_key)
    return list(paths)


def _expanded(source: Any) -> list[Any]:
    """A source itself, or the files that its pattern stands for."""
    if not isinstance(source, str | os.PathLike):
        return [source]
    path = Path(os.fsdecode(source))
    problem = path_problem(source)
    if problem is not None:
        raise ImageReadError(f"{shown_path(source) or repr('')}: cannot be read: {problem}; check the path")
    if path.exists() or not glob.has_magic(str(path)):
        return [path]
    found = [Path(name) for name in glob.glob(_with_literal_folders(path), recursive=True)]
    if not found:
        raise ImageReadError(f"{path}: there is no such file, and nothing fits it as a pattern; check the path")
    return sorted(found, key=natural_key)


def _with_literal_folders(pattern: Path) -> str:
    """A pattern in which the folders that exist under that very name, such as ``trip [2024]``, stand for themselves."""
    folder = next(place for place in pattern.parents if place.is_dir())
    rest = pattern.relative_to(folder)
    return str(Path(glob.escape(str(folder))) / rest)


def _named(views: list[ViewFiles]) -> list[ViewFiles]:
    """Views of which those of equal file names say which folder they are of."""
    names = [view.name or (view.image.name if isinstance(view.image, Path) else "") for view in views]
    count = Counter(names)
    files = {os.path.abspath(view.image) for view in views if isinstance(view.image, Path)}
    if len(files) > 1 and any(count[name] > 1 for name in names):
        top = _common_folder(files)
        names = [
            Path(os.path.abspath(view.image)).relative_to(top).as_posix()
            if top is not None and count[name] > 1 and isinstance(view.image, Path)
            else name
            for view, name in zip(views, names, strict=True)
        ]
    return [replace(view, name=name) for view, name in zip(views, names, strict=True)]


def _common_folder(files: set[str]) -> Path | None:
    try:
        return Path(os.path.commonpath(files))
    except ValueError:  # on several drives
        return None
