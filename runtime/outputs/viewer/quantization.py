"""Points in ten bytes that compress well: 16 bits for each coordinate, 8 for each colour and the confidence.

A block holds the points of one view and one level, in the order of its pixels. For every point it has the difference
from the point before, and the differences are stored as planes of N bytes: of x the low and the high bytes, then of y
and z, then red - green, green, blue - green, and the rank of the confidence. Differences of coordinates are folded
(0, -1, 1, -2, ... become 0, 1, 2, 3, ...), so that the high bytes of neighbours are 0; all others are modulo 256.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BYTES_PER_POINT = 10
RANKS = 256
_STEPS = 65535
_FAR = 4.0
"""Extents of the middle points of a view, beyond which a point gets coarser steps, so that few of them cost the others
no digits."""
_SAMPLED = 2_000
"""Points by which that extent is told."""
_MOST_SORTED = 2_000_000
"""Of more values, so many tell the ranks of all."""
_BLOCK = 2**16
_LOW_BYTE = 0 if sys.byteorder == "little" else 1
_CELLS = 2**14


@dataclass(frozen=True, eq=False)
class Block:
    """Points of one view and level.

    Attributes:
        view, level: numbers from 0 up.
        low, size: (3,) float64; a coordinate is ``low + size * steps / 65535``.
        count: of points.
        content: ``BYTES_PER_POINT`` times ``count``.
    """

    view: int
    level: int
    low: NDArray[np.float64]
    size: NDArray[np.float64]
    count: int
    content: bytes

    def description(self) -> dict[str, Any]:
        """Return what a viewer has to know of it beside its content."""
        return {
            "view": self.view,
            "level": self.level,
            "count": self.count,
            "low": self.low.tolist(),
            "size": self.size.tolist(),
        }


def confidence_ranks(confidence: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return the rank (N,) of each value among all, 0 to 255, and the smallest value (256,) of each rank.

    A share r / 255 of the values lies below rank r, as near as equal values allow; what is equal has the same rank. Of
    many millions of values, every so many-th tells where ranks begin.
    """
    if not len(confidence):
        return np.empty(0, np.uint8), np.zeros(RANKS, np.float32)
    some = np.sort(confidence[:: max(1, len(confidence) // _MOST_SORTED)])
    limits = some[np.linspace(0, len(some) - 1, RANKS).astype(np.intp)].astype(np.float32)
    ranks = np.empty(len(confidence), np.uint8)
    # Most values lie in one of many equal cells in which no rank begins: a look-up tells theirs, a search the others'.
    low, high = float(limits[1]), float(limits[-2])
    scale = _CELLS / (high - low) if high > low else 0.0
    begins = _cells(limits, low, scale)
    of_cell = (np.searchsorted(begins, np.arange(_CELLS + 1), side="right") - 1).clip(0).astype(np.uint8)
    is_mixed = np.zeros(_CELLS + 1, np.bool_)
    is_mixed[begins] = True
    for start in range(0, len(confidence), _BLOCK):
        own = confidence[start : start + _BLOCK]
        cells = _cells(own, low, scale)
        found = of_cell.take(cells)
        mixed = np.flatnonzero(is_mixed.take(cells))
        found[mixed] = (np.searchsorted(limits, own.take(mixed), side="right") - 1).clip(0)
        ranks[start : start + len(own)] = found
    return ranks, limits


def _cells(values: NDArray[np.float32], low: float, scale: float) -> NDArray[np.intp]:
    """The cells of values, in their order: a larger value is in no lower cell."""
    places = (values.astype(np.float64) - low) * scale
    return places.clip(0, _CELLS).astype(np.intp)


def quantize(
    points: NDArray[np.floating],
    colors: NDArray[np.uint8],
    ranks: NDArray[np.uint8],
    views: NDArray[np.integer],
    levels: NDArray[np.uint8],
) -> Iterator[Block]:
    """Yield the blocks of points (N, 3) with colours (N, 3), ranks, views and levels (N,), level by level."""
    for level in np.unique(levels):
        of_level = np.flatnonzero(levels == level)
        of_level = of_level[np.argsort(views[of_level], kind="stable")]
        for chosen in np.split(of_level, np.flatnonzero(np.diff(views[of_level])) + 1):
            places = np.ascontiguousarray(points.take(chosen, axis=0).T)
            far = _is_far(places)
            for part in (~far, far) if far.any() else (slice(None),):
                own = chosen[part]
                if len(own):
                    shades = np.ascontiguousarray(colors.take(own, axis=0).T)
                    yield _block(places[:, part], shades, ranks.take(own), int(views[own[0]]), int(level))


def _is_far(points: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which of the points (3, N) lie far from the others."""
    sample = points[:, :: max(1, points.shape[1] // _SAMPLED)].astype(np.float64)
    low, high = np.percentile(sample, (5, 95), axis=1)
    reach = _FAR * max(float(np.max(high - low)), 1e-9)
    far = np.zeros(points.shape[1], np.bool_)
    for axis, least, most in zip(points, low - reach, high + reach, strict=True):
        if axis.min() < least or axis.max() > most:
            far |= (axis < least) | (axis > most)
    return far


def _block(
    points: NDArray[np.floating], colors: NDArray[np.uint8], ranks: NDArray[np.uint8], view: int, level: int
) -> Block:
    """The block of points (3, N) with colours (3, N)."""
    low = points.min(axis=1).astype(np.float64)
    size = points.max(axis=1) - low
    size[size == 0] = 1
    planes = []
    for axis, least, extent in zip(points, low.tolist(), size.tolist(), strict=True):
        steps = np.rint((axis - least) * (_STEPS / extent)).astype(np.uint16)
        differences = np.diff(steps, prepend=np.uint16(0)).view(np.int16)  # modulo 2**16
        folded = ((differences << 1) ^ (differences >> 15)).view(np.uint8).reshape(-1, 2)
        planes += [folded[:, _LOW_BYTE], folded[:, 1 - _LOW_BYTE]]
    red, green, blue = colors
    planes += [np.diff(plane, prepend=np.uint8(0)) for plane in (red - green, green, blue - green, ranks)]
    return Block(view, level, low, size, points.shape[1], b"".join(plane.tobytes() for plane in planes))
