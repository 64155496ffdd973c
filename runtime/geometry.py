"""Camera geometry: quaternions, relative poses, pinhole rays and the normalisations of the geometric inputs.

Conventions (those of MapAnything inference and OpenCV): quaternions are ``x, y, z, w``; poses are camera-to-world; the
camera looks along +z with x to the right and y down; pixel centres lie at integer coordinates, the first one at 0.

Every function works over leading axes, keeps the floating dtype of its input (float32 stays float32) and returns new
arrays. None of them validates its input: that is the job of ``views.py``, which can name the view and the key.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

EPSILON = 1e-8
"""Guards every normalisation below; the value is part of what the network was trained on."""

FIT_MAX_PIXELS = 1_000_000
"""Above this many pixels ``intrinsics_from_rays`` reads five rays instead of fitting a grid of them."""

FIT_SAMPLES_PER_AXIS = 50


def quaternion_to_matrix(quaternion: Array) -> Array:
    """Rotation matrices (..., 3, 3) of quaternions (..., 4) in ``xyzw`` order, normalised first.

    A zero quaternion gives the identity.
    """
    norm = np.sqrt(np.sum(quaternion * quaternion, axis=-1, keepdims=True))
    x, y, z, w = np.moveaxis(quaternion / np.maximum(norm, np.finfo(quaternion.dtype).tiny), -1, 0)
    matrix = np.empty((*quaternion.shape[:-1], 3, 3), quaternion.dtype)
    matrix[..., 0, 0] = 1 - 2 * (y * y + z * z)
    matrix[..., 0, 1] = 2 * (x * y - w * z)
    matrix[..., 0, 2] = 2 * (x * z + w * y)
    matrix[..., 1, 0] = 2 * (x * y + w * z)
    matrix[..., 1, 1] = 1 - 2 * (x * x + z * z)
    matrix[..., 1, 2] = 2 * (y * z - w * x)
    matrix[..., 2, 0] = 2 * (x * z - w * y)
    matrix[..., 2, 1] = 2 * (y * z + w * x)
    matrix[..., 2, 2] = 1 - 2 * (x * x + y * y)
    return matrix


def matrix_to_quaternion(matrix: Array) -> Array:
    """Quaternions (..., 4) in ``xyzw`` order with w >= 0 of rotation matrices (..., 3, 3).

    Of the four ways to solve for a quaternion the one with the largest pivot is taken (MapAnything inference).
    """
    m00, m01, m02 = matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 0, 2]
    m10, m11, m12 = matrix[..., 1, 0], matrix[..., 1, 1], matrix[..., 1, 2]
    m20, m21, m22 = matrix[..., 2, 0], matrix[..., 2, 1], matrix[..., 2, 2]
    pivot_squared = np.stack(
        [1 + m00 + m11 + m22, 1 + m00 - m11 - m22, 1 - m00 + m11 - m22, 1 - m00 - m11 + m22], axis=-1
    )
    pivot = np.sqrt(np.maximum(pivot_squared, 0))  # twice |w|, |x|, |y|, |z|
    # Row k is the quaternion (w, x, y, z) times twice pivot k.
    square = pivot * pivot
    candidates = np.stack(
        [
            np.stack([square[..., 0], m21 - m12, m02 - m20, m10 - m01], axis=-1),
            np.stack([m21 - m12, square[..., 1], m10 + m01, m02 + m20], axis=-1),
            np.stack([m02 - m20, m10 + m01, square[..., 2], m12 + m21], axis=-1),
            np.stack([m10 - m01, m20 + m02, m21 + m12, square[..., 3]], axis=-1),
        ],
        axis=-2,
    )
    best = np.argmax(pivot, axis=-1)[..., None]  # the first one on ties
    wxyz = np.take_along_axis(candidates, best[..., None], axis=-2)[..., 0, :]
    wxyz = wxyz / (2 * np.maximum(np.take_along_axis(pivot, best, axis=-1), np.asarray(0.1, matrix.dtype)))
    wxyz = np.where(wxyz[..., :1] < 0, -wxyz, wxyz)
    return np.concatenate([wxyz[..., 1:], wxyz[..., :1]], axis=-1)


def quaternion_inverse(quaternion: Array) -> Array:
    """Inverse conj(q) / |q|^2 of quaternions (..., 4) in ``xyzw`` order."""
    conjugate = quaternion * np.asarray([-1, -1, -1, 1], quaternion.dtype)
    return conjugate / np.sum(quaternion * quaternion, axis=-1, keepdims=True)


def quaternion_multiply(left: Array, right: Array) -> Array:
    """Hamilton product of quaternions (..., 4) in ``xyzw`` order, neither renormalised nor sign-fixed."""
    x1, y1, z1, w1 = np.moveaxis(left, -1, 0)
    x2, y2, z2, w2 = np.moveaxis(right, -1, 0)
    return np.stack(
        [
            w1 * x2 + x1 * w2 + y1 * z2 - z1 * y2,
            w1 * y2 - x1 * z2 + y1 * w2 + z1 * x2,
            w1 * z2 + x1 * y2 - y1 * x2 + z1 * w2,
            w1 * w2 - x1 * x2 - y1 * y2 - z1 * z2,
        ],
        axis=-1,
    )


def relative_pose(
    reference_quaternion: Array, reference_translation: Array, quaternion: Array, translation: Array
) -> tuple[Array, Array]:
    """Poses seen from a reference camera: q0^-1 q and R(q0^-1) (t - t0).

    Quaternions (..., 4) ``xyzw``, translations (..., 3). The difference is taken before the rotation: the same value,
    but cameras far from the world's origin keep their digits, and equal positions give exactly zero.
    """
    inverse = quaternion_inverse(reference_quaternion)
    offset = (translation - reference_translation)[..., None]
    return quaternion_multiply(inverse, quaternion), (quaternion_to_matrix(inverse) @ offset)[..., 0]


def pose_matrix(quaternion: Array, translation: Array) -> Array:
    """4x4 pose matrices (..., 4, 4) of quaternions (..., 4) ``xyzw`` (normalised first) and translations (..., 3)."""
    matrix = np.zeros((*quaternion.shape[:-1], 4, 4), np.result_type(quaternion, translation))
    matrix[..., :3, :3] = quaternion_to_matrix(quaternion)
    matrix[..., :3, 3] = translation
    matrix[..., 3, 3] = 1
    return matrix


def split_pose_matrix(matrix: Array) -> tuple[Array, Array]:
    """Quaternions (..., 4) ``xyzw`` and translations (..., 3) of pose matrices (..., 4, 4)."""
    return matrix_to_quaternion(matrix[..., :3, :3]), matrix[..., :3, 3].copy()


def closest_rotation(matrix: Array) -> Array:
    """Rotation (3, 3) R nearest to a matrix (3, 3), which has the largest trace of R^T matrix."""
    left, _, right = np.linalg.svd(matrix)
    left[:, 2] *= np.sign(np.linalg.det(left @ right))
    return left @ right


def normalize_translations(translations: Array) -> tuple[Array, Array]:
    """Translations (V, B, 3) over their mean length, and that length (B,).

    The mean runs over the views that moved at all (length > 0) and is at least 1e-8 (MapAnything inference).
    """
    length = np.sqrt(np.sum(translations * translations, axis=-1))  # (V, B)
    count = np.sum(length > 0, axis=0).astype(translations.dtype)
    factor = np.maximum(np.sum(length, axis=0) / (count + translations.dtype.type(EPSILON)), EPSILON)
    factor = factor.astype(translations.dtype)
    return translations / factor[:, None], factor


def normalize_depth(depth: Array) -> tuple[Array, Array]:
    """Depth (B, H, W, 1) over its mean positive value, and that value (B,), at least 1e-8.

    Missing depth (0) stays 0 and does not count.
    """
    axes = tuple(range(1, depth.ndim))
    positive = depth > 0
    count = np.sum(positive, axis=axes).astype(depth.dtype)
    total = np.sum(depth, axis=axes, where=positive)
    factor = np.maximum(total / (count + depth.dtype.type(EPSILON)), EPSILON).astype(depth.dtype)
    return depth / factor.reshape(-1, *([1] * len(axes))), factor


def log_normalize(depth: Array) -> Array:
    """Sign-preserving log(1 + |d|) of single-channel depth (..., 1)."""
    magnitude = np.abs(depth)
    return depth / np.maximum(magnitude, depth.dtype.type(EPSILON)) * np.log1p(magnitude)


def rays_from_intrinsics(intrinsics: Array, height: int, width: int) -> Array:
    """Unit ray directions (B, H, W, 3) in camera axes of pinhole intrinsics (B, 3, 3) in pixels. Skew is ignored."""
    dtype = intrinsics.dtype
    x = (np.arange(width, dtype=dtype) - intrinsics[:, 0, 2, None]) / intrinsics[:, 0, 0, None]  # (B, W)
    y = (np.arange(height, dtype=dtype) - intrinsics[:, 1, 2, None]) / intrinsics[:, 1, 1, None]  # (B, H)
    inverse_norm = 1 / np.sqrt((x * x)[:, None, :] + (y * y + 1)[:, :, None])  # (B, H, W)
    rays = np.empty((*inverse_norm.shape, 3), dtype)
    np.multiply(inverse_norm, x[:, None, :], out=rays[..., 0])
    np.multiply(inverse_norm, y[:, :, None], out=rays[..., 1])
    rays[..., 2] = inverse_norm
    return rays


def normalize_rays(rays: Array) -> Array:
    """Ray directions (..., 3) at unit length: r / (|r| + 1e-8)."""
    norm = vector_norm(rays)
    norm += rays.dtype.type(EPSILON)
    return rays / norm[..., None]


def vector_norm(vectors: Array) -> Array:
    """Length (...) of vectors (..., 3), plane by plane: several times faster than a reduction over an axis of three."""
    x, y, z = vectors[..., 0], vectors[..., 1], vectors[..., 2]
    total = x * x
    total += y * y
    total += z * z
    return np.sqrt(total, out=total)


def all_finite(values: Array) -> bool:
    """Whether no value of a C-contiguous array is infinite or NaN: a sum over it says so without a copy of it."""
    flat = values.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        return math.isfinite(float(np.dot(flat, flat))) or bool(np.isfinite(flat).all())


def zero_outside(values: Array, mask: Array) -> None:
    """Set values to 0 in place where ``mask`` (broadcast) is False: a product that also clears infinity and NaN."""
    bits = values.view(f"i{values.itemsize}")
    bits *= mask.astype(bits.dtype)  # faster than to leave the conversion to the product


def filled_outside(values: Array, mask: Array, fill: float) -> Array:
    """Return values where ``mask`` is True and ``fill`` elsewhere, as ``np.where`` does in twice the time."""
    result = values.copy()
    zero_outside(result, mask)
    bits = result.view(f"i{values.itemsize}")
    bits |= (~mask).astype(bits.dtype) * np.asarray(fill, values.dtype).view(bits.dtype)
    return result


def depth_along_ray(depth_z: Array, rays: Array) -> Array:
    """Distance (B, H, W, 1) along each ray (B, H, W, 3) to the point whose z is depth_z (B, H, W) or (B, H, W, 1).

    |depth_z * r / r_z|; a missing depth (0) stays 0 for every ray.
    """
    if depth_z.ndim == rays.ndim:
        depth_z = depth_z[..., 0]
    present = depth_z != 0
    distance = np.zeros(np.broadcast_shapes(depth_z.shape, rays.shape[:-1]), np.result_type(depth_z, rays))
    with np.errstate(divide="ignore", over="ignore"):
        np.divide(depth_z * vector_norm(rays), rays[..., 2], out=distance, where=present)
    return np.abs(distance, out=distance)[..., None]


def intrinsics_from_rays(rays: Array) -> Array:
    """Pinhole intrinsics (B, 3, 3) in pixels that explain ray directions (B, H, W, 3) best.

    Up to a million pixels: least squares over a grid of about 50 x 50 rays. Above: the mean slope between three rays
    of the centre row, and of the centre column. Both as MapAnything inference, but summed in float64, because the sums
    lose several digits in float32 when the focal length is long. Rays that lie in the image plane (z = 0) are left out
    of the fit; rays that are all equal carry no focal length and give 0.
    """
    _, height, width, _ = rays.shape
    if height * width <= FIT_MAX_PIXELS:
        down, across = max(1, height // FIT_SAMPLES_PER_AXIS), max(1, width // FIT_SAMPLES_PER_AXIS)
        rows, columns = np.arange(0, height, down), np.arange(0, width, across)
        sample = rays[:, ::down, ::across].astype(np.float64)  # (B, rows, columns, 3)
        usable = sample[..., 2] != 0
        z = np.where(usable, sample[..., 2], 1)
        slopes = np.stack([sample[..., 0] / z, sample[..., 1] / z])
        (fx, fy), (cx, cy) = _fit_lines(slopes, np.stack(np.meshgrid(columns, rows))[:, None], usable)
    else:
        fx, cx = _three_point_line(rays[:, height // 2, :, 0], rays[:, height // 2, :, 2])
        fy, cy = _three_point_line(rays[:, :, width // 2, 1], rays[:, :, width // 2, 2])
    intrinsics = np.zeros((len(rays), 3, 3), rays.dtype)
    intrinsics[:, 0, 0], intrinsics[:, 0, 2] = fx, cx
    intrinsics[:, 1, 1], intrinsics[:, 1, 2] = fy, cy
    intrinsics[:, 2, 2] = 1
    return intrinsics


def _fit_lines(slopes: Array, pixels: Array, usable: Array) -> tuple[Array, Array]:
    """Least squares of pixel = centre + focal * slope over the last two axes: focal (2, B) and centre (2, B)."""
    weight = usable.astype(np.float64)
    count = np.maximum(weight.sum(axis=(-2, -1)), 1)
    mean_slope = (slopes * weight).sum(axis=(-2, -1)) / count
    mean_pixel = (pixels * weight).sum(axis=(-2, -1)) / count
    centred = (slopes - mean_slope[..., None, None]) * weight
    variance = (centred * centred).sum(axis=(-2, -1))
    covariance = (centred * pixels).sum(axis=(-2, -1))
    focal = np.divide(covariance, variance, out=np.zeros_like(covariance), where=variance > 0)
    return focal, mean_pixel - focal * mean_slope


def _three_point_line(numerator: Array, z: Array) -> tuple[Array, Array]:
    """Mean slope of pixel over numerator / z between the quarter, centre and three-quarter points of lines (B, N)."""
    size = numerator.shape[1]
    index = np.asarray([size // 4, size // 2, 3 * size // 4])
    z_at = z[:, index].astype(np.float64)
    slope = numerator[:, index].astype(np.float64) / np.where(z_at != 0, z_at, np.finfo(np.float32).tiny)
    step = np.diff(slope, axis=1)
    focal = np.divide(np.diff(index)[None], step, out=np.zeros_like(step), where=step != 0).mean(axis=1)
    return focal, index[1] - focal * slope[:, 1]
