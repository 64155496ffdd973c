"""A page that shows scenes in any browser, in one file and without a network."""

from __future__ import annotations

import base64
import gzip
import html
import json
import os
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from ...writing.files import write_text
from ...writing.recognition import marker
from ..formats.options import SaveOptions
from ..scene_arrays import SceneArrays
from .layers import Layer, PointSet, cameras, first_look, frustum_depth, scene_origin

MAX_BYTES = 15_000_000
"""Of a page; scenes that would take more are thinned."""

PAGE_KIND = "scene page"
_DENSEST = 4
"""Bytes that a point takes at least."""
_TRIES = 5


def write_page(path: Path, scene: SceneArrays, options: SaveOptions) -> None:
    """Write the page of one scene.

    Raises:
        OutputError: the file could not be written.
    """
    write_layers(path, {"": scene}, options)


def write_layers(
    path: str | os.PathLike[str], scenes: Mapping[str, SceneArrays], options: SaveOptions | None = None, title: str = ""
) -> None:
    """Write a page that shows one of several scenes at a time.

    Args:
        path: of the file.
        scenes: by their names, in one frame and of the same views; the first one is shown at first.
        options: of saving: ``max_points`` and ``confidence_percentile``.
        title: of the page; by default what made the first scene.

    Raises:
        OutputError: the file could not be written.
    """
    write_text(path, PAGE_KIND, page_text(scenes, options or SaveOptions(), title))


def page_text(scenes: Mapping[str, SceneArrays], options: SaveOptions, title: str = "", most: int = MAX_BYTES) -> str:
    """Return the page of :func:`write_layers`, of at most ``most`` bytes."""
    first = next(iter(scenes.values()))
    origin = scene_origin(first)
    sets = {
        name: PointSet.of(scene, origin, options.max_points, options.confidence_percentile)
        for name, scene in scenes.items()
    }
    totals = {name: int(scene.mask.sum()) for name, scene in scenes.items()}
    views = {name: cameras(scene, origin) for name, scene in scenes.items()}
    frame = {"start": first_look(first, next(iter(sets.values()))), "origin": origin.tolist()}
    count, height, width = first.mask.shape
    views_of = f"{count} view{'s' if count > 1 else ''} of {width}x{height}"
    about = f"{views_of}." if title or first.made_by else f"{views_of}. What made the scene is not recorded in it."
    parts = {"TITLE": html.escape(title or first.made_by or "A scene")}
    template = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    points = (most - len(template)) // len(scenes) * 3 // 4 // _DENSEST
    for attempt in range(_TRIES):
        layers = [Layer.of(name, points_of, totals[name], max(points, 1)) for name, points_of in sets.items()]
        content = b"".join(block.content for layer in layers for block in layer.blocks)
        parts["DATA"] = base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()
        description = {
            **frame,
            "about": about,
            "layers": [
                {**layer.description(), "views": views[layer.name], "frustum": frustum_depth(scenes[layer.name])}
                for layer in layers
            ],
        }
        parts["SCENE"] = json.dumps(description, separators=(",", ":")).replace("<", "\\u003c")
        page = _fill(template, parts)
        over = len(page.encode()) - most
        if over <= 0 or attempt == _TRIES - 1:
            break
        points = int(max(layer.stored for layer in layers) * (1 - over / len(parts["DATA"])) * 0.98)
    return page


def _fill(template: str, parts: Mapping[str, str]) -> str:
    """Put the parts into the template, in one pass, and the mark before it."""
    page = re.sub(r"\{\{(TITLE|SCENE|DATA)\}\}", lambda found: parts[found[1]], template)
    return f"<!-- {marker(PAGE_KIND)} -->\n{page}"
