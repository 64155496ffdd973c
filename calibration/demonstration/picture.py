"""The picture of a reconstruction beside the truth: a row per view, scales, figures and the cameras from above."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mapengine.runtime.outputs.drawing import (
    BACKGROUND,
    DEPTH_STOPS,
    FAINT,
    INVALID,
    TEXT,
    Stops,
    colorize,
    draw_label,
    draw_scale,
    fit_text,
    paste_tile,
    robust_range,
)

from ..evaluation import METRICS
from .comparison import Comparison
from .top_view import PREDICTED, TRUE, draw_top_view

SHOWN = (
    "depth_abs_rel",
    "depth_inliers_103",
    "ray_degrees",
    "rotation_degrees",
    "ate",
    "points_abs_rel",
    "metric_scale_abs_rel",
    "mask_iou",
)
"""Keys of the metrics that a demonstration shows."""

_TITLES = ("Image", "True depth", "Predicted depth", "Depth error")
_ERROR_ENDS = (2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
_WARNING = (176, 40, 32)
_LINE = (218, 218, 214)
# No error is nearly the background of the dark grey; large errors are hot.
_ERROR_STOPS: Stops = ((24, 32, 60), (44, 78, 128), (84, 142, 160), (198, 206, 150), (246, 186, 92), (228, 96, 58))


class _Layout(NamedTuple):
    """Pixel sizes."""

    rows: int
    tile: tuple[int, int]
    header: int
    font: int = 15
    gap: int = 10
    margin: int = 24

    @property
    def caption(self) -> int:
        return round(self.font * 1.9)

    @property
    def step(self) -> int:
        return self.tile[0] + self.gap

    @property
    def width(self) -> int:
        return 2 * self.margin + 4 * self.step - self.gap

    @property
    def top(self) -> int:
        """Of the first row."""
        return self.margin + self.header + self.font * 2

    @property
    def scales(self) -> int:
        return self.top + self.rows * (self.tile[1] + self.caption) + self.font // 2

    @property
    def footer(self) -> int:
        return self.scales + self.font * 4

    @property
    def top_view(self) -> tuple[int, int]:
        return self.tile[0], max(self.tile[1], self.font * (2 * len(SHOWN) + 1))

    @property
    def height(self) -> int:
        return self.footer + self.top_view[1] + self.font * 2 + self.margin


def draw_demo(
    comparison: Comparison,
    pictures: Sequence[NDArray[np.uint8]],
    down: NDArray[np.floating],
    title: str,
    facts: str,
    warning: str = "",
) -> Image.Image:
    """Draw image, true depth, predicted depth and error of each view; figures and cameras below.

    True and predicted depth share one scale (the predicted one after median scaling); the error is relative, in
    per cent. Dark grey is no surface: sky in the truth, or what the network takes for it.

    Args:
        comparison: V views.
        pictures: V images (h, w, 3), such as those of :class:`.comparison.DemoScene`.
        down: (3,) the direction of gravity in view 0.
        title: first line.
        facts: second line.
        warning: third line, in red; none if empty.
    """
    count, height, width = comparison.depth.shape
    layout = _layout(count, width, height, bool(warning))
    canvas = Image.new("RGB", (layout.width, layout.height), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(layout.font)
    room, line = layout.width - 2 * layout.margin, round(layout.font * 1.6)
    draw_label(draw, (layout.margin, layout.margin), title, round(layout.font * 1.5), room, TEXT)
    for number, (text, colour) in enumerate(((facts, FAINT), (warning, _WARNING))):
        y = layout.margin + round(layout.font * 2.1) + number * line
        draw_label(draw, (layout.margin, y), text, layout.font, room, colour)
    columns = [layout.margin + column * layout.step for column in range(4)]
    for x, head in zip(columns, _TITLES, strict=True):
        draw.text((x, layout.top - round(layout.font * 1.6)), head, fill=TEXT, font=font)

    valid = comparison.truth.valid
    limits = robust_range(comparison.truth.depth_z[valid].astype(np.float32))
    error_limits = (0.0, _error_end(100 * comparison.errors[valid]))
    for view in range(count):
        y = layout.top + view * (layout.tile[1] + layout.caption)
        shown, sees = comparison.surface[view], valid[view]
        tiles = (
            pictures[view],
            colorize(comparison.truth.depth_z[view].astype(np.float32), sees, limits, DEPTH_STOPS),
            colorize(comparison.depth[view].astype(np.float32), shown, limits, DEPTH_STOPS),
            colorize((100 * comparison.errors[view]).astype(np.float32), sees, error_limits, _ERROR_STOPS),
        )
        for column, (x, tile) in enumerate(zip(columns, tiles, strict=True)):
            paste_tile(canvas, tile, (x, y), layout.tile, smooth=column == 0)
        for x, text in zip(columns, _captions(comparison, view), strict=True):
            text = fit_text(draw, text, font, layout.tile[0])
            draw.text((x, y + layout.tile[1] + layout.font // 4), text, fill=FAINT, font=font)

    _key(draw, (columns[0], layout.scales), layout.font)
    both = layout.step + layout.tile[0]
    draw_scale(canvas, (columns[1], layout.scales), both, layout.font, limits, DEPTH_STOPS, " m", "no depth")
    draw_scale(
        canvas, (columns[3], layout.scales), layout.tile[0], layout.font, error_limits, _ERROR_STOPS, " %", "no depth"
    )
    draw.line([(layout.margin, layout.footer - 8), (layout.width - layout.margin, layout.footer - 8)], fill=_LINE)
    _figures(draw, comparison, (columns[0], layout.footer + layout.font // 2), both, layout.font)
    below = layout.footer + layout.font // 2
    for x, surfaces, words in ((columns[2], False, "cameras"), (columns[3], True, "surfaces, both from above")):
        canvas.paste(draw_top_view(comparison, down, layout.top_view, layout.font, surfaces), (x, below))
        draw.text((x, below + layout.top_view[1] + 4), words, fill=FAINT, font=font)
    x, y = columns[2] + 5 * layout.font, below + layout.top_view[1] + 4
    for text, colour in (("true", TRUE), ("predicted", PREDICTED)):
        draw.rectangle([x, y + 4, x + layout.font - 4, y + layout.font], fill=colour)
        draw.text((x + layout.font + 1, y), text, fill=FAINT, font=font)
        x += round(draw.textlength(text, font=font)) + 2 * layout.font
    return canvas


def figures(comparison: Comparison) -> list[tuple[str, str]]:
    """Return the title and value of the metrics in ``SHOWN``, as far as they exist for this number of views."""
    values = comparison.score.values
    known = {metric.key: metric for metric in METRICS}
    return [(known[key].title, format(value, known[key].form)) for key in SHOWN if (value := values[key]) is not None]


def _layout(count: int, width: int, height: int, warned: bool) -> _Layout:
    # A whole multiple of small views keeps their pixels equally large; about 280 wide, four are 1200.
    times = round(280 / width)
    tile_width = times * width if times > 1 else 280
    tile_height = min(max(round(tile_width * height / width), 28), 3 * tile_width)
    header = round(_Layout._field_defaults["font"] * (5.6 if warned else 4.0))
    return _Layout(count, (tile_width, tile_height), header)


def _error_end(errors: NDArray[np.floating]) -> float:
    """Return the first round number, in per cent, that covers 98 of 100 pixels."""
    most = float(np.percentile(errors, 98)) if errors.size else 0.0
    return next((end for end in _ERROR_ENDS if most <= end), _ERROR_ENDS[-1])


def _captions(comparison: Comparison, view: int) -> tuple[str, str, str, str]:
    valid = comparison.truth.valid[view]
    error = comparison.view_abs_rel[view]
    if error is None:
        return f"view {view}", "no depth", "", ""
    medians = (float(np.median(depth[view][valid])) for depth in (comparison.truth.depth_z, comparison.depth))
    true, found = (f"median {median:.2f} m" for median in medians)
    return f"view {view}", true, found, f"AbsRel {error:.3f}"


def _key(draw: ImageDraw.ImageDraw, corner: tuple[int, int], size: int) -> None:
    """Draw what dark grey means."""
    x, y = corner
    draw.rectangle([x, y, x + size, y + size], fill=INVALID)
    draw.text((x + size + 8, y - 2), "no surface", fill=FAINT, font=ImageFont.load_default(size))


def _figures(draw: ImageDraw.ImageDraw, comparison: Comparison, corner: tuple[int, int], width: int, size: int) -> None:
    """Draw the metrics, one a line."""
    font = ImageFont.load_default(size)
    x, y = corner
    right = x + width - 3 * size
    for title, value in figures(comparison):
        draw.text((x, y), title, fill=FAINT, font=font)
        draw.text((right - draw.textlength(value, font=font), y), value, fill=TEXT, font=font)
        y += 2 * size
        draw.line([(x, y - size // 2 + 2), (right, y - size // 2 + 2)], fill=_LINE)
    note = f"predicted depth shown times {comparison.factor:.3g}, one median factor for the scene"
    draw.text((x, y + 2), fit_text(draw, note, font, width - 2 * size), fill=FAINT, font=font)
