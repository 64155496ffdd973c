"""Scenes to look at: what is behind a path."""

from __future__ import annotations

import math
import os
from pathlib import Path

from mapengine.runtime import Scene
from mapengine.runtime.errors import InputError, warn
from mapengine.runtime.outputs.scene_arrays import SHAPES, new_arrays
from mapengine.runtime.outputs.view_files import view_files, view_scene
from mapengine.runtime.system.reading import shown_path

from .glb import read_glb
from .ply import read_ply

CLOUDS = {".ply": read_ply, ".glb": read_glb}
MOST_PIXELS = 2**26
"""Of all views of a folder: a scene that is looked at is in memory, with about 40 bytes a pixel."""


def read_scene(path: str | os.PathLike[str]) -> Scene:
    """Read a scene (``.npz``), a folder of streamed views, or the points of a ``.ply`` or ``.glb``.

    Points alone become views of one row, without cameras. Of a folder of more than 67 million pixels each second
    (third, ...) row and column is read, and a warning says so.

    Raises:
        InputError: it is none of these, or damaged.
    """
    place, name = Path(path), shown_path(path)
    if place.is_dir():
        return _of_views(place)
    kind = place.suffix.lower()
    if kind == ".npz":
        return Scene.load(place)
    if kind not in CLOUDS and not place.exists():
        raise InputError(f"{name}: there is no such file or folder; check the path")
    if kind not in CLOUDS:
        raise InputError(f"{name}: is nothing that can be shown; give a .npz, .glb or .ply, or a folder of views")
    try:
        cloud = CLOUDS[kind](place)
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror or error}; check the path") from None
    except (ValueError, MemoryError) as error:  # and what Unicode and JSON raise
        raise InputError(f"{name}: is no {kind} that can be read ({error}); save it again") from None
    scene = cloud.scene() if len(cloud.points) else None
    if scene is None or not scene.mask.any():
        raise InputError(f"{name}: has no points; give another file")
    return scene


def _of_views(folder: Path) -> Scene:
    """All views of a folder in one scene."""
    paths = view_files(folder)
    first = view_scene(paths[0])
    _, height, width = first.mask.shape
    step = max(1, math.ceil(math.sqrt(len(paths) * height * width / MOST_PIXELS)))
    if step > 1:
        warn(
            f"{shown_path(folder)}: has {len(paths) * height * width:,} pixels; one in {step} rows and columns is shown"
        )
    part = (slice(None, None, step),) * 2
    arrays = new_arrays(len(paths), *first.mask[0][part].shape)
    for name in ("points", "poses"):
        arrays[name] = arrays[name].astype(first.dtype_of(name))
    names = []
    for index, path in enumerate(paths):
        view = first if index == 0 else view_scene(path)
        if view.mask.shape != first.mask.shape or view.points.dtype != first.points.dtype:
            raise InputError(
                f"{shown_path(path)}: has another size or frame than {paths[0].name}; are they of one run?"
            )
        for name, shape in SHAPES.items():
            own = getattr(view, name)[0]
            arrays[name][index] = own[part] if shape[1] == "H" else own
        arrays["intrinsics"][index, :2] /= step
        names += view.names
    return Scene.of_finished(
        arrays,
        first.metric_scale,
        names,
        alignment=first.alignment,
        made_by=first.made_by,
        original_pixels=None,
        original_sizes=None,
        sources=(),
        times=None,
    )
