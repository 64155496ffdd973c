"""The sets of frames that are reconstructed together, and the world that their results are in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapengine.runtime import Engine, InputError, Session
from mapengine.runtime.outputs.frame import align_cameras

from .poses import OPTICAL_IN_BODY

Array = NDArray[Any]


@dataclass(frozen=True)
class WindowSize:
    """How many sets of frames stay.

    Attributes:
        recent: the newest ones, 1 or more.
        keyframe_every: each so many-th set is a keyframe, which outlasts these; 0: none is.
        keyframes: the newest keyframes stay.
    """

    recent: int = 1
    keyframe_every: int = 0
    keyframes: int = 0

    def check(self, cameras: int, most: int) -> None:
        """Refuse more frames than an engine takes (InputError)."""
        kept = self.keyframes if self.keyframe_every else 0
        if (self.recent + kept) * cameras > most:
            with_keyframes = f" and {kept} keyframes" if kept else ""
            raise InputError(
                f"a window of {self.recent}{with_keyframes} with {cameras} cameras is {(self.recent + kept) * cameras} "
                f"views, but this bundle was built for up to {most}; make window or max_keyframes smaller"
            )
        if self.keyframe_every and not self.keyframes:
            raise InputError("keyframe_every is set, but max_keyframes is 0; give at least 1")


@dataclass(frozen=True, eq=False)
class FrameResult:
    """What was reconstructed of one frame.

    Attributes:
        prediction: as ``Engine.infer`` returns it.
        pose: (4, 4) float64, from the camera's optical frame to the world.
    """

    prediction: dict[str, Array]
    pose: NDArray[np.float64]

    def __getitem__(self, name: str) -> Array:
        """An output of the network without its batch axis."""
        return self.prediction[name][0]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(H, W), where there are points."""
        return np.asarray(self["mask"][..., 0], bool)


class Window:
    """Frames in use, by sets. Not for several threads at once.

    Results are in the world of the given poses, by the rigid transform that fits the predicted cameras to these best.
    Where the first frame in use has no pose, poses are not used, and the transform is the one that fits the predicted
    cameras best to where the earlier results put those frames: the world stays while frames come and go. A world that
    no pose was given of has its origin in the first camera, and its axes (x forward, y left, z up).
    """

    def __init__(self, engine: Engine, size: WindowSize) -> None:
        self._engine, self._size = engine, size
        self._session = Session(engine)
        self._sets: list[tuple[bool, list[int]]] = []
        self._given: dict[int, NDArray[np.float64]] = {}
        self._placed: dict[int, NDArray[np.float64]] = {}
        self._added = 0
        self.worlds = 0
        self.is_given = False

    @property
    def frames(self) -> list[int]:
        """Numbers of the frames in use, in order."""
        return self._session.frames

    def add(self, views: Sequence[dict[str, Any]], poses: Sequence[NDArray[np.float64] | None]) -> list[int]:
        """Encode the frames of a set and take them in; the oldest sets leave for them.

        Args:
            views: as ``Engine.infer`` takes them, without poses, all of one size.
            poses: (4, 4) camera-to-world per view, or None where unknown.

        Raises:
            InputError, ProfileError, BackendError: as ``Engine.encode``; the window is as it was.

        Returns:
            The numbers of the new frames.
        """
        posed = [
            view if pose is None else {**view, "camera_poses": pose[None].astype(np.float64)}
            for view, pose in zip(views, poses, strict=True)
        ]
        # The reference has to have a pose if others are to count.
        order = sorted(range(len(views)), key=lambda index: poses[index] is None)
        encoded = self._engine.encode([posed[index] for index in order])
        every = self._size.keyframe_every
        is_keyframe = bool(every) and self._added % every == 0
        for kind, most in ((True, self._size.keyframes), (False, self._size.recent)):
            same = [entry for entry in self._sets if entry[0] is kind]
            for entry in same[: max(len(same) + (kind is is_keyframe) - most, 0)]:
                self._leave(entry)
        numbers = dict(zip(order, [self._session.add(view) for view in encoded], strict=True))
        frames = [numbers[index] for index in range(len(views))]
        self._given.update({frame: pose for frame, pose in zip(frames, poses, strict=True) if pose is not None})
        self._sets.append((is_keyframe, frames))
        self._added += 1
        return frames

    def take_back(self) -> None:
        """Forget the newest set, which cannot be reconstructed."""
        self._leave(self._sets[-1])

    def infer(self, *, outputs: Sequence[str], **options: Any) -> dict[int, FrameResult]:
        """Reconstruct the frames in use; errors as ``Engine.infer``, or InputError for poses that are not finite."""
        frames = self._session.frames
        use_poses = frames[0] in self._given
        found = self._session.infer(outputs=[*outputs, "camera_poses"], ignore_pose_inputs=not use_poses, **options)
        predicted = np.stack([view["camera_poses"][0] for view in found]).astype(np.float64)
        if not np.isfinite(predicted).all():
            raise InputError("the network predicted no finite pose; try another precision or backend")
        known = self._given if use_poses else self._placed
        self.is_given |= use_poses
        if not known.keys() & set(frames):
            known = {frames[0]: OPTICAL_IN_BODY}
            self.worlds += 1
            self.is_given = False
        placed = [i for i, frame in enumerate(frames) if frame in known]
        fitted = align_cameras(predicted[placed], np.stack([known[frames[i]] for i in placed]), metric=True)
        world = fitted.matrix @ predicted
        self._placed.update(zip(frames, world, strict=True))
        return {frame: FrameResult(view, pose) for frame, view, pose in zip(frames, found, world, strict=True)}

    def _leave(self, entry: tuple[bool, list[int]]) -> None:
        self._sets.remove(entry)
        for frame in entry[1]:
            self._session.drop(frame)
            self._given.pop(frame, None)
            self._placed.pop(frame, None)
