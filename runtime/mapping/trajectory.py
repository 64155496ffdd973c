"""The poses of all frames that are done: few bytes a frame, and in a form in which whole windows can be moved."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from .frames import NO_SUBMAP
from .similarity import Similarity

Float64 = NDArray[np.float64]

_NOWHERE = -1
"""Window of a frame that is in none."""


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
        self._keyframes: list[bool] = []

    def copy(self) -> Trajectory:
        """Return a copy that changes of this one leave as it is."""
        result = Trajectory()
        for name, values in vars(self).items():
            setattr(result, name, list(values))
        return result

    def __len__(self) -> int:
        """Frames."""
        return len(self._poses)

    def add_window(
        self, placement: Similarity, submap: int, poses: Sequence[Float64], keyframes: Sequence[bool]
    ) -> None:
        """Take in a window, and the frames that are done with it.

        Args:
            placement: from its frame into the map.
            submap: of the window.
            poses: (4, 4) in the frame of the window, in the order of the frames.
            keyframes: whether each of them is a keyframe.
        """
        self._windows += [len(self.placements)] * len(poses)
        self._poses += poses
        self._keyframes += keyframes
        self.placements.append(placement)
        self.submaps.append(submap)

    def add_blank(self) -> None:
        """Take in a frame that is in no window."""
        self._windows.append(_NOWHERE)
        self._poses.append(np.full((4, 4), np.nan))
        self._keyframes.append(False)

    def move(self, submaps: Collection[int], transform: Similarity) -> None:
        """Move submaps in the map."""
        for window, own in enumerate(self.submaps):
            if own in submaps:
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
    def windows(self) -> list[int | None]:
        """The window of each frame, None for none."""
        return [None if window == _NOWHERE else window for window in self._windows]

    @property
    def submap_of_frames(self) -> NDArray[np.intp]:
        """(N,), the submap of each frame, -1 for none."""
        return np.array([NO_SUBMAP if w == _NOWHERE else self.submaps[w] for w in self._windows], np.intp)

    @property
    def keyframes(self) -> NDArray[np.bool_]:
        """(N,), whether each frame is a keyframe."""
        return np.array(self._keyframes, np.bool_)
