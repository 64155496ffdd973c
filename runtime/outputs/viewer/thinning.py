"""Fewer points that look the same: of all points in a cube of space (a voxel), one of the most confident ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)
"""Odd numbers, by which three coordinates become one hash."""
_SLOTS = 2**24
"""Of the table of hashes. Two voxels that share one leave one point between them, of a million about three in a
hundred."""
_NEAR = 0.85
"""A thinned set has at least this share of what it may have, if finding that takes no more than so many tries."""
_TRIES = 8


def thin(points: NDArray[np.float64], ranks: NDArray[np.uint8], most: int) -> tuple[NDArray[np.int64], float]:
    """Return which points to keep, in their order, and the edge of the voxels that keep one point each.

    Args:
        points: (N, 3) finite.
        ranks: (N,) of the confidence; a largest one in a voxel wins.
        most: how many points may stay, one or more.

    Returns:
        Ascending indices, at most ``most``, and the edge in the unit of the points; 0 if all points stay.
    """
    if len(points) <= most:
        return np.arange(len(points)), 0.0
    edge, smallest, largest = _first_guess(points, most), 0.0, np.inf  # too many points stay, and few enough
    for _ in range(_TRIES):
        count = _voxels(points, edge)
        if count > most:
            smallest = edge
        else:
            largest = edge
            if count >= _NEAR * most:
                break
        # Points lie on surfaces, so their number goes with the square of the edge.
        wanted = edge * np.sqrt(count / (most * (1 + _NEAR) / 2))
        if smallest < wanted < largest:
            edge = wanted
        else:
            edge = np.sqrt(smallest * largest) if smallest > 0 and largest < np.inf else 2 * edge
    edge = largest if largest < np.inf else _large_enough(points, edge, most)
    winners = np.full(_SLOTS, -1, np.int32)
    order = np.argsort(ranks, kind="stable")
    winners[_slots(points[order], edge)] = order  # what is written last stays
    return np.sort(winners[winners >= 0]).astype(np.int64), float(edge)


def levels(points: NDArray[np.float64], ranks: NDArray[np.uint8], most: int) -> tuple[NDArray[np.uint8], float]:
    """Return the level of each point: 0 for at most ``most`` that show the whole, coarsely, 1 for the rest.

    Returns:
        (N,) and the edge of the voxels of level 0, as of :func:`thin`.
    """
    coarse, edge = thin(points, ranks, most)
    result = np.ones(len(points), np.uint8)
    result[coarse] = 0
    return result, edge


def _first_guess(points: NDArray[np.float64], most: int) -> float:
    sample = points[:: max(1, len(points) // 10_000)]
    extent = float(np.max(np.ptp(np.percentile(sample, (5, 95), axis=0), axis=0)))
    return extent / np.sqrt(most) if extent > 0 else max(float(np.ptp(points)), 1e-6) / np.sqrt(most)


def _large_enough(points: NDArray[np.float64], edge: float, most: int) -> float:
    while _voxels(points, edge) > most:  # ends: cubes are centred at the origin, so one of them holds all at last
        edge *= 2
    return edge


def _voxels(points: NDArray[np.float64], edge: float) -> int:
    taken = np.zeros(_SLOTS, np.bool_)
    taken[_slots(points, edge)] = True
    return int(np.count_nonzero(taken))


def _slots(points: NDArray[np.float64], edge: float) -> NDArray[Any]:
    """The slot (N,) of the voxel of each point. Cubes are centred at multiples of the edge."""
    hashes = np.zeros(len(points), np.uint64)
    for axis, factor in zip(points.T, _MIX, strict=True):
        cells = np.rint(axis / edge).clip(-(2.0**62), 2.0**62).astype(np.int64).view(np.uint64)
        hashes ^= cells * factor
        hashes ^= hashes >> np.uint64(31)
    hashes *= _MIX[1]
    return (hashes >> np.uint64(40)).astype(np.int64)  # 24 bits
