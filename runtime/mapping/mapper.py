"""Sequences without end: frames go in one by one, poses and depth come out, in memory that does not grow."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendUnavailableError, InputError
from ..inputs.encoded import EncodedView
from ..inputs.prepared import PreparedView, prepare_views
from ..options import OUTPUTS, InferOptions, shows_options
from .breaks import LEAST_AGREEING, Break, find_gap, is_blank, turns_in_place
from .frames import MAP_OUTPUTS, Frame, KnownFrame, MappedFrame, pose_of
from .intake import check_count, encode_frame
from .loops.closing import Loop, LoopCloser, can_close
from .map_folder import MapFolder
from .placement import place_by_points, place_by_poses, transform_named
from .similarity import Similarity
from .state import MapState
from .windows import DEFAULT_JOIN, DEFAULT_OVERLAP, DEFAULT_WINDOW, JOINS, join_named, run_window

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
        self._join, self._may_scale = join_named(join), transform_named(transform)
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
        self._state = MapState(scales=self._may_scale)

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
            if is_blank(frame.view.normalized[0]):
                done = self._skip(frame)
            else:
                self._state.waiting.append(frame)
                done = self._map_window(self._state.waiting) if len(self._state.waiting) == self._window else []
        self._added += 1
        return done

    def finish(self) -> list[MappedFrame]:
        """Map the frames that still wait, in a window that is shorter than the others.

        Returns:
            These frames, in order. The map takes no frames afterwards.
        """
        with self._all_or_nothing():
            done = self._map_rest()
            self._leave_submap("")
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
        folder.write_poses(self.poses, self.submaps, self.breaks)

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

    def _skip(self, frame: Frame) -> list[MappedFrame]:
        """Map what waits, and hand out a frame in which nothing can be seen."""
        done = self._map_rest()
        self._leave_submap("blank")
        self._state.trajectory.add_blank()
        return [*done, MappedFrame.blank(frame.number, *frame.view.shape[1:])]

    def _map_rest(self) -> list[MappedFrame]:
        """Map all frames that wait."""
        done = []
        while len(self._state.waiting) > len(self._state.known):
            done += self._map_window(self._state.waiting)
        return done

    def _map_window(self, frames: list[Frame]) -> list[MappedFrame]:
        """Map the first of the frames that wait, up to a gap if there is one, and keep what the next window shares."""
        state, known = self._state, self._state.known
        new = [frame for frame in frames if frame.number not in known]
        posed = any(frame.given_pose is not None for frame in frames)
        # Estimates in another world than the given poses cannot be told beside them.
        join = JOINS["align"] if posed and not state.in_world else self._join
        views = run_window(self._engine, frames, known, join, state.metric, self._outputs, self._options)
        gap = find_gap(frames, views, known)
        if gap is not None:
            rest = state.waiting[gap:]
            # What is before the gap is predicted again, without what is behind it.
            done = [] if frames[gap - 1].number in known else self._map_window(frames[:gap])
            if any(frame.number < rest[0].number and frame.number not in state.known for frame in state.waiting):
                return done  # there is another gap in it, and what is behind that still waits
            self._leave_submap("no overlap")
            state.waiting = rest
            return done
        if not known:
            self._begin_submap(new[0].number)
        transform = self._place(frames, views)
        state.trajectory.add_window(
            transform, state.submap, [pose_of(view) for frame, view in zip(frames, views, strict=True) if frame in new]
        )
        state.written.append(transform)
        if self._folder is not None:
            for frame, view in zip(frames, views, strict=True):
                if frame in new:
                    self._folder.write(frame.number, view, transform, frame.name, state.in_world)
        self._close_loops(frames, views)
        transform = state.trajectory.placements[-1]
        mapped = [KnownFrame.of(view, transform) for view in views]
        state.last = mapped[-1].pose
        shared = min(self._overlap, len(frames))
        state.waiting = [*frames[-shared:], *state.waiting[len(frames) :]]
        state.known = {frame.number: there for frame, there in zip(frames[-shared:], mapped[-shared:], strict=True)}
        return [
            MappedFrame.of(frame.number, state.submap, there)
            for frame, there in zip(frames, mapped, strict=True)
            if frame in new
        ]

    def _close_loops(self, frames: Sequence[Frame], views: Sequence[Mapping[str, Array]]) -> None:
        """Look for the new frames of a window among those before, and move the windows where loops say so."""
        state, known = self._state, self._state.known
        if self._closer is None or state.in_world or state.posed:
            return
        own = [
            (frame, KnownFrame.of(view, Similarity.identity()))
            for frame, view in zip(frames, views, strict=True)
            if frame.number not in known
        ]
        placements = state.trajectory.placements
        state.any_scales |= state.scales
        moved = self._closer.add_window(
            len(placements) - 1,
            own,
            placements,
            joined=bool(known),
            scale=state.any_scales,
            fixed=self._fixed_windows(),
        )
        self._move_windows(moved)

    def _fixed_windows(self) -> list[int]:
        """Return the windows that are where given poses say."""
        return [window for window, own in enumerate(self._state.trajectory.submaps) if own in self._state.placed]

    def _move_windows(self, placements: Sequence[Similarity] | None) -> None:
        """Take over where the windows are with loops."""
        if placements is not None:
            self._state.trajectory.placements = list(placements)

    def _leave_submap(self, reason: str) -> None:
        """Forget what later windows could share; the frames that come then are in another submap."""
        state = self._state
        if state.posed:  # their scale stays unknown, but where they are and look is not
            self._enter_world(place_by_poses(state.posed, scale=False)[0])
        state.waiting, state.known = [], {}
        state.in_world, state.metric, state.scales, state.turning = False, True, self._may_scale, False
        state.reason = reason

    def _begin_submap(self, number: int, reason: str | None = None) -> None:
        """Begin a submap with a frame, the first one or one after a break; one with a ``reason`` is joined to the one
        before it all the same."""
        state = self._state
        if not state.trajectory.placements:
            return
        state.submap += 1
        state.joined = [state.submap] if reason is None else [*state.joined, state.submap]
        state.breaks.append(Break(number, state.submap, reason or state.reason))

    def _place(self, frames: Sequence[Frame], views: Sequence[Mapping[str, Array]]) -> Similarity:
        """Return where a window belongs; with the first given poses, the submap is moved into their world."""
        state = self._state
        pairs = list(zip(map(pose_of, views), frames, strict=True))
        given = [(pose, frame.given_pose) for pose, frame in pairs if frame.given_pose is not None]
        # Metric poses have the lengths of the network; those of others are known to nobody but them.
        metric = all(frame.view.is_metric.all() for frame in frames if frame.given_pose is not None)
        state.metric &= metric
        state.all_metric &= metric
        state.scales |= not metric
        if given and state.in_world:
            state.turning = False
            others = [(pose, frame) for pose, frame in pairs if frame.given_pose is None]
            return place_by_poses([*given, *self._shared(others)], not metric)[0]
        transform = self._place_by_map(frames, views)
        state.posed += [(transform.move_pose(pose), wanted) for pose, wanted in given]
        if given:
            into_world, has_scale = place_by_poses(state.posed, not metric)
            if has_scale:
                self._enter_world(into_world)
                transform = into_world @ transform
        return transform

    def _enter_world(self, into_world: Similarity) -> None:
        """Move the submap, and those that it is joined to, into the world of the given poses."""
        self._state.trajectory.move(self._state.joined, into_world)
        self._state.placed += self._state.joined
        self._state.posed, self._state.in_world = [], True

    def _place_by_map(self, frames: Sequence[Frame], views: Sequence[Mapping[str, Array]]) -> Similarity:
        """Return where a window belongs by what it shares with the map.

        A first one begins where the last frame was, which is the best guess after a break. Where the camera begins to
        turn in place, or what is shared does not agree, a submap begins, and its place is an estimate.
        """
        state = self._state
        turned, state.turning = state.turning, _says_no_size(frames) and turns_in_place(frames, views)
        if not state.known:
            return Similarity.of_pose(state.last) @ Similarity.of_pose(pose_of(views[0])).inverse()
        placement = place_by_points(frames, views, state.known, state.scales)
        if placement is not None:
            state.fits.append(placement)
        first = next(frame.number for frame in frames if frame.number not in state.known)
        agrees = placement is not None and placement.agreeing >= LEAST_AGREEING
        if placement is not None and not agrees:
            self._begin_submap(first, "disagreement")
        elif state.turning and not turned:
            self._begin_submap(first, "rotation")
        if placement is not None and agrees:
            return placement.transform
        return place_by_poses(self._shared(zip(map(pose_of, views), frames, strict=True)), scale=False)[0]

    def _shared(self, pairs: Iterable[tuple[Array, Frame]]) -> list[tuple[Array, Array]]:
        """Return the poses of those frames that the map has, as they are and as the map has them."""
        known = self._state.known
        return [(pose, known[frame.number].pose) for pose, frame in pairs if frame.number in known]


def _says_no_size(frames: Sequence[Frame]) -> bool:
    """Return whether neither poses nor depth came with the frames."""
    return all(frame.given_pose is None and frame.view.distance is None for frame in frames)
