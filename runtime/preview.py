"""A picture of a reconstruction for people who would rather look: image, depth and confidence of each view."""

from __future__ import annotations

import math
import numbers
import os
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .errors import InputError
from .files import atomic_write, output_path

MAX_VIEWS = 12
"""The preview shows the first so many views."""

_MIN_WIDTH, _MAX_WIDTH = 320, 8192
_INVALID = (58, 58, 62)
_BACKGROUND, _TEXT, _FAINT = (250, 250, 248), (32, 34, 38), (112, 116, 122)
# Equally spaced stops. Depth: near is bright yellow, far is dark violet. Confidence: low is dark blue, high is yellow.
_DEPTH_STOPS = (
    (252, 232, 120),
    (252, 176, 66),
    (238, 110, 70),
    (206, 62, 104),
    (150, 42, 130),
    (92, 32, 130),
    (40, 20, 92),
)
_CONFIDENCE_STOPS = (
    (38, 34, 84),
    (46, 74, 132),
    (40, 116, 142),
    (36, 158, 134),
    (92, 198, 100),
    (178, 222, 62),
    (246, 232, 72),
)
_TITLES = ("Image", "Depth", "Confidence")


class SceneArrays(Protocol):
    """The parts of a :class:`~.scene.Scene` that are drawn."""

    colors: NDArray[np.uint8]
    depth: NDArray[np.float32]
    confidence: NDArray[np.float32]
    mask: NDArray[np.bool_]
    names: list[str]


class _Layout(NamedTuple):
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
    with atomic_write(target) as temporary:
        picture.save(temporary, format="PNG")
    return target


def draw_preview(scene: SceneArrays, max_width: int = 1600) -> Image.Image:
    """The picture that :func:`write_preview` writes."""
    total, height, width = scene.depth.shape
    shown = min(total, MAX_VIEWS)
    layout = _layout(shown, width, height, max_width)
    canvas = Image.new("RGB", (layout.width, layout.height), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(layout.font)

    mask = scene.mask[:shown]
    depth_range = _range(scene.depth[:shown][mask])
    confidence_range = _range(scene.confidence[:shown])
    for block in range(layout.blocks):
        left = layout.margin + block * (layout.block_width + layout.block_gap)
        for column, title in enumerate(_TITLES):
            x = left + column * (layout.tile[0] + layout.gap)
            draw.text((x, layout.margin + layout.font // 3), title, fill=_TEXT, font=font)
    for view in range(shown):
        block, row = divmod(view, layout.rows)
        left = layout.margin + block * (layout.block_width + layout.block_gap)
        top = layout.margin + layout.title + row * (layout.tile[1] + layout.caption)
        tiles = (
            scene.colors[view],
            _colorize(scene.depth[view], mask[view], depth_range, _DEPTH_STOPS),
            _colorize(scene.confidence[view], np.isfinite(scene.confidence[view]), confidence_range, _CONFIDENCE_STOPS),
        )
        for column, tile in enumerate(tiles):
            # Box for the colour maps: smoother filters would invent values next to edges and invalid pixels.
            method = Image.Resampling.LANCZOS if column == 0 else Image.Resampling.BOX
            resized = Image.fromarray(np.ascontiguousarray(tile)).resize(layout.tile, method)
            canvas.paste(resized, (left + column * (layout.tile[0] + layout.gap), top))
        name = _fit(draw, scene.names[view], font, layout.tile[0])
        draw.text((left, top + layout.tile[1] + layout.font // 5), name, fill=_FAINT, font=font)

    note = f"first {shown} of {total} views" if shown < total else f"{total} view{'s' if total > 1 else ''}"
    draw.text((layout.margin, layout.bars_top), note, fill=_FAINT, font=font)
    column = layout.tile[0] + layout.gap
    for index, (limits, stops, unit, nothing) in enumerate(
        (
            (depth_range, _DEPTH_STOPS, " m", "no valid depth"),
            (confidence_range, _CONFIDENCE_STOPS, "", "no confidence"),
        ),
        1,
    ):
        _scale_bar(canvas, (layout.margin + index * column, layout.bars_top), layout, limits, stops, unit, nothing)
    return canvas


def _layout(shown: int, width: int, height: int, max_width: int) -> _Layout:
    blocks = 1 if shown <= 4 else 2
    margin, gap, block_gap = max_width // 80, max(max_width // 200, 2), max_width // 50
    free = max_width - 2 * margin - (blocks - 1) * block_gap - blocks * 2 * gap
    # Small images are enlarged up to a size at which the titles fit beneath each other.
    tile_width = max(min(free // (3 * blocks), max(width, 240)), 8)
    # Shapes that no network resolution has are squeezed: nobody opens a picture of 20000 rows.
    tile_height = min(max(round(tile_width * height / width), 8), 3 * tile_width)
    return _Layout(
        blocks=blocks,
        rows=math.ceil(shown / blocks),
        tile=(tile_width, tile_height),
        font=max(10, min(18, tile_width // 16)),
        gap=gap,
        block_gap=block_gap,
        margin=margin,
    )


def _range(values: NDArray[np.float32]) -> tuple[float, float] | None:
    """Robust limits of the finite values; None if there are none."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return None
    low, high = (float(v) for v in np.percentile(finite.astype(np.float64), (1, 99)))
    # A constant map still needs a scale with two ends.
    pad = max(1e-3 * max(abs(low), abs(high)), 1e-6)
    return (low, high) if high - low > pad else (low - pad, high + pad)


def _colorize(
    values: NDArray[np.float32],
    valid: NDArray[np.bool_],
    limits: tuple[float, float] | None,
    stops: tuple[tuple[int, int, int], ...],
) -> NDArray[np.uint8]:
    """Colour map of (H, W) values as (H, W, 3) uint8; invalid pixels are dark grey."""
    result = np.full((*values.shape, 3), _INVALID, dtype=np.uint8)
    if limits is not None and valid.any():
        low, high = limits
        share = np.clip((values[valid].astype(np.float64) - low) / (high - low), 0.0, 1.0)
        result[valid] = _ramp(share, stops)
    return result


def _ramp(share: NDArray[np.float64], stops: tuple[tuple[int, int, int], ...]) -> NDArray[np.uint8]:
    positions = np.linspace(0.0, 1.0, len(stops))
    channels = [np.interp(share, positions, [stop[c] for stop in stops]) for c in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def _scale_bar(
    canvas: Image.Image,
    corner: tuple[int, int],
    layout: _Layout,
    limits: tuple[float, float] | None,
    stops: tuple[tuple[int, int, int], ...],
    unit: str,
    nothing: str,
) -> None:
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(layout.font)
    x, y = corner
    width, bar = layout.tile[0], layout.font
    if limits is None:
        draw.text((x, y), nothing, fill=_FAINT, font=font)
        return
    strip = np.broadcast_to(_ramp(np.linspace(0.0, 1.0, width), stops), (bar, width, 3))
    canvas.paste(Image.fromarray(np.ascontiguousarray(strip)), (x, y))
    low, high = limits
    end = -math.inf
    for tick in _ticks(low, high, max(2, width // (layout.font * 4))):
        at = x + (tick - low) / (high - low) * (width - 1)
        label = f"{_label(tick, high - low)}{unit}"
        length = draw.textlength(label, font=font)
        start = min(max(at - length / 2, x), x + width - length)
        if start < end + layout.font * 0.6:
            continue
        draw.line([(at, y + bar), (at, y + bar + layout.font // 4)], fill=_FAINT)
        draw.text((start, y + bar + layout.font // 3), label, fill=_TEXT, font=font)
        end = start + length


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers within low..high, about ``count`` of them."""
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(magnitude * factor for factor in (1, 2, 2.5, 5, 10) if magnitude * factor >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _label(value: float, span: float) -> str:
    digits = max(0, 2 - math.floor(math.log10(span)))
    text = f"{value:.{digits}f}" if abs(value) < 1e5 else f"{value:.3g}"
    text = text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text
    return "0" if text in ("-0", "") else text


def _fit(draw: Any, text: str, font: Any, width: int) -> str:
    """``text`` as one printable line, shortened in the middle to ``width`` pixels."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    if draw.textlength(text, font=font) <= width:
        return text
    keep = len(text)
    while keep > 2:
        keep = min(keep - 1, 200)
        short = f"{text[: keep // 2]}...{text[len(text) - (keep - keep // 2) :]}"
        if draw.textlength(short, font=font) <= width:
            return short
    return "..."
