"""What changes while the frames of a sequence come."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .breaks import Break
from .frames import Frame, KnownFrame
from .placement import Placement
from .similarity import Similarity
from .trajectory import Trajectory

Array = NDArray[Any]


@dataclass
class MapState:
    """All that a mapper changes while frames come.

    Attributes:
        scales: whether windows are scaled to the map. any_scales: whether any so far was.
        waiting: frames of the next windows, the shared ones first.
        known: what the map has of these, by number.
        trajectory: the poses of all frames that are done.
        submap: the one that is being made. joined: those that it has a place to, with itself.
        reason: why the one before it ended.
        breaks: where submaps began.
        last: the pose of the last frame.
        in_world: whether the submap is in the world of given poses.
        placed: submaps that are.
        posed: until it is, poses in the map and as they were given.
        metric: whether the lengths of the submap are metres. all_metric: whether those of all submaps are.
        turning: whether the camera turned in place through the last window.
        finished: whether no frames come any more.
        written: per window its placement when its frames were handed out.
        fits: of the windows to what they share with the map.
    """

    scales: bool
    any_scales: bool = False
    waiting: list[Frame] = field(default_factory=list)
    known: dict[int, KnownFrame] = field(default_factory=dict)
    trajectory: Trajectory = field(default_factory=Trajectory)
    submap: int = 0
    joined: list[int] = field(default_factory=lambda: [0])
    reason: str = ""
    breaks: list[Break] = field(default_factory=list)
    last: NDArray[np.float64] = field(default_factory=lambda: np.eye(4))
    in_world: bool = False
    placed: list[int] = field(default_factory=list)
    posed: list[tuple[Array, Array]] = field(default_factory=list)
    metric: bool = True
    all_metric: bool = True
    turning: bool = False
    finished: bool = False
    written: list[Similarity] = field(default_factory=list)
    fits: list[Placement] = field(default_factory=list)

    def copy(self) -> MapState:
        """Return a copy that changes of this one leave as it is."""
        lists: dict[str, Any] = {
            name: list(getattr(self, name)) for name in ("waiting", "breaks", "placed", "posed", "written", "fits")
        }
        return replace(self, **lists, trajectory=self.trajectory.copy())
