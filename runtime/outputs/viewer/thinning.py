"""Fewer points that look the same: of all points in a cube of space (a voxel), one of the most confident ones."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_MIX = np.array([0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D], np.uint32)
"""Odd numbers, by which three coordinates become one hash."""
_SLOT_BITS = 24
"""Of the table of hashes. Two voxels that share one leave one point between them, of a million about three in a
hundred."""
_FARTHEST = 2.0**30  # voxels from the origin: what lies farther counts as there
_BLOCK = 2**14  # points whose hashes are made at a time, so that they stay in a processor's cache
_NEAR = 0.85
"""A thinned set has at least this share of what it may have, if finding that takes no more than so many tries."""
_TRIES = 8
_MANY = 1_000_000
"""Of more points the edge is first sought for the points in some of many cubes."""
_SPAN, _PARTS = 16, 8  # voxels along such a cube, and one in how many is taken


def thin(points: NDArray[np.floating], ranks: NDArray[np.uint8], most: int) -> tuple[NDArray[np.int64], float]:
    """Return which points to keep, in their order, and the edge of the voxels that keep one point each.

    Args:
        points: (N, 3) finite, fewer than 2**31.
        ranks: (N,) of the confidence; a largest one in a voxel wins.
        most: how many points may stay, one or more.

    Returns:
        Ascending indices, at most ``most``, and the edge in the unit of the points; 0 if all points stay.
    """
    if len(points) <= most:
        return np.arange(len(points)), 0.0
    edge = usual_spacing(points, most)
    if len(points) > _MANY:
        part = points[np.concatenate([slots % _PARTS == 0 for _, slots in _slots(points, _SPAN * edge)])]
        if len(part):
            # Voxels at the border of a cube are counted although they are not wholly in it.
            edge = _fitting_edge(part, max(1, int(most / _PARTS * (1 + 1 / _SPAN) ** 2)), edge)
    edge = _fitting_edge(points, most, edge)
    return _winners(points, ranks, edge), edge


def levels(points: NDArray[np.floating], ranks: NDArray[np.uint8], most: int) -> tuple[NDArray[np.uint8], float]:
    """Return the level of each point: 0 for at most ``most`` that show the whole, coarsely, 1 for the rest.

    Returns:
        (N,) and the edge of the voxels of level 0, as of :func:`thin`.
    """
    coarse, edge = thin(points, ranks, most)
    result = np.ones(len(points), np.uint8)
    result[coarse] = 0
    return result, edge


def usual_spacing(points: NDArray[np.floating], most: int) -> float:
    """Return about how far ``most`` points on the surfaces that these points lie on are apart; more than 0."""
    sample = points[:: max(1, len(points) // 10_000)].astype(np.float64)
    extent = float(np.max(np.ptp(np.percentile(sample, (5, 95), axis=0), axis=0)))
    return extent / np.sqrt(most) if extent > 0 else max(float(np.ptp(points)), 1e-6) / np.sqrt(most)


def _fitting_edge(points: NDArray[np.floating], most: int, edge: float) -> float:
    """An edge that leaves at most so many points, and not much fewer if that is soon found."""
    smallest, largest = 0.0, np.inf  # too many points stay, and few enough
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
            edge = float(wanted)
        else:
            edge = float(np.sqrt(smallest * largest)) if smallest > 0 and largest < np.inf else 2 * edge
    if largest < np.inf:
        return largest
    while _voxels(points, edge) > most:  # ends: cubes are centred at the origin, so one of them holds all at last
        edge *= 2
    return edge


def _voxels(points: NDArray[np.floating], edge: float) -> int:
    taken = np.zeros(2**_SLOT_BITS, np.bool_)
    for _, slots in _slots(points, edge):
        taken[slots] = True
    return int(np.count_nonzero(taken))


def _winners(points: NDArray[np.floating], ranks: NDArray[np.uint8], edge: float) -> NDArray[np.int64]:
    """The most confident point of each voxel, ascending."""
    best = np.zeros(2**_SLOT_BITS, np.int64)
    for start, slots in _slots(points, edge):
        keys = ranks[start : start + len(slots)].astype(np.int64) << 32
        keys += np.arange(start + 1, start + 1 + len(slots))
        np.maximum.at(best, slots, keys)
    return np.sort(best[best > 0] & (2**32 - 1)) - 1


def _slots(points: NDArray[np.floating], edge: float) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """The slots (N,) of the voxels of points, block by block, and where each block begins. Cubes are centred at
    multiples of the edge. Hashes are fast enough for each of several tries, where tracks.py needs exact voxels once."""
    scale = points.dtype.type(1 / edge)
    for start in range(0, len(points), _BLOCK):
        block = points[start : start + _BLOCK] * scale
        np.rint(block, out=block)
        np.clip(block, -_FARTHEST, _FARTHEST, out=block)
        cells = block.astype(np.int32).view(np.uint32)
        hashes = cells[:, 0] * _MIX[0]
        for axis in (1, 2):
            hashes ^= hashes >> np.uint32(15)
            hashes += cells[:, axis]
            hashes *= _MIX[axis]
        hashes ^= hashes >> np.uint32(13)
        hashes *= _MIX[0]
        yield start, (hashes >> np.uint32(32 - _SLOT_BITS)).astype(np.intp)
