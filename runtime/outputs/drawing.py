"""Parts of pictures: colour maps, scales with numbers, text that fits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .fonts import font_and_text

Colour = tuple[int, int, int]
Stops = tuple[Colour, ...]
"""Equally spaced colours of a map, from its low to its high end."""
Limits = tuple[float, float]

INVALID: Colour = (58, 58, 62)
"""Pixels without a value."""
BACKGROUND: Colour = (250, 250, 248)
TEXT: Colour = (32, 34, 38)
FAINT: Colour = (112, 116, 122)
# Depth: near is bright yellow, far is dark violet. Confidence: low is dark blue, high is yellow.
DEPTH_STOPS: Stops = (
    (252, 232, 120),
    (252, 176, 66),
    (238, 110, 70),
    (206, 62, 104),
    (150, 42, 130),
    (92, 32, 130),
    (40, 20, 92),
)
CONFIDENCE_STOPS: Stops = (
    (38, 34, 84),
    (46, 74, 132),
    (40, 116, 142),
    (36, 158, 134),
    (92, 198, 100),
    (178, 222, 62),
    (246, 232, 72),
)


def paste_tile(
    canvas: Image.Image, tile: NDArray[np.uint8], corner: tuple[int, int], size: tuple[int, int], smooth: bool = False
) -> None:
    """Paste ``tile`` (H, W, 3), resized to ``size`` (width, height), with its upper left at ``corner``.

    Photographs want ``smooth``; for colour maps a smooth filter would invent values next to edges and invalid pixels.
    """
    method = Image.Resampling.LANCZOS if smooth else Image.Resampling.BOX
    canvas.paste(Image.fromarray(np.ascontiguousarray(tile)).resize(size, method), corner)


def robust_range(values: NDArray[np.float32]) -> Limits | None:
    """Return the 1st and 99th percentile of the finite values; None if there are none."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return None
    low, high = (float(v) for v in np.percentile(finite.astype(np.float64), (1, 99)))
    # A constant map still needs a scale with two ends.
    pad = max(1e-3 * max(abs(low), abs(high)), 1e-6)
    return (low, high) if high - low > pad else (low - pad, high + pad)


def colorize(
    values: NDArray[np.float32],
    valid: NDArray[np.bool_],
    limits: Limits | None,
    stops: Stops,
) -> NDArray[np.uint8]:
    """Map (H, W) values to colours (H, W, 3) uint8; invalid pixels are dark grey."""
    result = np.full((*values.shape, 3), INVALID, dtype=np.uint8)
    if limits is not None and valid.any():
        low, high = limits
        share = np.clip((values[valid].astype(np.float64) - low) / (high - low), 0.0, 1.0)
        result[valid] = ramp(share, stops)
    return result


def ramp(share: NDArray[np.float64], stops: Stops) -> NDArray[np.uint8]:
    """Return the colours (..., 3) uint8 of the shares 0..1 of a scale."""
    positions = np.linspace(0.0, 1.0, len(stops))
    channels = [np.interp(share, positions, [stop[c] for stop in stops]) for c in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def draw_scale(
    canvas: Image.Image,
    corner: tuple[int, int],
    width: int,
    size: int,
    limits: Limits | None,
    stops: Stops,
    unit: str,
    nothing: str,
) -> None:
    """Draw a bar of the colour map with round numbers below it, ``width`` pixels wide and three times ``size`` high.

    Args:
        corner: upper left.
        size: of the font, pixels.
        limits: values at the two ends; None writes ``nothing`` instead.
        unit: follows each number.
    """
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size)
    x, y = corner
    bar = size
    if limits is None:
        draw.text((x, y), nothing, fill=FAINT, font=font)
        return
    strip = np.broadcast_to(ramp(np.linspace(0.0, 1.0, width), stops), (bar, width, 3))
    canvas.paste(Image.fromarray(np.ascontiguousarray(strip)), (x, y))
    low, high = limits
    end = -math.inf
    for tick in ticks(low, high, max(2, width // (size * 4))):
        at = x + (tick - low) / (high - low) * (width - 1)
        label = f"{tick_label(tick, high - low)}{unit}"
        length = draw.textlength(label, font=font)
        start = min(max(at - length / 2, x), x + width - length)
        if start < end + size * 0.6:
            continue
        draw.line([(at, y + bar), (at, y + bar + size // 4)], fill=FAINT)
        draw.text((start, y + bar + size // 3), label, fill=TEXT, font=font)
        end = start + length


def ticks(low: float, high: float, count: int) -> list[float]:
    """Return about ``count`` round numbers within low..high."""
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(magnitude * factor for factor in (1, 2, 2.5, 5, 10) if magnitude * factor >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_label(value: float, span: float) -> str:
    """Format ``value`` with as many digits as tell it from its neighbours on a scale of length ``span``."""
    digits = max(0, 2 - math.floor(math.log10(span)))
    text = f"{value:.{digits}f}" if abs(value) < 1e5 else f"{value:.3g}"
    text = text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text
    return "0" if text in ("-0", "") else text


def draw_label(draw: Any, corner: tuple[int, int], text: str, size: int, width: int, colour: Colour) -> None:
    """Draw any text as one line, shortened to ``width`` pixels, in a font that has its letters."""
    font, line = font_and_text(text, size)
    draw.text(corner, fit_text(draw, line, font, width), fill=colour, font=font)


def fit_text(draw: Any, text: str, font: Any, width: int) -> str:
    """Return ``text`` as one printable line, shortened in the middle to ``width`` pixels."""
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
