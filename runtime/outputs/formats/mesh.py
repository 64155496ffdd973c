"""A surface through the pixels of one view: triangles between neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...options import DEFAULTS
from ...postprocessing.edges import normal_edges


def view_mesh(
    points: NDArray[np.float32],
    depth: NDArray[np.float32],
    keep: NDArray[np.bool_],
    camera: Sequence[float] | NDArray[Any] = (0, 0, 0),
) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """Return the surface of one view: the flat indices of its pixels (N,) and its triangles (F, 3) among these N.

    Four pixels that touch each other make two triangles if all of them are in ``keep``, lie in front of the camera,
    and do not jump in depth: a jump is what the edge mask of ``infer`` has for one (more than 3 % of the depth, where
    the surface turns). So nothing spans a hole, or connects an object with what lies behind it. Triangles go
    counter-clockwise as the camera sees them, and the shorter diagonal cuts the four. Where the rays of neighbours
    cross, a triangle would turn its back on the camera: it is left out.

    Args:
        points: (H, W, 3) in any frame.
        camera: (3,), where the camera is in it.
        depth: (H, W).
        keep: (H, W), pixels that are part of it.
    """
    height, width = depth.shape
    empty = np.empty(0, np.int64), np.empty((0, 3), np.uint32)
    if height < 2 or width < 2:
        return empty
    keep = keep & (depth > 0)
    whole = np.logical_and.reduce(_corners(keep))
    near, far = np.minimum.reduce(_corners(depth)), np.maximum.reduce(_corners(depth))
    jumps = whole & (far - near > DEFAULTS.edge_depth_threshold * near)
    if jumps.any():
        beside = np.zeros_like(keep)
        for corner in _corners(beside):
            corner |= jumps
        turns = normal_edges(points, keep, DEFAULTS.edge_normal_threshold, beside)
        whole &= ~(jumps & np.logical_and.reduce(_corners(turns)))
    first = np.flatnonzero(np.pad(whole, ((0, 1), (0, 1))))  # upper left pixels
    if not len(first):
        return empty
    flat = points.reshape(-1, 3)
    upper_left, lower_left, lower_right, upper_right = first, first + width, first + width + 1, first + 1
    falling = np.linalg.norm(flat[upper_left] - flat[lower_right], axis=-1)
    rising = np.linalg.norm(flat[lower_left] - flat[upper_right], axis=-1)
    falls = (falling <= rising)[:, None]
    cut_falling = [upper_left, lower_left, lower_right, upper_left, lower_right, upper_right]
    cut_rising = [upper_left, lower_left, upper_right, lower_left, lower_right, upper_right]
    faces = np.where(falls, np.stack(cut_falling, axis=-1), np.stack(cut_rising, axis=-1)).reshape(-1, 3)
    corners = flat[faces] - np.asarray(camera, flat.dtype)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    faces = faces[np.einsum("fi,fi->f", normals, corners[:, 0]) < 0]
    used = np.zeros(height * width, bool)
    used[faces] = True
    pixels = np.flatnonzero(used)
    return pixels, (np.cumsum(used, dtype=np.int64) - 1)[faces].astype(np.uint32)


def _corners(plane: NDArray[Any]) -> list[NDArray[Any]]:
    """The four pixels (H - 1, W - 1) of every square of neighbours."""
    return [plane[:-1, :-1], plane[1:, :-1], plane[1:, 1:], plane[:-1, 1:]]
