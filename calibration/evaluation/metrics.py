"""Errors of a reconstruction as geometry: pure functions of predicted and true arrays.

Definitions follow MapAnything (arXiv 2509.13414, experiments and supplement, and its dense N-view benchmark) where it
has one; each function names its source. V views of H x W pixels. Lengths are metres, angles degrees, poses (V, 4, 4)
camera-to-world in any one frame. ``valid`` (V, H, W) bool are the pixels with true depth; at least one must be.

A mean over pixels is taken per view, and then over the views that have such pixels, so that every view counts alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapengine.runtime.geometry import vector_norm

Array = NDArray[Any]

INLIER_THRESHOLD = 1.03
"""Largest ratio between predicted and true depth of an inlier."""

AUC_LIMIT = 5
"""Degrees up to which the recall of poses is averaged."""

_NO_BASELINE = 1e-6  # metres; the direction between two cameras closer than this is not defined


def median_scale(depth: Array, true_depth: Array, valid: Array) -> float:
    """Return the factor median(true) / median(predicted) over all valid pixels of all views, for depth (V, H, W).

    Median scaling with one factor per scene: Zhou et al. 2017 and the Robust MVD benchmark (Schroeppel et al. 2022)
    that MapAnything reports depth on. 1 if the predicted median is not positive, as no factor would mend that.
    """
    median = float(np.median(depth[valid]))
    return float(np.median(true_depth[valid])) / median if median > 0 else 1.0


def depth_abs_rel(depth: Array, true_depth: Array, valid: Array) -> float:
    """Return the mean of |d - d*| / d* of depth (V, H, W) (Eigen et al. 2014)."""
    return _mean_over_views(_relative(np.abs(depth - true_depth), true_depth, valid), valid)


def depth_inliers(depth: Array, true_depth: Array, valid: Array) -> float:
    """Return the share of pixels with max(d / d*, d* / d) < 1.03, depth (V, H, W) (Robust MVD). Depth below 0 is no
    inlier."""
    positive = valid & (depth > 0)
    ratio = _relative(depth, true_depth, positive)
    inlier = positive & (ratio < INLIER_THRESHOLD) & (ratio * INLIER_THRESHOLD > 1)
    return _mean_over_views(inlier.astype(np.float64), valid)


def ray_degrees(rays: Array, true_rays: Array) -> float:
    """Return the mean angle between unit ray directions (V, H, W, 3) over all pixels, sky too: the camera is known
    everywhere.

    2 asin(|r - r*| / 2): the arc cosine cannot resolve small angles (MapAnything).
    """
    return float(np.mean(angle_of_chord(vector_norm(rays - true_rays))))


def points_abs_rel(points: Array, true_points: Array, valid: Array) -> float:
    """Return the mean of |x - x*| / |x*| of points (V, H, W, 3) in the frame of view 0, both over their mean distance.

    The mean distance (:func:`mean_distance`) takes the scale out, as MapAnything's benchmark does.
    """
    found = points / max(mean_distance(points, valid), np.finfo(np.float64).tiny)
    true = true_points / mean_distance(true_points, valid)
    return _mean_over_views(_relative(vector_norm(found - true), vector_norm(true), valid), valid)


def mean_distance(points: Array, valid: Array) -> float:
    """Return the mean length of the valid points (V, H, W, 3): the scale of a scene (DUSt3R's ``avg_dis``,
    MapAnything)."""
    return float(np.mean(vector_norm(points), where=valid))


def metric_scale_abs_rel(points: Array, true_points: Array, valid: Array) -> float:
    """Return |s - s*| / s* with s the :func:`mean_distance` of points in the frame of view 0, in metres
    (MapAnything)."""
    true = mean_distance(true_points, valid)
    return abs(mean_distance(points, valid) - true) / true


def in_first_view(poses: Array) -> Array:
    """Return poses (V, 4, 4) as seen from the first one: P0^-1 P."""
    rotation, position = poses[0, :3, :3], poses[0, :3, 3]
    result = poses.copy()
    result[:, :3, :3] = rotation.T @ poses[:, :3, :3]
    result[:, :3, 3] = (poses[:, :3, 3] - position) @ rotation
    return result


def pair_errors(poses: Array, true_poses: Array) -> tuple[Array, Array]:
    """Return the rotation and translation direction of every pair of views against the truth, each (V (V - 1) / 2,)
    degrees.

    With Pi^-1 Pj = (R, t): the angle of R^T R*, and the angle between the lines along t and t*, at most 90 (VGGT and
    MapAnything, after PoseDiffusion: t and -t count alike). A predicted t of length 0 has no direction and counts as
    90; where the true t is shorter than a micrometre there is nothing to predict, and the angle is NaN.
    """
    first, second = np.triu_indices(len(poses), 1)

    def relative(p: Array) -> tuple[Array, Array]:
        inverse = p[first, :3, :3].swapaxes(1, 2)
        return inverse @ p[second, :3, :3], (inverse @ (p[second, :3, 3] - p[first, :3, 3])[..., None])[..., 0]

    (rotation, offset), (true_rotation, true_offset) = relative(poses), relative(true_poses)
    chord = np.linalg.norm(rotation - true_rotation, axis=(1, 2)) / np.sqrt(2.0)
    sine = np.linalg.norm(np.cross(offset, true_offset), axis=1)
    cosine = np.abs(np.sum(offset * true_offset, axis=1))
    angle = np.degrees(np.arctan2(sine, cosine))
    angle[np.linalg.norm(offset, axis=1) == 0] = 90.0
    angle[np.linalg.norm(true_offset, axis=1) < _NO_BASELINE] = np.nan
    return angle_of_chord(chord), angle


def auc(errors: Array, limit: int = AUC_LIMIT) -> float:
    """Return the area under the recall of errors (N,) in degrees up to ``limit``: the mean of share(error < k), k = 1
    .. limit.

    One-degree bins as in VGGT and MapAnything. For poses the error of a pair is the larger one of rotation and
    translation direction. NaN if there is no error to count.
    """
    counted = errors[~np.isnan(errors)]
    return float(np.mean([np.mean(counted < k) for k in range(1, limit + 1)])) if counted.size else float("nan")


def absolute_trajectory_error(positions: Array, true_positions: Array, rigid: bool = False) -> float:
    """Return the ATE: root mean square distance in metres of camera positions (V, 3) after the similarity, or the rigid
    transform, that fits them best.

    Sturm et al. 2012 (TUM RGB-D) with the least-squares rotation, scale and translation of Umeyama 1991. Two cameras
    always fit a similarity, so it says something from three on.
    """
    centred, true_centred = positions - positions.mean(axis=0), true_positions - true_positions.mean(axis=0)
    u, singular, vt = np.linalg.svd(true_centred.T @ centred)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    spread = float(np.sum(centred * centred))
    scale = 1.0 if rigid else float(np.sum(singular * signs)) / spread if spread > 0 else 0.0
    aligned = scale * centred @ (u * signs @ vt).T
    return float(np.sqrt(np.mean(np.sum((aligned - true_centred) ** 2, axis=1))))


def mask_iou(mask: Array, true_mask: Array) -> float:
    """Return the intersection over union of the non-ambiguous pixels (V, H, W) bool of all views; 1 where both are
    empty."""
    union = np.count_nonzero(mask | true_mask)
    return np.count_nonzero(mask & true_mask) / union if union else 1.0


def _relative(error: Array, true: Array, valid: Array) -> Array:
    return np.divide(error, true, out=np.zeros(error.shape, np.float64), where=valid & (true > 0))


def _mean_over_views(values: Array, valid: Array) -> float:
    return float(np.mean([np.mean(v, where=mask) for v, mask in zip(values, valid, strict=True) if mask.any()]))


def angle_of_chord(chord: Array) -> Array:
    """Return degrees between unit vectors ``chord`` apart; of rotations, the Frobenius distance over sqrt(2) is the
    chord."""
    return np.asarray(np.degrees(2 * np.arcsin(np.clip(chord / 2, 0, 1))))
