"""A picture of a reconstruction: image, depth and confidence of each view."""

from __future__ import annotations

import math
import numbers
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import InputError
from ..writing.files import atomic_write, output_path
from ..writing.recognition import png_mark
from .drawing import (
    BACKGROUND,
    CONFIDENCE_STOPS,
    DEPTH_STOPS,
    FAINT,
    TEXT,
    colorize,
    draw_label,
    draw_scale,
    paste_tile,
    robust_range,
)
from .scene_arrays import SceneArrays

MAX_VIEWS = 12
"""The preview shows the first so many views."""

_MIN_WIDTH, _MAX_WIDTH = 320, 8192
_TITLES = ("Image", "Depth", "Confidence")


class PreviewLayout(NamedTuple):
    """Pixel sizes; a block is one set of the three columns, and views fill one block after the other."""

    blocks: int
    rows: int
    tile: tuple[int, int]
    font: int
    gap: int
    block_gap: int
    margin: int

    @property
    def title(self) -> int:
        return self.font * 2

    @property
    def caption(self) -> int:
        return round(self.font * 1.7)

    @property
    def block_width(self) -> int:
        return 3 * self.tile[0] + 2 * self.gap

    @property
    def width(self) -> int:
        return 2 * self.margin + self.blocks * self.block_width + (self.blocks - 1) * self.block_gap

    @property
    def bars_top(self) -> int:
        return self.margin + self.title + self.rows * (self.tile[1] + self.caption) + self.font // 2

    @property
    def height(self) -> int:
        return self.bars_top + self.font * 3 + self.margin


def write_preview(path: str | os.PathLike[str], scene: SceneArrays, max_width: int = 1600) -> Path:
    """Write a PNG with one row per view: image | depth | confidence.

    Depth and confidence have one scale for all views, drawn below with its numbers (depth in metres, from the 1st to
    the 99th percentile of the valid pixels); pixels without valid depth are dark grey. More than four views stand in
    two blocks; of more than ``MAX_VIEWS`` the first ones are shown, and the picture says so.

    Args:
        max_width: the picture is at most so many pixels wide (320..8192).

    Raises:
        InputError: ``max_width`` outside its range, or a file name that is not ``.png``.
        OutputError: the file could not be written.
    """
    target = output_path(path)
    if target.suffix.lower() != ".png":
        raise InputError(f"{target}: a preview is a PNG; give a name that ends in .png")
    if not isinstance(max_width, numbers.Integral) or not _MIN_WIDTH <= max_width <= _MAX_WIDTH:
        raise InputError(f"max_width is {max_width!r}; choose {_MIN_WIDTH} to {_MAX_WIDTH} pixels")
    picture = draw_preview(scene, max_width)
    with atomic_write(target, "preview") as temporary:
        picture.save(temporary, format="PNG", pnginfo=png_mark("preview"))
    return target


def draw_preview(scene: SceneArrays, max_width: int = 1600) -> Image.Image:
    """Draw the picture that :func:`write_preview` writes."""
    total, height, width = scene.depth.shape
    shown = min(total, MAX_VIEWS)
    layout = preview_layout(shown, width, height, max_width)
    canvas = Image.new("RGB", (layout.width, layout.height), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(layout.font)

    mask = scene.mask[:shown]
    depth_range = robust_range(scene.depth[:shown][mask])
    confidence_range = robust_range(scene.confidence[:shown])
    for block in range(layout.blocks):
        left = layout.margin + block * (layout.block_width + layout.block_gap)
        for column, title in enumerate(_TITLES):
            x = left + column * (layout.tile[0] + layout.gap)
            draw.text((x, layout.margin + layout.font // 3), title, fill=TEXT, font=font)
    for view in range(shown):
        block, row = divmod(view, layout.rows)
        left = layout.margin + block * (layout.block_width + layout.block_gap)
        top = layout.margin + layout.title + row * (layout.tile[1] + layout.caption)
        tiles = (
            scene.colors[view],
            colorize(scene.depth[view], mask[view], depth_range, DEPTH_STOPS),
            colorize(scene.confidence[view], np.isfinite(scene.confidence[view]), confidence_range, CONFIDENCE_STOPS),
        )
        for column, tile in enumerate(tiles):
            corner = (left + column * (layout.tile[0] + layout.gap), top)
            paste_tile(canvas, tile, corner, layout.tile, smooth=column == 0)
        below = (left, top + layout.tile[1] + layout.font // 5)
        draw_label(draw, below, scene.names[view], layout.font, layout.tile[0], FAINT)

    note = f"first {shown} of {total} views" if shown < total else f"{total} view{'s' if total > 1 else ''}"
    draw.text((layout.margin, layout.bars_top), note, fill=FAINT, font=font)
    column = layout.tile[0] + layout.gap
    for index, (limits, stops, unit, nothing) in enumerate(
        (
            (depth_range, DEPTH_STOPS, " m", "no valid depth"),
            (confidence_range, CONFIDENCE_STOPS, "", "no confidence"),
        ),
        1,
    ):
        corner = (layout.margin + index * column, layout.bars_top)
        draw_scale(canvas, corner, layout.tile[0], layout.font, limits, stops, unit, nothing)
    return canvas


def preview_layout(shown: int, width: int, height: int, max_width: int) -> PreviewLayout:
    """Return the sizes of a picture of ``shown`` views of (height, width) pixels."""
    blocks = 1 if shown <= 4 else 2
    margin, gap, block_gap = max_width // 80, max(max_width // 200, 2), max_width // 50
    free = max_width - 2 * margin - (blocks - 1) * block_gap - blocks * 2 * gap
    # Small images are enlarged up to a size at which the titles fit beneath each other.
    tile_width = max(min(free // (3 * blocks), max(width, 240)), 8)
    # Shapes that no network resolution has are squeezed, so that the picture does not get tens of thousands of rows.
    tile_height = min(max(round(tile_width * height / width), 8), 3 * tile_width)
    return PreviewLayout(
        blocks=blocks,
        rows=math.ceil(shown / blocks),
        tile=(tile_width, tile_height),
        font=max(10, min(18, tile_width // 16)),
        gap=gap,
        block_gap=block_gap,
        margin=margin,
    )
