"""What changes while the frames of a sequence come: the frames that wait, submaps, and where their windows are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .breaks import LEAST_AGREEING, Break, turns_in_place
from .frames import Frame, KnownFrame, pose_of
from .placement import Placement, place_by_points, place_by_poses
from .similarity import Similarity
from .trajectory import Trajectory

Array = NDArray[Any]
Views = Sequence[Mapping[str, Array]]


@dataclass
class MapState:
    """All that a mapper changes while frames come.

    Attributes:
        may_scale: whether windows are scaled to the map though all lengths are metres.
        any_scales: whether any window so far was scaled.
        waiting: frames of the next windows, the shared ones first.
        known: what the map has of these, by number.
        trajectory: the poses of all frames that are done.
        submap: the one that is being made. joined: those that it has a place to, with itself.
        reason: why the one before it ended.
        breaks: where submaps began.
        last: the pose of the last keyframe.
        in_world: whether the submap is in the world of given poses.
        placed: submaps that are.
        posed: until it is, poses in the map and as they were given.
        metric: whether the lengths of the submap are metres. all_metric: whether those of all submaps are.
        turning: whether the camera turned in place through the last window.
        finished: whether no frames come any more.
        written: per window its placement when its frames were handed out.
        fits: of the windows to what they share with the map.
    """

    may_scale: bool
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

    @property
    def scales(self) -> bool:
        """Whether windows are scaled to the map: they have to be where its lengths are of another unit."""
        return self.may_scale or not self.metric

    def leave_submap(self, reason: str) -> None:
        """Forget what later windows could share; the frames that come then are in another submap."""
        if self.posed:  # their scale stays unknown, but where they are and look is not
            self._enter_world(place_by_poses(self.posed, scale=False)[0])
        self.waiting, self.known = [], {}
        self.in_world, self.metric, self.turning = False, True, False
        self.reason = reason

    def begin_submap(self, number: int, reason: str | None = None) -> None:
        """Begin a submap with a frame, the first one or one after a break; one with a ``reason`` is joined to the one
        before it all the same."""
        if not self.trajectory.placements:
            return
        self.submap += 1
        self.joined = [self.submap] if reason is None else [*self.joined, self.submap]
        self.breaks.append(Break(number, self.submap, reason or self.reason))

    def place_window(self, frames: Sequence[Frame], views: Views, first: int) -> Similarity:
        """Return where a window belongs; with the first given poses, the submap is moved into their world.

        Args:
            frames, views: of the window.
            first: number of the first frame that is done with it, at which a submap may begin.
        """
        given = _given(frames, views)
        # Metric poses have the lengths of the network; those of others are known to nobody but them.
        metric = _is_metric(frames)
        self.metric &= metric
        self.all_metric &= metric
        if given and self.in_world:
            self.turning = False
            return _by_given_poses(frames, views, self.known)
        transform = self._place_by_map(frames, views, first)
        self.posed += [(transform.move_pose(pose), wanted) for pose, wanted in given]
        if given:
            into_world, has_scale = place_by_poses(self.posed, not metric)
            if has_scale:
                self._enter_world(into_world)
                transform = into_world @ transform
        return transform

    def place_between(self, frames: Sequence[Frame], views: Views, known: Mapping[int, KnownFrame]) -> Similarity:
        """Return where a call belongs that has frames between keyframes, and these, which are ``known``."""
        if self.in_world and _given(frames, views):
            return _by_given_poses(frames, views, known)
        placement = place_by_points(frames, views, known, self.scales)
        if placement is not None and placement.agreeing >= LEAST_AGREEING:
            return placement.transform
        return place_by_poses(_shared(frames, views, known), scale=False)[0]

    def _enter_world(self, into_world: Similarity) -> None:
        """Move the submap, and those that it is joined to, into the world of the given poses."""
        self.trajectory.move(self.joined, into_world)
        self.placed += self.joined
        self.posed, self.in_world = [], True

    def _place_by_map(self, frames: Sequence[Frame], views: Views, first: int) -> Similarity:
        """Return where a window belongs by what it shares with the map.

        A first one begins where the last frame was, which is the best guess after a break. Where the camera begins to
        turn in place, or what is shared does not agree, a submap begins, and its place is an estimate.
        """
        turned, self.turning = self.turning, _says_no_size(frames) and turns_in_place(frames, views)
        if not self.known:
            return Similarity.of_pose(self.last) @ Similarity.of_pose(pose_of(views[0])).inverse()
        placement = place_by_points(frames, views, self.known, self.scales)
        if placement is not None:
            self.fits.append(placement)
        agrees = placement is not None and placement.agreeing >= LEAST_AGREEING
        if placement is not None and not agrees:
            self.begin_submap(first, "disagreement")
        elif self.turning and not turned:
            self.begin_submap(first, "rotation")
        if placement is not None and agrees:
            return placement.transform
        return place_by_poses(_shared(frames, views, self.known), scale=False)[0]


def _given(frames: Sequence[Frame], views: Views) -> list[tuple[Array, Array]]:
    """Return the poses of those frames that came with one, as predicted and as they came."""
    pairs = ((pose_of(view), frame.given_pose) for frame, view in zip(frames, views, strict=True))
    return [(pose, given) for pose, given in pairs if given is not None]


def _shared(frames: Iterable[Frame], views: Views, known: Mapping[int, KnownFrame]) -> list[tuple[Array, Array]]:
    """Return the poses of those frames that the map has, as predicted and as the map has them."""
    pairs = zip(frames, views, strict=True)
    return [(pose_of(view), known[frame.number].pose) for frame, view in pairs if frame.number in known]


def _by_given_poses(frames: Sequence[Frame], views: Views, known: Mapping[int, KnownFrame]) -> Similarity:
    """Return where a call belongs in the world of given poses; what the map has says the poses of other frames."""
    posed = [frame.number for frame in frames if frame.given_pose is not None]
    others = {number: there for number, there in known.items() if number not in posed}
    pairs = [*_given(frames, views), *_shared(frames, views, others)]
    return place_by_poses(pairs, not _is_metric(frames))[0]


def _is_metric(frames: Sequence[Frame]) -> bool:
    """Return whether all poses that came with frames are in metres."""
    return all(bool(frame.view.is_metric.all()) for frame in frames if frame.given_pose is not None)


def _says_no_size(frames: Sequence[Frame]) -> bool:
    """Return whether neither poses nor depth came with the frames."""
    return all(frame.given_pose is None and frame.view.distance is None for frame in frames)
