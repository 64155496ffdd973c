"""The scene from above: where cameras and surfaces are, and where the network has put them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mapengine.runtime.outputs.drawing import FAINT, Colour

from .comparison import Comparison

Array = NDArray[Any]

TRUE: Colour = (52, 66, 92)
PREDICTED: Colour = (230, 104, 24)
_PAPER = (255, 255, 255)
_FRAME = (206, 206, 202)
_FINE = 2  # drawn so many times larger and then reduced, for smooth lines


class _Ground(NamedTuple):
    """From the frame of view 0 to pixels: unit vectors along the page and up, what lies in the middle, and the scale.

    ``axes`` is (3, 3): right and up on the page, and the height above ground.
    """

    axes: Array
    centre: Array
    pixels: float
    size: tuple[int, int]

    def place(self, points: Array) -> Array:
        """Convert points (..., 3) to pixels (..., 2)."""
        flat = (points @ self.axes[:2].T - self.centre) * self.pixels
        return np.asarray(self.size) / 2 + flat * (1, -1)


def draw_top_view(
    comparison: Comparison, down: NDArray[np.floating], size: tuple[int, int], font: int, surfaces: bool
) -> Image.Image:
    """Draw cameras as wedges along their views, the truth in ``TRUE`` and the prediction in ``PREDICTED``.

    The prediction has the scale of the truth (``Comparison.factor``), and view 0, which looks up the page, is at the
    same place in both.

    Args:
        comparison: of V views.
        down: (3,) the direction of gravity in view 0.
        size: width and height of the picture, pixels.
        font: size of the text, pixels.
        surfaces: show the points too, and so much of the scene; if not, the cameras from nearby. What lies above all
            cameras is left out, because a ceiling would hide the rest.
    """
    axes = _axes(np.asarray(down, np.float64))
    truth, found = comparison.truth, comparison.reconstruction
    positions = truth.poses[:, :3, 3]
    clouds = [truth.points[truth.valid], found.points[found.mask].astype(np.float64) * comparison.factor]
    highest = float(np.max(positions @ axes[2]))
    clouds = [points[points @ axes[2] < highest] for points in clouds]
    fine = (size[0] * _FINE, size[1] * _FINE)
    ground = _ground(axes, clouds[0], positions, fine) if surfaces else _near(axes, positions, comparison, fine)
    paper = np.full((fine[1], fine[0], 3), _PAPER, np.float64)
    for points, colour, strength in zip(clouds, (TRUE, PREDICTED), (0.55, 0.45), strict=True):
        if surfaces:
            paper += strength * _density(ground.place(points), fine)[..., None] * (np.array(colour) - paper)
    canvas = Image.fromarray(np.rint(paper).astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    text = ImageFont.load_default(font * _FINE)
    wedge = font * _FINE * (1.3 if surfaces else 2.6)
    for poses, colour in ((comparison.poses, PREDICTED), (truth.poses, TRUE)):
        for pose in poses:
            _draw_camera(draw, pose, ground, colour, wedge)
    for view, position in enumerate([] if surfaces else positions):
        x, y = ground.place(position)
        at = (x + font * 0.7, y + font * 0.4)
        draw.text(at, str(view), fill=TRUE, font=text, stroke_width=2 * _FINE, stroke_fill=_PAPER)
    _draw_length(draw, ground, font * _FINE)
    draw.rectangle([0, 0, fine[0] - 1, fine[1] - 1], outline=_FRAME, width=_FINE)
    return canvas.resize(size, Image.Resampling.LANCZOS)


def _axes(down: Array) -> Array:
    """Return right and up on the page and height above ground, (3, 3), in the frame of view 0."""
    down = down / np.linalg.norm(down)
    # A camera that looks straight down has its image's upper edge ahead.
    ahead = next(axis for axis in (np.array([0.0, 0, 1]), np.array([0.0, -1, 0])) if abs(axis @ down) < 0.99)
    up = ahead - (ahead @ down) * down
    up /= np.linalg.norm(up)
    return np.stack([np.cross(down, up), up, -down])


def _ground(axes: Array, points: Array, positions: Array, size: tuple[int, int]) -> _Ground:
    """Choose the ground that holds the true cameras and nearly all true points, with a margin."""
    shown = positions @ axes[:2].T
    if len(points):
        shown = np.concatenate([shown, np.percentile(points @ axes[:2].T, (2, 98), axis=0)])
    low, high = shown.min(axis=0), shown.max(axis=0)
    extent = np.maximum(high - low, 0.05)
    return _Ground(axes, (low + high) / 2, float(np.min(np.asarray(size) * 0.88 / extent)), size)


def _near(axes: Array, positions: Array, comparison: Comparison, size: tuple[int, int]) -> _Ground:
    """Return the true cameras, and the predicted ones unless they are far off."""
    true, found = positions @ axes[:2].T, comparison.poses[:, :3, 3] @ axes[:2].T
    low, high = true.min(axis=0), true.max(axis=0)
    room = max(float(np.max(high - low)), 0.05)
    found = np.clip(found, low - room / 2, high + room / 2)
    low, high = np.minimum(low, found.min(axis=0)), np.maximum(high, found.max(axis=0))
    extent = np.maximum(high - low, room)
    # The wedges need room beyond the cameras, most of it ahead of them.
    centre = (low + high) / 2 + (0, 0.06 * extent[1])
    return _Ground(axes, centre, float(np.min(np.asarray(size) * 0.56 / extent)), size)


def _density(places: Array, size: tuple[int, int]) -> Array:
    """Return how many points fall on each pixel (H, W), 0 to 1: walls, seen edge on, are darker than floors."""
    width, height = size
    coarse = 2 * _FINE
    counts, _, _ = np.histogram2d(
        places[:, 1], places[:, 0], (-(-height // coarse), -(-width // coarse)), ((0, height), (0, width))
    )
    seen = counts[counts > 0]
    share = np.clip(counts / np.percentile(seen, 95), 0, 1) if seen.size else counts
    share = np.where(counts > 0, 0.12 + 0.88 * share, 0)
    return np.kron(share, np.ones((coarse, coarse)))[:height, :width]


def _draw_camera(draw: ImageDraw.ImageDraw, pose: Array, ground: _Ground, colour: Colour, size: float) -> None:
    """Draw a triangle that opens along the view, its tip at the camera."""
    flat = ground.axes[:2] @ pose[:3, 2]
    length = float(np.linalg.norm(flat))
    flat = flat / length if length > 1e-6 else np.array([0.0, 1.0])
    side = np.array([-flat[1], flat[0]])
    tip = ground.place(pose[:3, 3])
    ends = [tip + size * (flat + turn * side) * (1, -1) for turn in (-0.5, 0.5)]
    draw.polygon([tuple(tip), *map(tuple, ends)], outline=colour, width=2 * _FINE)
    radius = 2.5 * _FINE
    draw.ellipse([tip[0] - radius, tip[1] - radius, tip[0] + radius, tip[1] + radius], fill=colour)


def _draw_length(draw: ImageDraw.ImageDraw, ground: _Ground, size: int) -> None:
    """Draw a bar of a round number of metres in the lower left corner."""
    span = ground.size[0] / ground.pixels
    power = 10.0 ** math.floor(math.log10(span / 4))
    length = max(factor * power for factor in (1, 2, 5) if factor * power <= span / 4 * (1 + 1e-9))
    x, y = size, ground.size[1] - size
    draw.line([(x, y), (x + length * ground.pixels, y)], fill=FAINT, width=2 * _FINE)
    draw.text((x, y - 1.5 * size), f"{length:.4g} m", fill=FAINT, font=ImageFont.load_default(size))
