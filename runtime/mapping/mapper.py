"""Sequences without end: frames go in one by one, poses and depth come out, in memory that does not grow."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendUnavailableError, InputError
from ..inputs.encoded import EncodedView
from ..inputs.prepared import PreparedView, prepare_views
from ..options import OUTPUTS, InferOptions, shows_options
from .breaks import Break, find_cut, find_gap, is_blank
from .frames import MAP_OUTPUTS, Frame, KnownFrame, MappedFrame
from .intake import check_count, encode_frame
from .keyframes import DEFAULT_KEYFRAMES, TOGETHER, frames_between, keyframes_named
from .loops.closing import Loop, LoopCloser, can_close
from .map_folder import MapFolder
from .placement import transform_named
from .similarity import Similarity
from .state import MapState
from .windows import DEFAULT_JOIN, DEFAULT_OVERLAP, DEFAULT_WINDOW, JOINS, Join, join_named, run_window

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
        window: int = DEFAULT_WINDOW,
        overlap: int = DEFAULT_OVERLAP,
        join: str = DEFAULT_JOIN,
        transform: str = "similarity",
        keyframes: str = DEFAULT_KEYFRAMES,
        keyframe_threshold: float | None = None,
        loops: bool | None = None,
        folder: str | os.PathLike[str] | None = None,
        half: bool = False,
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
            keyframes: which frames windows are made of: ``"all"``; by ``"overlap"``, each that shares too little of its
                image with the last one; by ``"features"``, each whose image features are too unlike those of the last
                one. The frames between, so many at most, are localised in calls with the two keyframes around them,
                whose poses, intrinsics and confident depth are given.
            keyframe_threshold: below which a frame becomes a keyframe, in (0, 1]; None for that of the choice.
            loops: look for places that are seen again, and close the loops; needs SciPy (the extra ``map``). By default
                where that is installed. Poses that come with frames say more, so that none are closed in their world.
            folder: where everything that ``infer`` gives is written, a file per frame as soon as its window is done
                (:func:`mapengine.runtime.save_views`); :meth:`finish` moves those whose poses were refined, and adds
                ``map.npz`` with all poses.
            half: write maps of the folder as float16.
            **options: those of :meth:`mapengine.runtime.Engine.infer`.

        Raises:
            InputError: a value that does not exist or is outside its range, windows larger than the engine serves, or a
                folder with views of another run.
            BackendUnavailableError: loops are to be closed, and SciPy is not installed.
            OutputError: the folder cannot be made.
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
        self._join, may_scale = join_named(join), transform_named(transform)
        self._keyframes = keyframes_named(keyframes, keyframe_threshold)
        if self._keyframes.measure is not None and most < 3:
            raise InputError(
                f"a frame between keyframes is localised in a call with two of these, but this bundle was built for up "
                f"to {most} views; build it for at least 3, or leave keyframes at 'all'"
            )
        self._together = min(TOGETHER, most - 2)
        self._ignored = [name for name in _IGNORED if getattr(chosen, name)]
        self._options = {name: value for name, value in options.items() if name not in _IGNORED}
        self._added = 0
        if loops and not can_close():
            raise BackendUnavailableError(
                "loops are closed with SciPy, which is not installed: pip install 'mapengine[map]'"
            )
        self._closer = LoopCloser(engine, self._options) if loops or (loops is None and can_close()) else None
        self._folder = None if folder is None else MapFolder(folder, half=half, made_by=engine.label)
        self._outputs = MAP_OUTPUTS if folder is None else OUTPUTS
        self._state = MapState(may_scale)

    def add(self, view: Mapping[str, Any] | EncodedView, name: str = "") -> list[MappedFrame]:
        """Take a frame in, and map a window when it is complete.

        Args:
            view: as :meth:`mapengine.runtime.Engine.infer` takes it, of a batch of one, with whatever is known about
                the frame; its arrays may be filled anew afterwards.
            name: for people, such as that of the file; used in the folder.

        Returns:
            The frames whose window is done now, in order; often none.

        Raises:
            InputError, ProfileError, BackendError: as in ``infer``, for a frame of another size than those before it,
                and after :meth:`finish`. After an error the mapper is as it was before.
        """
        if self._state.finished:
            raise InputError("the map is finished; begin another Mapper")
        frame = self._frame(view, name)
        with self._all_or_nothing():
            done = self._skip(frame) if is_blank(frame.view.normalized[0]) else self._take(frame)
        self._added += 1
        return done

    def finish(self) -> list[MappedFrame]:
        """Map the frames that still wait, in a window that is shorter than the others.

        Returns:
            These frames, in order. The map takes no frames afterwards.
        """
        with self._all_or_nothing():
            done = self._map_rest()
            self._state.leave_submap("")
            self._state.finished = True
        if self._closer is not None:
            placements, scales = self._state.trajectory.placements, self._state.any_scales
            self._move_windows(self._closer.solved(placements, scale=scales, fixed=self._fixed_windows()))
            self._closer.close()
        if self._folder is not None:
            self._refine(self._folder)
        return done

    def _refine(self, folder: MapFolder) -> None:
        """Bring the files of a folder to the newest poses."""
        state = self._state
        for number, window in enumerate(state.trajectory.windows):
            if window is None:
                continue
            then, now = state.written[window], state.trajectory.placements[window]
            if then is not now:
                folder.refine(number, now @ then.inverse(), state.trajectory.submaps[window] in state.placed)
        folder.write_poses(self.poses, self.submaps, self.keyframes, self.breaks)

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Bring the state back where an error ends what changes it."""
        before = self._state.copy()
        try:
            yield
        except BaseException:
            self._state = before
            raise

    @property
    def poses(self) -> NDArray[np.float64]:
        """The newest estimate of the poses (N, 4, 4) of all frames that are done, camera-to-world in the map."""
        return self._state.trajectory.poses

    @property
    def submaps(self) -> NDArray[np.intp]:
        """The submap (N,) of each of these frames; -1 for one in which nothing can be seen."""
        return self._state.trajectory.submap_of_frames

    @property
    def keyframes(self) -> NDArray[np.bool_]:
        """Whether each of them is a keyframe (N,); False for one in which nothing can be seen."""
        return self._state.trajectory.keyframes

    @property
    def breaks(self) -> list[Break]:
        """Where submaps begin, but for the first one."""
        return list(self._state.breaks)

    @property
    def loops(self) -> list[Loop]:
        """Places that were seen again, in the order in which they were found."""
        return [] if self._closer is None else self._closer.loops

    @property
    def summary(self) -> dict[str, Any]:
        """What the map is, and how far it agrees with itself, for JSON.

        ``shared_points_off`` is how far the points of shared frames are from where the window before has them, over
        their depth, median over the windows; ``shared_points_agreeing`` the share that is off by less than a tenth.
        """
        state, loops = self._state, self.loops
        off = [placement.off for placement in state.fits]
        agreeing = [placement.agreeing for placement in state.fits]
        submaps = self.submaps
        return {
            "frames": len(submaps),
            "blank_frames": int(np.count_nonzero(submaps < 0)),
            "keyframes": int(np.count_nonzero(self.keyframes)),
            "windows": len(state.trajectory.placements),
            "submaps": len(np.unique(submaps[submaps >= 0])),
            "breaks": [
                {"frame": b.number, "submap": b.submap, "reason": b.reason, "text": str(b)} for b in self.breaks
            ],
            "loops": [{"first": loop.first, "second": loop.second, "believed": bool(loop.believed)} for loop in loops],
            "frame": "given" if state.placed else "view0",
            "metric": state.all_metric,
            "join": self._join.name,
            "shared_points_off": float(np.median(off)) if off else None,
            "shared_points_agreeing": float(np.median(agreeing)) if agreeing else None,
        }

    def _frame(self, view: Any, name: str) -> Frame:
        """Check and encode the next frame."""
        before = self._state.waiting[-1].encoded if self._state.waiting else None
        try:
            encoded = encode_frame(self._engine, view, before)
            (prepared,) = prepare_views(
                [encoded], data_norm_type=self._engine.data_norm_type, encoder=encoded.encoder
            ).views
        except InputError as error:
            raise type(error)(str(error).replace("view 0", f"frame {self._added}")) from error
        if prepared.shape[0] != 1:
            raise InputError(f"frame {self._added}: img has a batch of {prepared.shape[0]}; give one image a frame")
        return Frame(self._added, encoded, self._without_ignored(prepared), name)

    def _without_ignored(self, view: PreparedView) -> PreparedView:
        dropped: dict[str, str] = {
            "ignore_calibration_inputs": "rays",
            "ignore_depth_inputs": "distance",
            "ignore_pose_inputs": "pose",
        }
        changes: dict[str, Any] = {dropped[name]: None for name in self._ignored}
        return replace(view, **changes)

    def _take(self, frame: Frame) -> list[MappedFrame]:
        """Let a frame wait, and map what is complete with it."""
        state, done = self._state, []
        chosen = self._keyframes.chooses(frame, state.waiting, state.in_world)
        state.waiting.append(replace(frame, is_keyframe=chosen))
        while (end := self._end_of_window()) is not None:
            done += self._map_window(end)
        return done

    def _skip(self, frame: Frame) -> list[MappedFrame]:
        """Map what waits, and hand out a frame in which nothing can be seen."""
        done = self._map_rest()
        self._state.leave_submap("blank")
        self._state.trajectory.add_blank()
        return [*done, MappedFrame.blank(frame.number, *frame.view.shape[1:])]

    def _map_rest(self) -> list[MappedFrame]:
        """Map all frames that wait; the last one becomes a keyframe, so that each is between two."""
        done = []
        while len(self._state.waiting) > len(self._state.known):
            done += self._map_window(self._end_of_window() or len(self._state.waiting))
        return done

    def _end_of_window(self) -> int | None:
        """Return how many of the frames that wait end with the last keyframe of a window, None if that is not there."""
        keys = [index for index, frame in enumerate(self._state.waiting) if frame.is_keyframe]
        return keys[self._window - 1] + 1 if len(keys) >= self._window else None

    def _map_window(self, end: int) -> list[MappedFrame]:
        """Map the first ``end`` frames that wait, up to a gap if there is one, and keep what the next window shares."""
        state, known = self._state, self._state.known
        state.waiting[end - 1] = replace(state.waiting[end - 1], is_keyframe=True)
        waiting = state.waiting[:end]
        frames = [frame for frame in waiting if frame.is_keyframe]
        views = self._run(frames, known, self._join)
        gap = find_gap(frames, views, known)
        if gap is not None:
            return self._map_up_to(self._cut(frames[gap - 1], frames[gap]))
        new = [frame for frame in waiting if frame.number not in known]
        if not known:
            state.begin_submap(new[0].number)
        transform = state.place_window(frames, views, new[0].number)
        found = {frame.number: (view, Similarity.identity()) for frame, view in zip(frames, views, strict=True)}
        found |= self._localise(waiting, views, transform)
        own = [(frame, KnownFrame.of(*found[frame.number])) for frame in new]
        state.trajectory.add_window(
            transform, state.submap, [there.pose for _, there in own], [frame.is_keyframe for frame in new]
        )
        state.written.append(transform)
        if self._folder is not None:
            for frame in new:
                view, into_window = found[frame.number]
                self._folder.write(frame.number, view, transform @ into_window, frame.name, state.in_world)
        self._close_loops(own, joined=bool(known))
        transform = state.trajectory.placements[-1]
        shared = zip(frames[-self._overlap :], views[-self._overlap :], strict=True)
        state.known = {frame.number: KnownFrame.of(view, transform) for frame, view in shared}
        state.last = state.known[frames[-1].number].pose
        state.waiting = [*frames[-self._overlap :], *state.waiting[end:]]
        return [MappedFrame.of(frame, state.submap, there.moved(transform)) for frame, there in own]

    def _cut(self, before: Frame, after: Frame) -> int:
        """Return which of the frames that wait begins something new, between keyframes that have nothing in common."""
        waiting = self._state.waiting
        first, last = (waiting.index(frame) for frame in (before, after))
        return first + find_cut(waiting[first : last + 1])

    def _map_up_to(self, cut: int) -> list[MappedFrame]:
        """Map what waits before a cut, again, without what is behind it, and leave the submap."""
        state, rest = self._state, self._state.waiting[cut:]
        done = [] if state.waiting[cut - 1].number in state.known else self._map_window(cut)
        if any(frame.number < rest[0].number and frame.number not in state.known for frame in state.waiting):
            return done  # there is another gap in it, and what is behind that still waits
        state.leave_submap("no overlap")
        state.waiting = [replace(rest[0], is_keyframe=True), *rest[1:]]
        return done

    def _run(self, frames: Sequence[Frame], known: Mapping[int, KnownFrame], join: Join) -> list[dict[str, Array]]:
        """Run the network over frames, some of which the map has."""
        state = self._state
        if not state.in_world and any(frame.given_pose is not None for frame in frames):
            join = JOINS["align"]  # estimates in another world than the given poses cannot be told beside them
        return run_window(self._engine, frames, known, join, state.metric, self._outputs, self._options)

    def _localise(
        self, waiting: Sequence[Frame], views: Sequence[Mapping[str, Array]], transform: Similarity
    ) -> dict[int, tuple[dict[str, Array], Similarity]]:
        """Find the frames between the keyframes of a window, each in a small call with the keyframes on both sides.

        Args:
            waiting: the frames of the window and those between.
            views: of its keyframes. transform: from the window into the map.

        Returns:
            By number what ``infer`` gives, and the transform that takes it into the frame of the window.
        """
        result: dict[int, tuple[dict[str, Array], Similarity]] = {}
        keys = [frame.number for frame in waiting if frame.is_keyframe]
        mapped = {number: KnownFrame.of(view, transform) for number, view in zip(keys, views, strict=True)}
        for before, between, after in frames_between(waiting, self._together):
            frames = [before, *between, after]
            known = {frame.number: mapped[frame.number] for frame in (before, after)}
            found = self._run(frames, known, JOINS["poses+depth"])
            into_window = transform.inverse() @ self._state.place_between(frames, found, known)
            result |= {frame.number: (view, into_window) for frame, view in zip(between, found[1:-1], strict=True)}
        return result

    def _close_loops(self, own: Sequence[tuple[Frame, KnownFrame]], joined: bool) -> None:
        """Look for the new frames of a window among those before, and move the windows where loops say so."""
        state = self._state
        if self._closer is None or state.in_world or state.posed:
            return
        placements = state.trajectory.placements
        state.any_scales |= state.scales
        moved = self._closer.add_window(
            len(placements) - 1, own, placements, joined=joined, scale=state.any_scales, fixed=self._fixed_windows()
        )
        self._move_windows(moved)

    def _fixed_windows(self) -> list[int]:
        """Return the windows that are where given poses say."""
        placed = self._state.placed
        return [window for window, own in enumerate(self._state.trajectory.submaps) if own in placed] if placed else []

    def _move_windows(self, placements: Sequence[Similarity] | None) -> None:
        """Take over where the windows are with loops."""
        if placements is not None:
            self._state.trajectory.placements = list(placements)
