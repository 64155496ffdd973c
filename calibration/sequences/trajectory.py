"""Errors of the path of a camera: pure functions of estimated and true poses (N, 4, 4), camera-to-world, metres.

Both are float64, each in a frame of its own; that of the estimate is brought to the other only where it is said. The
error over the whole path is :func:`..evaluation.metrics.absolute_trajectory_error`; :mod:`.path` chooses the frames.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..evaluation.metrics import angle_of_chord

Array = NDArray[Any]

SECTIONS = 10
"""Parts of equal length that a path is cut into, to see how its scale changes."""


class RelativeError(NamedTuple):
    """Error of the motion between two frames, over many pairs: root mean squares."""

    translation: float
    degrees: float


def path_length(true_poses: Array) -> NDArray[np.float64]:
    """Return the length (N,) of the true path up to each frame."""
    steps = np.linalg.norm(np.diff(true_poses[:, :3, 3], axis=0), axis=1)
    return np.concatenate([[0.0], np.cumsum(steps)])


def motion_errors(poses: Array, true_poses: Array, first: Array, second: Array) -> tuple[Array, Array]:
    """Return how far the motion from frame ``first`` to ``second`` is from the true one, in metres and degrees, (K,)
    each.

    That is the length and the angle of (Q_i^-1 Q_j)^-1 (P_i^-1 P_j), of true poses Q and estimated P (Sturm et al.
    2012): no alignment, so a wrong scale is an error.
    """
    motion, true = (np.linalg.inv(p[first]) @ p[second] for p in (poses, true_poses))
    translation = np.linalg.norm(motion[:, :3, 3] - true[:, :3, 3], axis=1)
    chord = np.linalg.norm(motion[:, :3, :3] - true[:, :3, :3], axis=(1, 2)) / np.sqrt(2.0)
    return translation, angle_of_chord(chord)


def error_per_metre(poses: Array, true_poses: Array, metres: float = 1.0) -> RelativeError | None:
    """Return the RPE per metre: of every frame and the first one that lies ``metres`` of path behind it, the error of
    the motion over the length of the path between them. None if the path is shorter than that."""
    along = path_length(true_poses)
    second = np.searchsorted(along, along + metres * (1 - 1e-9))
    first = np.flatnonzero(second < len(along))
    if first.size == 0:
        return None
    second = second[first]
    length = along[second] - along[first]
    return _root_mean_square(*(error / length for error in motion_errors(poses, true_poses, first, second)))


def error_per_window(poses: Array, true_poses: Array, window: int) -> RelativeError | None:
    """Return the RPE per window: of every frame and the last one of ``window`` frames that begin with it. None if
    there are fewer frames."""
    first = np.arange(len(poses) - window + 1)
    if window < 2 or first.size == 0:
        return None
    return _root_mean_square(*motion_errors(poses, true_poses, first, first + window - 1))


def end_error(poses: Array, true_poses: Array) -> float:
    """Return how far the last camera is from where it should be, seen from the first one, in metres."""
    ends = np.array([0]), np.array([len(poses) - 1])
    return float(motion_errors(poses, true_poses, *ends)[0][0])


def drift_percent(poses: Array, true_poses: Array) -> float | None:
    """Return :func:`end_error` in percent of the length of the true path; None where nothing moved."""
    length = float(path_length(true_poses)[-1])
    return 100 * end_error(poses, true_poses) / length if length > 0 else None


def section_scales(poses: Array, true_poses: Array, sections: int = SECTIONS) -> NDArray[np.float64]:
    """Return true over estimated extent of each of ``sections`` parts of equal true length, those without extent left
    out.

    The extent is the root mean square distance of the cameras from their mean, so that rounding and noise of single
    steps count little.
    """
    along = path_length(true_poses)
    part = np.minimum((along / max(along[-1], np.finfo(np.float64).tiny) * sections).astype(int), sections - 1)
    scales = []
    for number in range(sections):
        own = part == number
        if own.any():
            found, true = (_extent(p[own, :3, 3]) for p in (poses, true_poses))
            if found > 0 and true > 0:
                scales.append(true / found)
    return np.array(scales)


def scale_drift_percent(poses: Array, true_poses: Array, sections: int = SECTIONS) -> float | None:
    """Return how much the scale changes along the path: the standard deviation of the logarithms of
    :func:`section_scales`, in percent. A scale that is wrong everywhere alike is no drift; None with less than two
    sections."""
    scales = section_scales(poses, true_poses, sections)
    return None if len(scales) < 2 else 100 * float(np.expm1(np.std(np.log(scales))))


def _extent(positions: Array) -> float:
    return float(np.sqrt(np.mean(np.sum((positions - positions.mean(axis=0)) ** 2, axis=1))))


def _root_mean_square(translation: Array, degrees: Array) -> RelativeError:
    return RelativeError(*(float(np.sqrt(np.mean(error * error))) for error in (translation, degrees)))
