"""A map against true surfaces: how far its points are from them, and how much of them it has."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

THINNED = 0.05
"""Metres: of the points in a cube of this side one counts, so that places that were seen frequently count once."""
FARTHEST_MATCH = 0.5
"""Metres: a point that has nothing nearer counts as being so far off."""
POINTS_PER_FRAME = 1000
"""About so many points of a depth map are taken."""

_CELL_BITS = 20


def sampled_points(depth_z: Array, intrinsics: Array, mask: Array | None = None) -> NDArray[np.float32]:
    """Return points (N, 3) in the camera of a depth map (H, W), at the pixels of a regular grid that have
    depth."""
    stride = max(1, round(math.sqrt(depth_z.size / POINTS_PER_FRAME)))
    rows, columns = (np.arange(stride // 2, side, stride) for side in depth_z.shape)
    z = depth_z[np.ix_(rows, columns)]
    x = (columns[None, :] - intrinsics[0, 2]) / intrinsics[0, 0] * z
    y = (rows[:, None] - intrinsics[1, 2]) / intrinsics[1, 1] * z
    valid = z > 0 if mask is None else (z > 0) & mask[np.ix_(rows, columns)]
    return np.stack([x, y, z], axis=-1)[valid].astype(np.float32)


def thinned(points: Array, size: float = THINNED) -> Array:
    """Return one point, the first, of each cube of a grid with that side; points (N, 3)."""
    _, first = np.unique(_keys(_cells(points, size)), return_index=True)
    return points[np.sort(first)]


def nearest_distances(points: Array, others: Array, limit: float = FARTHEST_MATCH) -> NDArray[np.float64]:
    """Return the distance from each of ``points`` (N, 3) to the nearest of ``others`` (M, 3), at most ``limit``."""
    result = np.full(len(points), limit)
    if len(points) == 0 or len(others) == 0:
        return result
    cells, there = _cells(points, limit), _cells(others, limit)
    own, theirs = _keys(cells), _keys(there)
    order = np.argsort(theirs, kind="stable")
    sorted_keys = theirs[order]
    by_cell = np.argsort(own, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(own[by_cell]) != 0]))
    around = np.stack(np.meshgrid(*([[-1, 0, 1]] * 3), indexing="ij"), axis=-1).reshape(-1, 3)
    for index in np.split(by_cell, starts[1:]):
        near = _keys(cells[index[0]] + around)
        low, high = np.searchsorted(sorted_keys, near), np.searchsorted(sorted_keys, near, side="right")
        found = np.concatenate([order[a:b] for a, b in zip(low, high, strict=True)])
        if found.size:
            # From the middle of the cell, where differences of squares keep their digits.
            middle = points[index[0]].astype(np.float64)
            p, q = points[index] - middle, others[found] - middle
            squares = np.sum(p * p, axis=1)[:, None] - 2 * (p @ q.T) + np.sum(q * q, axis=1)[None, :]
            result[index] = np.minimum(np.sqrt(np.maximum(squares.min(axis=1), 0)), limit)
    return result


def surface_errors(found: Array, true: Array, limit: float = FARTHEST_MATCH) -> tuple[float, float]:
    """Return accuracy and completeness in metres: the mean distance of the map's points (N, 3) to the true surfaces,
    given as points (M, 3), and of these to the map's. Both are :func:`thinned` first."""
    found, true = thinned(found), thinned(true)
    pairs = ((found, true), (true, found))
    accuracy, completeness = (float(np.mean(nearest_distances(a, b, limit))) if len(a) else limit for a, b in pairs)
    return accuracy, completeness


def _cells(points: Array, size: float) -> NDArray[np.int64]:
    return np.floor(points / size).astype(np.int64)


def _keys(cells: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return one number per cell (..., 3); cells further than 2^19 from the origin share numbers with others."""
    shifted = (cells + (1 << (_CELL_BITS - 1))) & ((1 << _CELL_BITS) - 1)
    keys: NDArray[np.int64] = (shifted[..., 0] << 2 * _CELL_BITS) | (shifted[..., 1] << _CELL_BITS) | shifted[..., 2]
    return keys
