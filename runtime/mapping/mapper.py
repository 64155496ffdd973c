"""Sequences without end: frames go in one by one, poses and depth come out, in memory that does not grow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..inputs.encoded import EncodedView
from ..inputs.prepared import PreparedView, prepare_views
from ..options import InferOptions, shows_options
from .frames import MAP_OUTPUTS, Frame, KnownFrame, MappedFrame, pose_of
from .intake import check_count, encode_frame
from .placement import place_by_points, place_by_poses, transform_named
from .similarity import Similarity
from .trajectory import Trajectory
from .windows import JOINS, join_named, run_window

if TYPE_CHECKING:
    from ..engine import Engine

Array = NDArray[Any]

_IGNORED = ("ignore_calibration_inputs", "ignore_depth_inputs", "ignore_pose_inputs")


class Mapper:
    """The map of a sequence of any length.

    Frames are reconstructed in windows, calls of the network over so many frames; windows overlap, and the frames that
    they share join them to one map. Every image is encoded once. What is kept of a frame whose window is done is its
    pose, so that memory does not grow with the maps of the sequence. The same frames give the same bits. Not for
    several threads at once.

    The frame of the map is the camera of frame 0; or the world of the poses that come with frames, as soon as one
    does: what was mapped before is moved there. Lengths are metres, or the unit of given poses that are not metric.
    """

    @shows_options
    def __init__(
        self,
        engine: Engine,
        *,
        window: int = 16,
        overlap: int = 4,
        join: str = "poses",
        transform: str = "similarity",
        **options: Any,
    ) -> None:
        """Begin without frames.

        Args:
            engine: runs the network.
            window: frames of a call.
            overlap: of these, how many a window shares with the one before it.
            join: what the network is told of the shared frames: ``"align"`` nothing, ``"poses"`` their poses in the map
                and their intrinsics, ``"poses+depth"`` their confident depth as well. What comes with a frame (pose,
                intrinsics, depth) is used in each of them.
            transform: ``"rigid"`` or ``"similarity"``, by which the windows are brought into the map: with the lengths
                that the network says, or scaled to those of the windows before. In a world of given poses that are not
                metric it is a similarity in any case.
            **options: those of :meth:`mapengine.runtime.Engine.infer`.

        Raises:
            InputError: a value that does not exist or is outside its range, or windows larger than the engine serves.
        """
        check_count("window", window)
        check_count("overlap", overlap)
        most = engine.manifest.requests.views.max
        if window > most:
            raise InputError(
                f"window is {window}, but this bundle was built for up to {most} views; give at most {most}"
            )
        if overlap >= window:
            raise InputError(f"overlap is {overlap} of windows of {window} frames; give less than {window}")
        chosen = InferOptions.of(**options)
        if not chosen.apply_mask:
            raise InputError("apply_mask is False, but a map is made of the valid pixels; leave it True")
        self._engine, self._window, self._overlap = engine, int(window), int(overlap)
        self._join, self._scales = join_named(join), transform_named(transform)
        self._ignored = [name for name in _IGNORED if getattr(chosen, name)]
        self._options = {name: value for name, value in options.items() if name not in _IGNORED}
        self._waiting: list[Frame] = []  # frames of the next window, the shared ones first
        self._known: dict[int, KnownFrame] = {}  # of these, by number
        self._added = 0
        self._finished = False
        self._trajectory = Trajectory()
        self._submap = 0
        self._in_world = False  # whether the submap is in the world of given poses
        self._metric = True  # whether lengths in the map are metres
        self._posed: list[tuple[Array, Array]] = []  # until it is: poses in the map, and as they were given

    def add(self, view: Mapping[str, Any] | EncodedView) -> list[MappedFrame]:
        """Take a frame in, and map a window when it is complete.

        Args:
            view: as :meth:`mapengine.runtime.Engine.infer` takes it, of a batch of one, with whatever is known about
                the frame; its arrays may be filled anew afterwards.

        Returns:
            The frames whose window is done now, in order; often none.

        Raises:
            InputError, ProfileError, BackendError: as in ``infer``, for a frame of another size than those before it,
                and after :meth:`finish`. After an error the mapper is as it was before.
        """
        if self._finished:
            raise InputError("the map is finished; begin another Mapper")
        frame = self._frame(view)
        self._waiting.append(frame)
        try:
            done = self._map_window() if len(self._waiting) == self._window else []
        except BaseException:
            self._waiting.pop()
            raise
        self._added += 1
        return done

    def finish(self) -> list[MappedFrame]:
        """Map the frames that still wait, in a window that is shorter than the others.

        Returns:
            These frames, in order. The map takes no frames afterwards.
        """
        done = self._map_window() if len(self._waiting) > len(self._known) else []
        if self._posed:  # their scale stays unknown, but where they are and look is not
            self._enter_world(place_by_poses(self._posed, scale=False)[0])
        self._finished = True
        self._waiting, self._known = [], {}
        return done

    @property
    def poses(self) -> NDArray[np.float64]:
        """The newest estimate of the poses (N, 4, 4) of all frames that are done, camera-to-world in the map."""
        return self._trajectory.poses

    @property
    def submaps(self) -> NDArray[np.intp]:
        """The submap (N,) of each of these frames."""
        return self._trajectory.submap_of_frames

    def _frame(self, view: Any) -> Frame:
        """Check and encode the next frame."""
        before = self._waiting[-1].encoded if self._waiting else None
        try:
            encoded = encode_frame(self._engine, view, before)
            (prepared,) = prepare_views(
                [encoded], data_norm_type=self._engine.data_norm_type, encoder=encoded.encoder
            ).views
        except InputError as error:
            raise type(error)(str(error).replace("view 0", f"frame {self._added}")) from error
        if prepared.shape[0] != 1:
            raise InputError(f"frame {self._added}: img has a batch of {prepared.shape[0]}; give one image a frame")
        return Frame(self._added, encoded, self._without_ignored(prepared))

    def _without_ignored(self, view: PreparedView) -> PreparedView:
        dropped: dict[str, str] = {
            "ignore_calibration_inputs": "rays",
            "ignore_depth_inputs": "distance",
            "ignore_pose_inputs": "pose",
        }
        changes: dict[str, Any] = {dropped[name]: None for name in self._ignored}
        return replace(view, **changes)

    def _map_window(self) -> list[MappedFrame]:
        """Map the waiting frames, and keep what the next window shares with them."""
        frames, known = self._waiting, self._known
        posed = any(frame.given_pose is not None for frame in frames)
        # Estimates in another world than the given poses cannot be told beside them.
        join = JOINS["align"] if posed and not self._in_world else self._join
        views = run_window(self._engine, frames, known, join, self._metric, MAP_OUTPUTS, self._options)
        placement = self._place(frames, views)
        found = {
            frame.number: (view, KnownFrame.of(view, placement)) for frame, view in zip(frames, views, strict=True)
        }
        new = [frame.number for frame in frames if frame.number not in known]
        self._trajectory.add_window(placement, self._submap, [pose_of(found[number][0]) for number in new])
        self._waiting = frames[-self._overlap :]
        self._known = {frame.number: found[frame.number][1] for frame in self._waiting}
        return [MappedFrame.of(number, self._submap, found[number][1]) for number in new]

    def _place(self, frames: Sequence[Frame], views: Sequence[Mapping[str, Array]]) -> Similarity:
        """Return where a window belongs; with the first given poses, the submap is moved into their world."""
        pairs = list(zip(map(pose_of, views), frames, strict=True))
        given = [(pose, frame.given_pose) for pose, frame in pairs if frame.given_pose is not None]
        # Metric poses have the lengths of the network; those of others are known to nobody but them.
        metric = all(frame.view.is_metric.all() for frame in frames if frame.given_pose is not None)
        self._metric &= metric
        self._scales |= not metric
        if given and self._in_world:
            shared = [
                (pose, self._known[frame.number].pose)
                for pose, frame in pairs
                if frame.given_pose is None and frame.number in self._known
            ]
            return place_by_poses([*given, *shared], not metric)[0]
        placement = self._place_by_map(frames, views)
        self._posed += [(placement.move_pose(pose), wanted) for pose, wanted in given]
        if given:
            into_world, has_scale = place_by_poses(self._posed, not metric)
            if has_scale:
                self._enter_world(into_world)
                placement = into_world @ placement
        return placement

    def _enter_world(self, into_world: Similarity) -> None:
        """Move the submap into the world of the given poses."""
        self._trajectory.move(self._submap, into_world)
        self._posed, self._in_world = [], True

    def _place_by_map(self, frames: Sequence[Frame], views: Sequence[Mapping[str, Array]]) -> Similarity:
        """Return where a window belongs by what it shares with the map; a first one by its first frame."""
        if not self._known:
            return Similarity.of_pose(pose_of(views[0])).inverse()
        placement = place_by_points(frames, views, self._known, self._scales)
        if placement is not None:
            return placement.transform
        pairs = zip(map(pose_of, views), frames, strict=True)
        shared = [(pose, self._known[frame.number].pose) for pose, frame in pairs if frame.number in self._known]
        return place_by_poses(shared, scale=False)[0]
