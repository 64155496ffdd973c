"""The poses of all frames that are done: few bytes a frame, and in a form in which whole windows can be moved."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .similarity import Similarity

Float64 = NDArray[np.float64]


class Trajectory:
    """Per frame its pose in the frame of its window, and per window where that is in the map.

    Attributes:
        placements: per window the transform from its frame into the map.
        submaps: per window the number of its submap.
    """

    def __init__(self) -> None:
        """Begin without windows."""
        self.placements: list[Similarity] = []
        self.submaps: list[int] = []
        self._poses: list[Float64] = []
        self._windows: list[int] = []

    def __len__(self) -> int:
        """Frames."""
        return len(self._poses)

    def add_window(self, placement: Similarity, submap: int, poses: Sequence[Float64]) -> None:
        """Take in a window, and the frames that are done with it.

        Args:
            placement: from its frame into the map.
            submap: of the window.
            poses: (4, 4) in the frame of the window, in the order of the frames.
        """
        self._windows += [len(self.placements)] * len(poses)
        self._poses += poses
        self.placements.append(placement)
        self.submaps.append(submap)

    def move(self, submap: int, transform: Similarity) -> None:
        """Move a submap in the map."""
        for window, own in enumerate(self.submaps):
            if own == submap:
                self.placements[window] = transform @ self.placements[window]

    @property
    def poses(self) -> Float64:
        """(N, 4, 4), camera-to-world in the map, of all frames."""
        result = np.empty((len(self), 4, 4))
        windows = np.asarray(self._windows, np.intp)
        if len(self):
            result[:] = self._poses
        for window, placement in enumerate(self.placements):
            result[windows == window] = placement.move_pose(result[windows == window])
        return result

    @property
    def submap_of_frames(self) -> NDArray[np.intp]:
        """(N,), the submap of each frame."""
        return np.asarray(self.submaps, np.intp)[np.asarray(self._windows, np.intp)]
