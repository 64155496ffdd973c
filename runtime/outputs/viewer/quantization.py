"""Points in ten bytes that compress well: 16 bits for each coordinate, 8 for each colour and the confidence.

A block holds the points of one view and one level, in the order of its pixels. For every point it has the difference
from the point before, and the differences are stored as planes of N bytes: of x the low and the high bytes, then of y
and z, then red - green, green, blue - green, and the rank of the confidence. Differences of coordinates are folded
(0, -1, 1, -2, ... become 0, 1, 2, 3, ...), so that the high bytes of neighbours are 0; all others are modulo 256.
"""

from __future__ import annotations

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
    for start in range(0, len(confidence), _BLOCK):
        own = confidence[start : start + _BLOCK]
        ranks[start : start + len(own)] = (np.searchsorted(limits, own, side="right") - 1).clip(0)
    return ranks, limits


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
            places = points[chosen].astype(np.float64)
            far = _is_far(places)
            for part in (~far, far):
                if part.any():
                    own = chosen[part]
                    yield _block(places[part], colors[own], ranks[own], int(views[own[0]]), int(level))


def _is_far(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    low, high = np.percentile(points[:: max(1, len(points) // _SAMPLED)], (5, 95), axis=0)
    reach = _FAR * max(float(np.max(high - low)), 1e-9)
    return np.asarray(((points < low - reach) | (points > high + reach)).any(axis=1))


def _block(
    points: NDArray[np.float64], colors: NDArray[np.uint8], ranks: NDArray[np.uint8], view: int, level: int
) -> Block:
    low = points.min(axis=0)
    size = points.max(axis=0) - low
    size[size == 0] = 1
    steps = np.rint((points - low) / size * _STEPS).astype(np.int64)
    planes = []
    for axis in steps.T:
        differences = np.diff(axis, prepend=0)
        wrapped = (differences + 2**15) % 2**16 - 2**15
        folded = np.where(wrapped < 0, -2 * wrapped - 1, 2 * wrapped).astype(np.uint16)
        planes += [(folded & 255).astype(np.uint8), (folded >> 8).astype(np.uint8)]
    red, green, blue = colors.T
    planes += [np.diff(plane, prepend=np.uint8(0)) for plane in (red - green, green, blue - green, ranks)]
    return Block(view, level, low, size, len(points), b"".join(plane.tobytes() for plane in planes))
