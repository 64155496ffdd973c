"""Running a mapper over a sequence whose geometry is known, and judging what it made of it."""

from __future__ import annotations

import time
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mapengine.runtime.errors import InputError
from mapengine.runtime.mapping.similarity import Similarity
from mapengine.runtime.system.machine import can_reset_peak, peak_bytes, reset_peak

from ..evaluation.metrics import depth_abs_rel
from ..evaluation.scoring import Values
from ..evaluation.truth import full_view
from .path import ComparedPath
from .report import SEQUENCE_METRICS
from .surfaces import sampled_points, surface_errors

Array = NDArray[Any]

GIVEN = ("intrinsics", "depth", "poses")
"""What a mapper can be given of every frame beside its image; depth brings the intrinsics."""

_POSE = "camera_poses"
_DIGITS = 6  # significant ones, in JSON
_SHOWN = 400  # positions of a path in JSON, at most


class TrueFrame(Protocol):
    """A frame with exact or measured geometry, such as :class:`..scenes.WalkFrame`."""

    @property
    def image(self) -> Array:
        """(H, W, 3) uint8."""

    @property
    def depth_z(self) -> Array:
        """(H, W) metres along the camera's z axis, 0 where there is none or it is not known."""

    @property
    def intrinsics(self) -> Array:
        """(3, 3) pixels, pixel centres at integers."""

    @property
    def pose(self) -> Array:
        """(4, 4) camera-to-world, OpenCV axes, metres; the world is any frame."""


class Location(Protocol):
    """What a mapper says of a frame when its window is done; see :class:`mapengine.runtime.mapping.MappedFrame`."""

    @property
    def number(self) -> int:
        """Number in the sequence, from 0."""

    @property
    def depth(self) -> Array:
        """(H, W) metres along the camera's z axis."""

    @property
    def mask(self) -> Array:
        """(H, W) bool, where the depth holds."""

    @property
    def intrinsics(self) -> Array:
        """(3, 3) pixels."""


class SequenceMapper(Protocol):
    """What can be evaluated: :class:`mapengine.runtime.Mapper`, or anything that takes frames as it does."""

    def add(self, view: Mapping[str, Any]) -> Iterable[Location]:
        """Take the next frame in; returns the frames that are done."""

    def finish(self) -> Iterable[Location]:
        """Return the frames that are left."""

    @property
    def poses(self) -> NDArray[np.float64]:
        """(N, 4, 4) camera-to-world of all frames that are done; not finite where there is none."""

    @property
    def submaps(self) -> NDArray[np.intp]:
        """(N,) number of the part of the map that each of them is in; poses of different ones cannot be compared."""


@dataclass(frozen=True, eq=False)
class SequenceScore:
    """What was found on one sequence.

    Attributes:
        values: by key of :data:`.report.SEQUENCE_METRICS`; None where a metric does not exist.
        frames: number of frames.
        length: of the true path, metres.
        submaps: how many parts the map has.
        positions, true_positions: (N, 3) of the frames in the largest part, in the world of the truth, after rigid
            alignment.
    """

    values: Values
    frames: int
    length: float
    submaps: int
    positions: Array
    true_positions: Array

    def to_json(self) -> dict[str, Any]:
        """Return plain values, the path thinned."""
        every = -(-len(self.positions) // _SHOWN)
        paths = {"path": self.positions, "true_path": self.true_positions}
        return {
            "frames": self.frames,
            "length": round(self.length, 3),
            "submaps": self.submaps,
            "metrics": rounded(self.values),
            **{name: np.round(path[::every], 3).tolist() for name, path in paths.items()},
        }


def rounded(values: Values) -> Values:
    """Return values with as many digits as they deserve."""
    return {k: None if v is None else float(f"{v:.{_DIGITS}g}") for k, v in values.items()}


def evaluate_sequence(
    mapper: SequenceMapper,
    sequence: Iterable[TrueFrame],
    *,
    given: Collection[str] = ("intrinsics",),
    posed: Container[int] | None = None,
    window: int = 16,
    norm_type: str = "dinov2",
) -> SequenceScore:
    """Give all frames of a sequence to a mapper, and judge poses, depth and map.

    What is kept of a frame are its poses and about a thousand points. Time counts what the mapper does alone; the peak
    of memory is that of the process meanwhile, with the frames that are made or read in it.

    Args:
        mapper: new.
        sequence: frames in order.
        given: of :data:`GIVEN`.
        posed: numbers of the frames whose poses are given where poses are; all of them by default.
        window: frames that the error per window is over.
        norm_type: ``data_norm_type`` of the network.

    Raises:
        InputError: fewer than three frames, an unknown word in ``given``, or frames that the mapper did not hand out.
    """
    unknown = set(given) - set(GIVEN)
    if unknown:
        raise InputError(f"{sorted(unknown)[0]!r} cannot be given; there are {', '.join(GIVEN)}")
    keys = _keys_given(given)
    run = _Run()
    if can_reset_peak():
        reset_peak()
    for number, frame in enumerate(sequence):
        view = full_view(frame.image, frame.intrinsics, frame.depth_z, frame.pose, norm_type)
        run.add_truth(number, frame)
        began = time.perf_counter()
        done = list(mapper.add({k: view[k] for k in keys if k != _POSE or posed is None or number in posed}))
        run.seconds += time.perf_counter() - began
        run.take(done)
    began = time.perf_counter()
    done = list(mapper.finish())
    run.seconds += time.perf_counter() - began
    run.take(done)
    return run.score(mapper, peak_bytes(), window)


def mean_values(scores: Sequence[Values]) -> Values:
    """Return the mean of each value over the sequences that have it."""
    result: Values = {}
    for key in scores[0]:
        found = [value for values in scores if (value := values[key]) is not None]
        result[key] = float(np.mean(found)) if found else None
    return result


def _keys_given(given: Collection[str]) -> list[str]:
    keys = ["img", "data_norm_type", "is_metric_scale"]
    if "intrinsics" in given or "depth" in given:
        keys.append("intrinsics")
    return keys + ["depth_z"] * ("depth" in given) + [_POSE] * ("poses" in given)


class _Run:
    """What is gathered of a sequence while it goes through a mapper."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._true_poses: list[Array] = []
        self._true_points: list[Array] = []
        self._truth: dict[int, Array] = {}  # depth of frames that the mapper has not handed out
        self._points: dict[int, Array] = {}
        self._depth_errors: list[float] = []

    def add_truth(self, number: int, frame: TrueFrame) -> None:
        """Remember what is needed of the truth of a frame."""
        pose = np.asarray(frame.pose, np.float64)
        self._true_poses.append(pose)
        self._true_points.append(_moved(sampled_points(frame.depth_z, frame.intrinsics), Similarity.of_pose(pose)))
        self._truth[number] = np.asarray(frame.depth_z, np.float64)

    def take(self, done: Iterable[Location]) -> None:
        """Compare the depth of frames that are done, and keep some of their points."""
        for location in done:
            true = self._truth.pop(location.number)
            mask = np.asarray(location.mask, bool)
            valid = (true > 0) & mask
            if valid.any():
                depth = np.asarray(location.depth, np.float64)
                self._depth_errors.append(depth_abs_rel(depth[None], true[None], valid[None]))
            self._points[location.number] = sampled_points(location.depth, location.intrinsics, mask)

    def score(self, mapper: SequenceMapper, peak: int | None, window: int) -> SequenceScore:
        """Judge the poses as they are at the end, and the map that they make of the depth."""
        true_poses, poses = np.array(self._true_poses), np.asarray(mapper.poses, np.float64)
        count = len(true_poses)
        if count < 3:
            raise InputError(f"{count} frames are no sequence; give at least three")
        if self._truth or len(poses) != count:
            raise InputError(f"the mapper handed out {count - len(self._truth)} of {count} frames")
        path = ComparedPath.of(poses, np.asarray(mapper.submaps), true_poses)
        values: Values = {"located": float(np.mean(path.own)), "seconds_per_frame": self.seconds / count}
        values["peak_gb"] = None if peak is None else peak / 1e9
        values["depth_abs_rel"] = float(np.mean(self._depth_errors)) if self._depth_errors else None
        values |= path.errors(window)
        positions, true_positions = path.poses[:, :3, 3], path.true_poses[:, :3, 3]
        if path.is_long_enough:
            aligned = path.alignment()
            numbers = np.flatnonzero(path.own).tolist()
            points = [_moved(self._points[n], aligned @ Similarity.of_pose(poses[n])) for n in numbers]
            errors = surface_errors(np.concatenate(points), np.concatenate(self._true_points))
            values["map_accuracy"], values["map_completeness"] = errors
            positions = aligned.apply(positions)
        return SequenceScore(_all(values), count, path.length, path.submaps, positions, true_positions)


def _all(values: Values) -> Values:
    return {metric.key: values.get(metric.key) for metric in SEQUENCE_METRICS}


def _moved(points: Array, transform: Similarity) -> NDArray[np.float32]:
    return transform.apply(points.astype(np.float64)).astype(np.float32)
