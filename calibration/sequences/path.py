"""An estimated path beside the true one: the errors that ``eval --sequence`` and ``map`` say, by one function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapengine.runtime.mapping.similarity import Similarity, fit_points

from ..evaluation.metrics import absolute_trajectory_error
from ..evaluation.scoring import Values
from . import trajectory

Array = NDArray[Any]

_FEWEST = 3
"""Frames that a path has at least: a similarity fits any two cameras."""


@dataclass(frozen=True, eq=False)
class ComparedPath:
    """The frames of a map that can be compared with the truth: those of its largest part.

    Attributes:
        poses, true_poses: (M, 4, 4) float64 of these frames, camera-to-world, each in a world of its own.
        own: (N,) bool, which frames of the sequence they are.
        submaps: how many parts the map has.
        length: of the whole true path.
    """

    poses: Array
    true_poses: Array
    own: NDArray[np.bool_]
    submaps: int
    length: float

    @classmethod
    def of(cls, poses: Array, submaps: Array, true_poses: Array) -> ComparedPath:
        """Choose the frames.

        Args:
            poses: (N, 4, 4) of all frames, not finite where there is none.
            submaps: (N,) the part of the map that each is in, negative for none; poses of different parts cannot be
                compared.
            true_poses: (N, 4, 4), not finite where the truth is not known.
        """
        known = np.isfinite(true_poses).all(axis=(1, 2))
        located = np.isfinite(poses).all(axis=(1, 2)) & (submaps >= 0) & known
        numbers, counts = np.unique(submaps[located], return_counts=True)
        own = located & (submaps == numbers[np.argmax(counts)]) if len(numbers) else located
        length = float(trajectory.path_length(true_poses[known])[-1]) if known.any() else 0.0
        return cls(poses[own], true_poses[own], own, len(numbers), length)

    @property
    def is_long_enough(self) -> bool:
        """Whether there are frames enough for errors to mean something."""
        return len(self.poses) >= _FEWEST

    def alignment(self, scale: bool = False) -> Similarity:
        """Return the transform from the map to the truth that fits the positions best: that of the ATE."""
        return fit_points(self.poses[:, :3, 3], self.true_poses[:, :3, 3], scale=scale)

    def errors(self, window: int) -> Values:
        """Return the metrics of :data:`.report.SEQUENCE_METRICS` that are of the path; None where one does not exist.

        Args:
            window: frames that the error per window is over.
        """
        names = ("ate", "ate_similarity", "rpe_metre", "rpe_metre_degrees", "rpe_window", "rpe_window_degrees")
        if not self.is_long_enough:
            return dict.fromkeys((*names, "end_error", "drift_percent", "scale_drift_percent"))
        poses, true_poses = self.poses, self.true_poses
        positions, true_positions = poses[:, :3, 3], true_poses[:, :3, 3]
        metre = trajectory.error_per_metre(poses, true_poses)
        windows = trajectory.error_per_window(poses, true_poses, window)
        return {
            "ate": absolute_trajectory_error(positions, true_positions, rigid=True),
            "ate_similarity": absolute_trajectory_error(positions, true_positions),
            "rpe_metre": None if metre is None else metre.translation,
            "rpe_metre_degrees": None if metre is None else metre.degrees,
            "rpe_window": None if windows is None else windows.translation,
            "rpe_window_degrees": None if windows is None else windows.degrees,
            "end_error": trajectory.end_error(poses, true_poses),
            "drift_percent": trajectory.drift_percent(poses, true_poses),
            "scale_drift_percent": trajectory.scale_drift_percent(poses, true_poses),
        }
