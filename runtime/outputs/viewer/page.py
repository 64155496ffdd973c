"""A page that shows scenes in any browser, in one file and without a network."""

from __future__ import annotations

import base64
import gzip
import html
import json
import os
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from ...writing.files import write_text
from ...writing.recognition import marker
from ..formats.options import SaveOptions
from ..scene_arrays import SceneArrays
from .layers import Layer, PointSet, cameras, first_look, frustum_depth, is_cloud, scene_origin

MAX_BYTES = 15_000_000
"""Of a page; scenes that would take more are thinned."""

PAGE_KIND = "scene page"
NOT_RECORDED = "What made the scene is not recorded in it."
_DENSEST = 4
"""Bytes that a point takes at least."""
_USUAL = 6
"""And usually, where not all of them fit."""
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
    views = {name: cameras(scene, origin) for name, scene in scenes.items()}
    template = _template()
    room = (most - len(template)) // len(scenes) * 3 // 4
    largest = max(len(points_of.points) for points_of in sets.values())
    points = room // (_DENSEST if largest <= room // _DENSEST else _USUAL)
    for attempt in range(_TRIES):
        layers = [
            Layer.of(name, points_of, int(scenes[name].mask.sum()), max(points, 1)) for name, points_of in sets.items()
        ]
        content = b"".join(block.content for layer in layers for block in layer.blocks)
        data = base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()
        described = [
            {**layer.description(), "views": views[layer.name], "frustum": frustum_depth(scenes[layer.name])}
            for layer in layers
        ]
        page = filled_page(first, next(iter(sets.values())), described, title=title, data=data)
        over = len(page.encode()) - most
        if over <= 0 or attempt == _TRIES - 1:
            break
        points = int(max(layer.stored for layer in layers) * (1 - over / len(data)) * 0.98)
    return page


def filled_page(
    scene: SceneArrays,
    points: PointSet,
    layers: Sequence[Mapping[str, Any]],
    *,
    title: str = "",
    data: str = "",
    source: str | None = None,
) -> str:
    """Return a page with described layers.

    Args:
        scene: the first layer, by which the page begins, and its ``points``.
        layers: what a page has to know of each.
        title: by default what made the scene.
        data: the bytes of all blocks.
        source: address that the page loads blocks from instead, level by level; None for a page without a network.
    """
    count, height, width = scene.mask.shape
    views_of = (
        f"{count} view{'s' if count > 1 else ''} of {width}x{height}"
        if not is_cloud(scene)
        else "Points without cameras"
    )
    description = {
        "start": first_look(scene, points),
        "origin": scene_origin(scene).tolist(),
        "about": f"{views_of}." if title or scene.made_by else f"{views_of}. {NOT_RECORDED}",
        "source": source,
        "layers": layers,
    }
    parts = {
        "TITLE": html.escape(title or scene.made_by or "A scene"),
        "CONNECT": "" if source is None else " connect-src 'self';",
        "SCENE": json.dumps(description, separators=(",", ":")).replace("<", "\\u003c"),
        "DATA": data,
    }
    return _fill(_template(), parts)


def colors_css() -> bytes:
    """Return the colours of this page, as a style sheet, for pages around it."""
    return files(__package__).joinpath("colors.css").read_bytes()


def _template() -> str:
    return files(__package__).joinpath("page.html").read_text(encoding="utf-8")


def _fill(template: str, parts: Mapping[str, str]) -> str:
    """Put the parts into the template, in one pass, and the mark before it."""
    page = re.sub(r"\{\{(TITLE|CONNECT|SCENE|DATA)\}\}", lambda found: parts[found[1]], template)
    return f"<!-- {marker(PAGE_KIND)} -->\n{page}"
