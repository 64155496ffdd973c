"""Points of all views merged by voxel, and the views that see each of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..geometry import Array
from .scene_arrays import SceneArrays, random_order

DEPTH_TOLERANCE = 0.03
"""Of its depth, by which the depth map of a view may differ from a point that it sees."""

VOXELS_ACROSS = 256
"""Voxels on the diagonal of the scene, unless their size is given."""

_AXIS_BITS = 20  # three signed voxel numbers of so many bits, and their signs, in 64 bits
_SAMPLED = 100_000  # points that the extent is measured on
_OUTLIERS = 2  # per cent at each end of an axis that do not count for the extent
_NEAREST = 1e-6  # in front of a camera


@dataclass(frozen=True, eq=False)
class Tracks:
    """N points and the views that see them; each is seen by at least one.

    Attributes:
        points: (N, 3) float64, in the world.
        colors: (N, 3) uint8.
        seen: per view the indices (M,) of the points that it sees, ascending.
        pixels: per view where they are, (M, 2) float64, pixel centres at integers.
    """

    points: NDArray[np.float64]
    colors: NDArray[np.uint8]
    seen: list[NDArray[np.intp]]
    pixels: list[NDArray[np.float64]]


def find_tracks(
    scene: SceneArrays,
    keep: NDArray[np.bool_],
    rotations: NDArray[np.float64],
    translations: NDArray[np.float64],
    voxel: float | None = None,
    most: int | None = None,
) -> Tracks:
    """Merge the points of all views by voxel, and find the views that see each.

    A view sees a point that is in front of it and falls on a pixel of ``keep`` whose depth is that of the point, within
    :data:`DEPTH_TOLERANCE`. A mean that no view sees, as some between two surfaces, gives way to one of its points;
    what no view sees even then is left out.

    Args:
        scene: V views.
        keep: (V, H, W) bool, the pixels that count.
        rotations, translations: (V, 3, 3) and (V, 3), from the world to each camera.
        voxel: length of the side of a voxel; None: such that :data:`VOXELS_ACROSS` are on the diagonal of the box that
            holds the points, outliers aside.
        most: at most so many points, chosen at random but always the same ones; None: all.

    Raises:
        InputError: the voxel is too small for the scene.
    """
    cameras = scene.intrinsics.astype(np.float64)

    def seen_by(points: NDArray[np.float64]) -> list[tuple[NDArray[np.intp], NDArray[np.float64]]]:
        return [
            _seen(points, cameras[view], rotations[view], translations[view], scene.depth[view], keep[view])
            for view in range(len(keep))
        ]

    def is_seen(points: NDArray[np.float64]) -> NDArray[np.bool_]:
        result = np.zeros(len(points), bool)
        for indices, _ in seen_by(points):
            result[indices] = True
        return result

    merged, single = _merged(scene, keep, voxel)
    limit = len(merged) if most is None else most
    found: list[NDArray[np.intp]] = []
    count, block = 0, max(limit, 1)
    order = random_order(len(merged)) if limit < len(merged) else np.arange(len(merged))
    for start in range(0, len(order), block):
        chosen = order[start : start + block]
        visible = is_seen(merged[chosen, :3])
        hidden = chosen[~visible]
        merged[hidden] = single[hidden]
        visible[~visible] = is_seen(merged[hidden, :3])
        found.append(chosen[visible])
        count += len(found[-1])
        if count >= limit:
            break
    kept = merged[np.sort(np.concatenate([np.zeros(0, np.intp), *found])[:limit])]
    views = seen_by(kept[:, :3])
    colors = np.rint(kept[:, 3:]).astype(np.uint8)
    return Tracks(kept[:, :3].copy(), colors, [indices for indices, _ in views], [pixels for _, pixels in views])


def _merged(
    scene: SceneArrays, keep: NDArray[np.bool_], voxel: float | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean place and colour (N, 6) of the points in each voxel, in an order that is always the same, and the place
    and colour of one of them."""
    centre, side = _grid(scene, keep)
    size = side if voxel is None else voxel
    keys, sums, singles = [], [], []
    for view, mask in enumerate(keep):
        points = scene.points[view][mask].astype(np.float64) - centre
        # Exact numbers, and not the hashes of viewer/thinning.py: a mean over two voxels would be a point nowhere.
        cells = np.floor(points / size)
        inside = (np.abs(cells) < 2**_AXIS_BITS).all(axis=-1)
        if voxel is not None and not inside.all():
            far = float(np.abs(points).max())
            raise InputError(
                f"voxel is {voxel:g}, which is too small for a scene of {2 * far:.3g} across; choose at least "
                f"{1.01 * far / 2**_AXIS_BITS:.3g}"
            )
        # Without a size that was given: an outlier a thousand times farther away than the others is no surface.
        x, y, z = cells[inside].astype(np.int64).T + 2**_AXIS_BITS
        values = np.concatenate([points[inside], scene.colors[view][mask][inside]], axis=-1)
        cell = (x << (2 * _AXIS_BITS + 2)) | (y << (_AXIS_BITS + 1)) | z
        found, first, total = _summed(cell, np.concatenate([values, np.ones((len(values), 1))], axis=-1))
        keys.append(found)
        sums.append(total)
        singles.append(values[first])
    _, first, total = _summed(np.concatenate(keys), np.concatenate(sums))
    mean, single = total[:, :6] / total[:, 6:], np.concatenate(singles)[first]
    mean[:, :3] += centre
    single[:, :3] += centre
    return mean, single


def _summed(keys: NDArray[np.int64], values: Array) -> tuple[NDArray[np.int64], NDArray[np.intp], NDArray[np.float64]]:
    """The keys without repetition, where each is first, and the sums of its values."""
    found, first, place = np.unique(keys, return_index=True, return_inverse=True)
    return found, first, np.stack([np.bincount(place, column, len(found)) for column in values.T], axis=-1)


def _grid(scene: SceneArrays, keep: NDArray[np.bool_]) -> tuple[NDArray[np.float64], float]:
    """The middle of the points, and the size of a voxel that suits them."""
    places = np.flatnonzero(keep)
    sample = places[:: max(1, len(places) // _SAMPLED)]
    if not len(sample):
        return np.zeros(3), 1.0
    points = scene.points.reshape(-1, 3)[sample].astype(np.float64)
    low, middle, high = np.percentile(points, (_OUTLIERS, 50, 100 - _OUTLIERS), axis=0)
    return middle, float(np.linalg.norm(high - low)) / VOXELS_ACROSS or 1.0


def _seen(
    points: NDArray[np.float64],
    intrinsics: NDArray[np.float64],
    rotation: NDArray[np.float64],
    translation: NDArray[np.float64],
    depth: NDArray[np.float32],
    keep: NDArray[np.bool_],
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The points that a view sees, and where."""
    camera = points @ rotation.T + translation
    ahead = np.flatnonzero(camera[:, 2] > _NEAREST)
    camera = camera[ahead]
    pixels = camera[:, :2] / camera[:, 2:] * intrinsics[(0, 1), (0, 1)] + intrinsics[:2, 2]
    height, width = keep.shape
    inside = ((pixels >= -0.5) & (pixels < (width - 0.5, height - 0.5))).all(axis=-1)
    ahead, camera, pixels = ahead[inside], camera[inside], pixels[inside]
    columns, rows = np.rint(pixels).astype(np.intp).T
    columns, rows = np.minimum(columns, width - 1), np.minimum(rows, height - 1)
    agrees = np.abs(depth[rows, columns] - camera[:, 2]) <= DEPTH_TOLERANCE * camera[:, 2]
    agrees &= keep[rows, columns]
    return ahead[agrees], pixels[agrees]
