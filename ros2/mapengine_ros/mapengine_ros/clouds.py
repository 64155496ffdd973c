"""Points of depth maps, thinned, as the bytes of a ``PointCloud2``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

POINT = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("rgb", "<u4"), ("confidence", "<f4")])
"""A point in a cloud. ``rgb`` is declared as float32, as PCL and RViz have it: its bits are 0x00RRGGBB."""

FLOAT32 = 7
"""``PointField.FLOAT32``."""


@dataclass(frozen=True)
class Thinning:
    """How points become fewer.

    Attributes:
        step: every so many-th pixel of rows and of columns is taken.
        voxel: edge of cubes in metres, of each of which the most confident point stays; 0: all points stay.
    """

    step: int = 1
    voxel: float = 0.0


def points_of(
    points: Array, colours: Array, confidence: Array, mask: Array, pose: Array, thinning: Thinning
) -> NDArray[np.void]:
    """Return the points of one view, thinned by its step.

    Args:
        points: (H, W, 3) in the camera's frame, metres.
        colours: (H, W, 3), 0..1.
        confidence: (H, W).
        mask: (H, W) bool, where there are points.
        pose: (4, 4), from the camera's frame to that of the result.
        thinning: how many.

    Returns:
        (N,) of :data:`POINT`.
    """
    some = (slice(None, None, thinning.step),) * 2
    kept = mask[some] & np.isfinite(points[some]).all(axis=-1)
    result = np.empty(int(kept.sum()), POINT)
    placed = points[some][kept].astype(np.float64) @ pose[:3, :3].T + pose[:3, 3]
    result["x"], result["y"], result["z"] = placed.T
    red, green, blue = np.clip(np.rint(colours[some][kept] * 255), 0, 255).astype(np.uint32).T
    result["rgb"] = red << 16 | green << 8 | blue
    result["confidence"] = confidence[some][kept]
    return result


def merged(clouds: Iterable[NDArray[np.void]], thinning: Thinning) -> NDArray[np.void]:
    """Return the points of several views as one cloud, thinned by its voxels."""
    together = np.concatenate([np.empty(0, POINT), *clouds])
    if not thinning.voxel or not len(together):
        return together
    place = np.stack([together[axis] for axis in "xyz"], axis=-1).astype(np.float64)
    cubes = np.floor(place / thinning.voxel).astype(np.int64)
    order = np.lexsort((-together["confidence"], *cubes.T))
    cubes = cubes[order]
    first = np.concatenate([[True], (np.diff(cubes, axis=0) != 0).any(axis=1)])
    return together[np.sort(order[first])]


def cloud_fields(cloud: NDArray[np.void]) -> dict[str, Any]:
    """Return the fields of a ``PointCloud2`` but for its header; ``fields`` as (name, offset, datatype, count)."""
    offsets = [(name, POINT.fields[name][1]) for name in POINT.names or ()] if POINT.fields else []
    return {
        "height": 1,
        "width": len(cloud),
        "fields": [(name, offset, FLOAT32, 1) for name, offset in offsets],
        "is_bigendian": False,
        "point_step": POINT.itemsize,
        "row_step": POINT.itemsize * len(cloud),
        "data": cloud.tobytes(),
        "is_dense": True,
    }


def image_fields(values: Array) -> dict[str, Any]:
    """Return the fields of a 32FC1 ``Image`` but for its header, of values (H, W)."""
    rows = np.ascontiguousarray(values, "<f4")
    return {
        "height": rows.shape[0],
        "width": rows.shape[1],
        "encoding": "32FC1",
        "is_bigendian": 0,
        "step": rows.shape[1] * 4,
        "data": rows.tobytes(),
    }


def masked_depth(depth: Array, mask: Array) -> NDArray[np.float32]:
    """Return depth (H, W) with NaN where there is none, as REP 118 has it."""
    return np.where(mask & (depth > 0), depth, np.nan).astype(np.float32)
