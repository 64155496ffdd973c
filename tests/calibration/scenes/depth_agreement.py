"""Depth maps of two views held against each other."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mapengine.calibration.scenes.cameras import reproject

Array = NDArray[np.float32]


class View(NamedTuple):
    """Depth (H, W), pose (4, 4) and intrinsics (3, 3)."""

    depth: Array
    pose: Array
    intrinsics: Array


def project(a: View, b: View) -> tuple[Array, Array, Array]:
    """Column, row and depth in view ``b`` of all points of view ``a`` that fall into it."""
    rows, columns = np.nonzero(a.depth)
    found = reproject(*a, b.pose, b.intrinsics, rows, columns)
    height, width = b.depth.shape
    inside = (found.z > 0.05) & (found.column >= 0) & (found.column <= width - 1)
    inside &= (found.row >= 0) & (found.row <= height - 1)
    return found.column[inside], found.row[inside], found.z[inside]


def count_disagreements(a: View, b: View) -> tuple[int, int]:
    """How many points of ``a`` can be compared with the depth of ``b``, and how many are off by more than 0.1 %.

    Inverse depth is linear on a plane: interpolated where the four pixels around lie on one, it is exact. Points that
    are hidden by more than 2 % are not compared.
    """
    column, row, z = project(a, b)
    i = np.minimum(row.astype(int), b.depth.shape[0] - 2)
    j = np.minimum(column.astype(int), b.depth.shape[1] - 2)
    with np.errstate(divide="ignore"):
        inverse = 1 / b.depth.astype(np.float64)
    corners = [inverse[i, j], inverse[i, j + 1], inverse[i + 1, j], inverse[i + 1, j + 1]]
    with np.errstate(invalid="ignore"):
        flat = np.abs(corners[0] - corners[1] - corners[2] + corners[3]) < 2e-5 * corners[0]
    u, v = column - j, row - i
    expected = (corners[0] * (1 - u) + corners[1] * u) * (1 - v) + (corners[2] * (1 - u) + corners[3] * u) * v
    visible = flat & np.isfinite(expected) & (z * expected < 1.02)
    error = np.abs(z * expected - 1)[visible]
    return error.size, np.count_nonzero(error > 1e-3)
