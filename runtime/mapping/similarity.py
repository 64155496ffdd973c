"""Similarity transforms: composed, written as tangents for optimisers, and fitted to points that correspond.

A tangent is (rotation, translation, log of the scale), 7 numbers, or the first 6 of them where the scale is 1: the
exponential of a tangent is what the motion with this constant velocity reaches after one unit of time, in SE(3) or
Sim(3). Everything is float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..geometry import closest_rotation, matrix_to_quaternion, quaternion_to_matrix

Array = NDArray[Any]
Float64 = NDArray[np.float64]

_NODES, _NODE_WEIGHTS = (values / 2 for values in np.polynomial.legendre.leggauss(20))
_NODES = _NODES + 0.5
"""Gauss-Legendre quadrature over 0 .. 1: exact to rounding for what :func:`_velocity_matrices` integrates."""
_TIE = 1e-12
"""Of the covariance: pulls what the points leave open towards no rotation, and the rest by as little as this."""
_ITERATIONS = 60
_CONVERGED = 1e-10
_REACH = 3.0
"""Medians of the residual at which a point has a quarter of its weight."""


@dataclass(frozen=True, eq=False)
class Similarity:
    """Points x become ``scale * rotation @ x + translation``.

    Attributes:
        rotation: (3, 3).
        translation: (3,).
        scale: above 0; 1 for a rigid transform.
    """

    rotation: Float64
    translation: Float64
    scale: float = 1.0

    @classmethod
    def identity(cls) -> Similarity:
        """Return what leaves everything where it is."""
        return cls(np.eye(3), np.zeros(3))

    @classmethod
    def of_pose(cls, pose: Array) -> Similarity:
        """Return the rigid transform of a camera-to-world pose (4, 4): from the camera into the world."""
        return cls(pose[:3, :3].astype(np.float64), pose[:3, 3].astype(np.float64))

    @classmethod
    def of_matrix(cls, matrix: Array) -> Similarity:
        """Return the similarity of a matrix (4, 4) that is one up to rounding."""
        linear = matrix[:3, :3].astype(np.float64)
        scale = float(np.cbrt(np.linalg.det(linear)))
        return cls(closest_rotation(linear), matrix[:3, 3].astype(np.float64), scale)

    @classmethod
    def exp(cls, tangent: Array) -> Similarity:
        """Return the similarity of a tangent (6,) or (7,)."""
        matrix = exp_matrices(np.asarray(tangent, np.float64))
        scale = math.exp(tangent[6]) if len(tangent) == 7 else 1.0
        return cls(matrix[:3, :3] / scale, matrix[:3, 3], scale)

    def log(self) -> Float64:
        """Return the tangent (7,); its rotation is at most pi."""
        return log_matrices(self.matrix())

    def matrix(self) -> Float64:
        """Return it as (4, 4), for homogeneous points."""
        result = np.eye(4)
        result[:3, :3], result[:3, 3] = self.scale * self.rotation, self.translation
        return result

    def __matmul__(self, other: Similarity) -> Similarity:
        """Return the transform that applies ``other`` first."""
        return Similarity(self.rotation @ other.rotation, self.apply(other.translation), self.scale * other.scale)

    def inverse(self) -> Similarity:
        """Return the transform back."""
        rotation = self.rotation.T
        return Similarity(rotation, -(rotation @ self.translation) / self.scale, 1 / self.scale)

    def apply(self, points: Array) -> Float64:
        """Return points (..., 3) moved."""
        moved: Float64 = points @ (self.scale * self.rotation.T) + self.translation
        return moved

    def move_pose(self, pose: Array) -> Float64:
        """Return camera-to-world poses (..., 4, 4) moved: turned, and with centres moved. A camera has no scale, so
        depth that belongs to it has to be multiplied with ``scale`` by the caller."""
        moved = np.zeros(pose.shape, np.float64)
        moved[..., :3, :3] = self.rotation @ pose[..., :3, :3]
        moved[..., :3, 3] = self.apply(pose[..., :3, 3])
        moved[..., 3, 3] = 1
        return moved

    def __str__(self) -> str:
        turn = math.degrees(float(np.linalg.norm(self.log()[:3])))
        return f"{np.linalg.norm(self.translation):.3g} away, {turn:.3g} degrees, scaled by {self.scale:.4g}"


@dataclass(frozen=True, eq=False)
class RobustFit:
    """What :func:`fit_robust` found.

    Attributes:
        similarity: from source to target.
        weights: (N,), those that were given times how far each point was believed, from 0 to 1.
        residual: weighted median of the distances afterwards, in the unit of the target.
        inliers: share of the weight that was given to points which were believed more than half.
    """

    similarity: Similarity
    weights: Float64
    residual: float
    inliers: float


def exp_matrices(tangents: Array) -> Float64:
    """Return the similarities (..., 4, 4) of tangents (..., 6) or (..., 7)."""
    turn, velocity = tangents[..., :3], tangents[..., 3:6]
    growth = tangents[..., 6] if tangents.shape[-1] == 7 else np.zeros(tangents.shape[:-1])
    angle = np.linalg.norm(turn, axis=-1)
    half = angle / 2
    quaternion = np.concatenate([turn * (np.sinc(half / np.pi) / 2)[..., None], np.cos(half)[..., None]], axis=-1)
    result = np.zeros((*tangents.shape[:-1], 4, 4))
    result[..., :3, :3] = np.exp(growth)[..., None, None] * quaternion_to_matrix(quaternion)
    result[..., :3, 3] = (_velocity_matrices(turn, growth) @ velocity[..., None])[..., 0]
    result[..., 3, 3] = 1
    return result


def log_matrices(matrices: Array) -> Float64:
    """Return the tangents (..., 7) of similarities (..., 4, 4); their rotations are at most pi."""
    linear = matrices[..., :3, :3]
    scale = np.cbrt(np.linalg.det(linear))
    quaternion = matrix_to_quaternion(linear / scale[..., None, None])  # with w >= 0
    sine = np.linalg.norm(quaternion[..., :3], axis=-1)
    angle = 2 * np.arctan2(sine, quaternion[..., 3])
    turn = quaternion[..., :3] * np.divide(angle, sine, out=np.full_like(sine, 2.0), where=sine > 0)[..., None]
    growth = np.log(scale)
    velocity = np.linalg.solve(_velocity_matrices(turn, growth), matrices[..., :3, 3, None])[..., 0]
    return np.concatenate([turn, velocity, growth[..., None]], axis=-1)


def inverse_matrices(matrices: Array) -> Float64:
    """Return the inverses of similarities (..., 4, 4)."""
    linear = matrices[..., :3, :3]
    squared_scale = np.sum(linear * linear, axis=(-2, -1)) / 3
    result = np.zeros(matrices.shape)
    result[..., :3, :3] = linear.swapaxes(-2, -1) / squared_scale[..., None, None]
    result[..., :3, 3] = -(result[..., :3, :3] @ matrices[..., :3, 3, None])[..., 0]
    result[..., 3, 3] = 1
    return result


def _velocity_matrices(turn: Float64, growth: Float64) -> Float64:
    """Return what takes velocities to translations, (..., 3, 3): the integral over t = 0 .. 1 of exp(growth t) times
    the rotation by ``turn`` t.

    Its closed form divides by the angle and by the growth, and needs series where either is small; a quadrature of
    smooth functions needs neither.
    """
    angle = np.linalg.norm(turn, axis=-1)[..., None] * (_NODES / np.pi)
    weights = _NODE_WEIGHTS * np.exp(growth[..., None] * _NODES)
    constant = weights.sum(axis=-1)
    linear = (weights * _NODES * np.sinc(angle)).sum(axis=-1)
    square = (weights * (_NODES * np.sinc(angle / 2)) ** 2).sum(axis=-1) / 2
    cross = cross_matrices(turn)
    identity = np.eye(3) * constant[..., None, None]
    return np.asarray(identity + linear[..., None, None] * cross + square[..., None, None] * (cross @ cross))


def cross_matrices(vectors: Array) -> Float64:
    """Return (..., 3, 3) that take x to the cross product of vectors (..., 3) and x."""
    result = np.zeros((*vectors.shape[:-1], 3, 3))
    for row, column, axis in ((2, 1, 0), (0, 2, 1), (1, 0, 2)):
        result[..., row, column] = vectors[..., axis]
        result[..., column, row] = -vectors[..., axis]
    return result


def fit_points(source: Array, target: Array, weights: Array | None = None, scale: bool = False) -> Similarity:
    """Return the transform that takes source points to target points best, in weighted least squares.

    In closed form (Umeyama 1991). Where the points leave a rotation open (one point, points on a line) it is the
    smallest one that fits. Where they have no extent, the scale is 1.

    Args:
        source, target: (N, 3), N at least 1, finite.
        weights: (N,), not negative, by default equal.
        scale: whether lengths may change; else the transform is rigid.

    Raises:
        InputError: no point has a weight.
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    share = np.ones(len(source)) if weights is None else np.asarray(weights, np.float64)
    total = float(share.sum())
    if not total > 0:
        raise InputError("no point that corresponds has a weight; give at least one")
    share = (share / total)[:, None]
    centre, goal = (share * source).sum(axis=0), (share * target).sum(axis=0)
    offsets, goals = source - centre, target - goal
    covariance = goals.T @ (share * offsets)
    spread, goal_spread = float(np.sum(share * offsets * offsets)), float(np.sum(share * goals * goals))
    rotation = closest_rotation(covariance + _TIE * math.sqrt(spread * goal_spread) * np.eye(3))
    factor = 1.0
    if scale and spread > 0:
        factor = float(np.sum(rotation * covariance)) / spread
        factor = factor if factor > 0 else 1.0
    return Similarity(rotation, goal - factor * (rotation @ centre), factor)


def fit_robust(
    source: Array, target: Array, weights: Array | None = None, scale: bool = False, floor: float = 0.0
) -> RobustFit:
    """Return the transform that takes most source points to their target points.

    :func:`fit_points` is repeated, and each point counts by how near it came: (1 + (distance / width)^2)^-2, the
    weights of Geman and McClure, whose width falls with the weighted median of the distances. Points that are wrong
    have no influence, as long as the others have more than half of the weight. Without chance: the same points give
    the same transform.

    Args:
        source, target, weights, scale: as in :func:`fit_points`.
        floor: the width is not below it, in the unit of the target: how far a right point may be off.

    Raises:
        InputError: no point has a weight.
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    given = np.ones(len(source)) if weights is None else np.asarray(weights, np.float64)
    fit = fit_points(source, target, given, scale)
    smallest = max(floor, 1e-12 * float(np.abs(target).max()), np.finfo(np.float64).tiny)
    belief, width = np.ones(len(source)), math.inf
    for _ in range(_ITERATIONS):
        distance = np.linalg.norm(fit.apply(source) - target, axis=1)
        before, width = width, max(_REACH * weighted_median(distance, given), smallest)
        belief = (1 + (distance / width) ** 2) ** -2
        fit = fit_points(source, target, given * belief, scale)
        if abs(before - width) <= _CONVERGED * width:
            break
    distance = np.linalg.norm(fit.apply(source) - target, axis=1)
    inliers = float(given[belief > 0.5].sum() / given.sum())
    return RobustFit(fit, given * belief, weighted_median(distance, given), inliers)


def weighted_median(values: Array, weights: Array) -> float:
    """Return the smallest of values (N,) up to which half of the weight (N,) lies."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    return float(values[order[np.searchsorted(reached, reached[-1] / 2)]])
