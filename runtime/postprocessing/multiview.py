"""Multi-view confidence: how much of what a view sees is confirmed by the depth of the views that overlap with it.

As in MapAnything inference. Each pixel is projected into every overlapping view; its confidence is the share of those
projections that land in the image and agree with the depth found there. Views that overlap with no other get 1.
Work goes pair by pair, so memory grows with the image and not with the number of views.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..geometry import Array

DEFAULT_NEAR, DEFAULT_FAR = 0.1, 100.0  # of a view without any positive depth
MIN_DEPTH = 0.04  # a point closer to the target camera than this is not compared
GUARD = 1e-6

# Signs of a frustum's corners, near plane first; its planes and triangles as indices of corners.
_CORNER_SIGNS = np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)])
_PLANES = np.array([(0, 1, 3), (1, 6, 2), (0, 3, 7), (2, 6, 3), (0, 5, 1), (6, 5, 4)])
_TRIANGLES = np.array(
    [
        *((0, 1, 2), (0, 2, 3), (0, 3, 7), (0, 7, 4), (1, 2, 6), (1, 6, 5)),
        *((1, 4, 5), (1, 0, 4), (2, 6, 7), (2, 3, 7), (6, 7, 4), (6, 5, 4)),
    ]
)
_EDGES = np.unique(np.sort(_TRIANGLES[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1), axis=0)


def multiview_confidence(
    depth_z: Sequence[Array],
    intrinsics: Sequence[Array],
    camera_poses: Sequence[Array],
    masks: Sequence[Array],
    *,
    depth_abs_thresh: float = 0.02,
    depth_rel_thresh: float = 0.02,
) -> list[Array]:
    """Return the confidence (B, H, W) in 0..1 of V views, float32 like the depth.

    ``depth_z`` V times (B, H, W, 1), unmasked; ``intrinsics`` (B, 3, 3); ``camera_poses`` (B, 4, 4) camera-to-world;
    ``masks`` (B, H, W) bool: source pixels outside it are not projected. A projection agrees when its depth differs by
    less than ``depth_abs_thresh + depth_rel_thresh * depth``.
    """
    corners = np.stack([_frustum(*view) for view in zip(depth_z, intrinsics, camera_poses, strict=True)])
    overlap = frustum_overlap(corners)
    result = []
    for source in range(len(depth_z)):
        targets = np.flatnonzero(overlap[source]).tolist()
        if not targets:
            result.append(np.ones(depth_z[source].shape[:-1], depth_z[source].dtype))
            continue
        agreed = np.zeros(depth_z[source].shape[:-1], np.int32)
        compared = np.zeros_like(agreed)
        for target in targets:
            for b in range(len(agreed)):
                seen, near = _compare(
                    depth_z[source][b, ..., 0],
                    depth_z[target][b, ..., 0],
                    intrinsics[source][b],
                    intrinsics[target][b],
                    camera_poses[source][b],
                    camera_poses[target][b],
                    masks[source][b],
                    (depth_abs_thresh, depth_rel_thresh),
                )
                compared[b] += seen
                agreed[b] += near
        confidence = agreed.astype(depth_z[source].dtype)
        confidence /= compared + depth_z[source].dtype.type(1e-10)
        result.append(confidence)
    return result


def _frustum(depth_z: Array, intrinsics: Array, pose: Array) -> Array:
    """Return the corners (8, 3) of the first sample's frustum in world axes, near plane first.

    Near and far are the extremes of the positive depth of the whole batch, as in the reference.
    """
    positive = depth_z > 0
    near, far = DEFAULT_NEAR, DEFAULT_FAR
    if positive.any():
        near = float(np.min(depth_z, where=positive, initial=np.inf))
        far = float(np.max(depth_z, where=positive, initial=-np.inf))
    k, pose = intrinsics[0].astype(np.float64), pose[0].astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        half = np.array([k[0, 2] / k[0, 0], k[1, 2] / k[1, 1]])
        plane = np.concatenate([_CORNER_SIGNS * half, np.ones((4, 1))], axis=1)
        corners: Array = np.concatenate([plane * near, plane * far]) @ pose[:3, :3].T + pose[:3, 3]
    return corners


def frustum_overlap(corners: Array) -> Array:
    """Return which frusta (V, 8, 3) overlap: (V, V) bool, symmetric, False on the diagonal.

    Two overlap when the first corner of one lies inside the other, or an edge of one crosses a face of the other.
    """
    count = len(corners)
    overlap = np.zeros((count, count), bool)
    a, b, c = (corners[:, _PLANES[:, i]] for i in range(3))  # (V, 6, 3)
    e1, e2 = corners[:, _TRIANGLES[:, 1]], corners[:, _TRIANGLES[:, 2]]
    origin = corners[:, _TRIANGLES[:, 0]]  # (V, 12, 3)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        normals = np.cross(b - a, c - a)
        for view in range(count):
            inside = (np.einsum("vki,vki->vk", normals, corners[view, 0] - a) >= 0).all(axis=1)
            start, end = corners[view, _EDGES[:, 0]], corners[view, _EDGES[:, 1]]
            overlap[view] = inside | _any_hit(start, end, origin, e1 - origin, e2 - origin)
    overlap |= overlap.T
    np.fill_diagonal(overlap, False)
    return overlap


def _any_hit(start: Array, end: Array, origin: Array, e1: Array, e2: Array) -> Array:
    """Return whether a segment (E, 3) hits a triangle (V, 12, 3) of each view: (V,) bool (Moeller, Trumbore 1997)."""
    direction = end - start
    length = np.sqrt((direction * direction).sum(axis=-1))
    direction = (direction / length[:, None])[None, :, None]  # (1, E, 1, 3)
    e1, e2 = e1[:, None], e2[:, None]  # (V, 1, 12, 3)
    p = np.cross(direction, e2)
    determinant = (e1 * p).sum(axis=-1)  # (V, E, 12)
    offset = start[None, :, None] - origin[:, None]
    u = (offset * p).sum(axis=-1) / determinant
    q = np.cross(offset, e1)
    v = (direction * q).sum(axis=-1) / determinant
    t = (e2 * q).sum(axis=-1) / determinant
    hit = (np.abs(determinant) > GUARD) & (u >= 0) & (u <= 1) & (v >= 0) & (u + v <= 1)
    hit &= (t >= GUARD) & (t <= length[None, :, None])
    return np.asarray(hit.any(axis=(1, 2)))


def _compare(
    source_depth: Array,
    target_depth: Array,
    source_k: Array,
    target_k: Array,
    source_pose: Array,
    target_pose: Array,
    mask: Array,
    thresholds: tuple[float, float],
) -> tuple[Array, Array]:
    """Return which pixels (H, W) of the source land in the target at all, and which agree with its depth."""
    dtype = source_depth.dtype
    height, width = source_depth.shape
    absolute, relative = (dtype.type(x) for x in thresholds)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # Pixel (u, v, 1) times depth, into target axes and pixels, as one 3 x 3 matrix and an offset.
        k = source_k.astype(np.float64)
        inverse = np.array([(1 / k[0, 0], 0, -k[0, 2] / k[0, 0]), (0, 1 / k[1, 1], -k[1, 2] / k[1, 1]), (0, 0, 1)])
        to_target = target_pose[:3, :3].astype(np.float64).T
        project = target_k.astype(np.float64)
        matrix = (project @ to_target @ source_pose[:3, :3] @ inverse).astype(dtype)
        shift = project @ to_target @ (source_pose[:3, 3].astype(np.float64) - target_pose[:3, 3])
        u, v = np.arange(width, dtype=dtype), np.arange(height, dtype=dtype)[:, None]
        x, y, z = (
            ((matrix[i, 0] * u) + (matrix[i, 1] * v + matrix[i, 2])) * source_depth + dtype.type(shift[i])
            for i in range(3)
        )
        divisor = np.maximum(z, dtype.type(GUARD))
        x /= divisor
        y /= divisor
        seen = (x >= 0) & (x < width) & (y >= 0) & (y < height) & (z > dtype.type(MIN_DEPTH))
        seen &= (source_depth > 0) & mask
        column = np.minimum(np.rint(np.where(seen, x, 0)).astype(np.int32), width - 1)
        row = np.minimum(np.rint(np.where(seen, y, 0)).astype(np.int32), height - 1)
        close = np.abs(z - target_depth[row, column]) < absolute + relative * z
    return seen, close & seen
