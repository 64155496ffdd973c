"""A mapper that knows the truth, and errs as it is told, is judged accordingly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mapengine.calibration.scenes import WalkFrame, render_walk
from mapengine.calibration.sequences import GIVEN, SEQUENCE_METRICS, evaluate_sequence, mean_values, sequence_table
from mapengine.calibration.sequences.report import summary_rows
from mapengine.runtime.errors import InputError

from ..evaluation.oracle import rigid

WINDOW = 7
FRAMES = 20


class Frames(list[WalkFrame]):
    """Frames that are rendered once for all tests, and their poses."""

    @property
    def poses(self) -> np.ndarray:
        return np.array([frame.pose for frame in self])


@pytest.fixture(scope="module")
def walk() -> Frames:
    return Frames(render_walk(1_000_003, 60, 42, 28)[::3])


@dataclass
class TrueMapper:
    """Hands out the truth of a walk, ``scale`` times as large and in another world, a window at a time.

    From frame ``cut`` on it is in another part of the map; frame ``lost`` is in none.
    """

    walk: Frames
    scale: float = 1.0
    cut: int = 1000
    lost: int = -1
    leave_out: int = 0

    def __post_init__(self) -> None:
        self.views: list[Mapping[str, Any]] = []
        self.done = 0

    def add(self, view: Mapping[str, Any]) -> Iterator[Any]:
        self.views.append(view)
        return self._window() if len(self.views) % WINDOW == 0 else iter(())

    def finish(self) -> Iterator[Any]:
        return self._window(self.leave_out)

    def _window(self, but: int = 0) -> Iterator[Any]:
        for number in range(self.done, len(self.views) - but):
            frame = self.walk[number]
            depth = self.scale * frame.depth_z
            yield SimpleNamespace(number=number, depth=depth, mask=frame.mask, intrinsics=frame.intrinsics)
        self.done = len(self.views) - but

    @property
    def poses(self) -> np.ndarray:
        poses = self.walk.poses[: self.done].astype(np.float64)
        poses[:, :3, 3] *= self.scale
        poses = rigid(1, 40, 5, 6, 7) @ poses
        if self.lost >= 0:
            poses[self.lost] = np.nan
        poses[self.cut :] = rigid(0, 90, 99, 0, 0) @ poses[self.cut :]
        return poses

    @property
    def submaps(self) -> np.ndarray:
        submaps = (np.arange(self.done) >= self.cut).astype(int)
        if self.lost >= 0:
            submaps[self.lost] = -1
        return submaps


def test_the_truth_in_another_world_has_no_error(walk: Frames) -> None:
    score = evaluate_sequence(TrueMapper(walk), walk, window=8)
    assert set(score.values) == {metric.key for metric in SEQUENCE_METRICS}
    assert (score.frames, score.submaps) == (FRAMES, 1)
    moved = np.linalg.norm(np.diff(walk.poses[:, :3, 3], axis=0), axis=1)
    assert score.length == pytest.approx(moved.sum(), rel=1e-5)
    assert score.values["located"] == 1
    for key in ("ate", "ate_similarity", "rpe_metre", "rpe_window", "end_error", "drift_percent", "depth_abs_rel"):
        assert score.values[key] == pytest.approx(0, abs=1e-5), key
    for key in ("rpe_metre_degrees", "rpe_window_degrees", "scale_drift_percent"):
        assert score.values[key] == pytest.approx(0, abs=1e-3), key
    for key in ("map_accuracy", "map_completeness"):
        assert score.values[key] == pytest.approx(0, abs=5e-3), key  # thinned from another grid
    assert (score.values["seconds_per_frame"] or 0) > 0
    assert (score.values["peak_gb"] or 0) > 0.01


def test_a_map_that_is_too_large(walk: Frames) -> None:
    values = evaluate_sequence(TrueMapper(walk, scale=1.1), walk).values
    positions = walk.poses[:, :3, 3].astype(np.float64)
    spread = np.sqrt(np.mean(np.sum((positions - positions.mean(axis=0)) ** 2, axis=1)))
    assert values["ate"] == pytest.approx(0.1 * spread, rel=1e-4)
    assert values["ate_similarity"] == pytest.approx(0, abs=1e-5)
    assert values["depth_abs_rel"] == pytest.approx(0.1, rel=1e-4)
    assert values["scale_drift_percent"] == pytest.approx(0, abs=1e-3)
    assert values["drift_percent"] == pytest.approx(10 * np.linalg.norm(positions[-1] - positions[0])
        / np.linalg.norm(np.diff(positions, axis=0), axis=1).sum(), rel=1e-3)  # fmt: skip
    assert 0.02 < (values["map_accuracy"] or 0) < 0.3


def test_the_largest_part_counts_and_lost_frames_are_told(walk: Frames) -> None:
    score = evaluate_sequence(TrueMapper(walk, cut=16, lost=7), walk)
    assert score.submaps == 2
    assert score.values["located"] == pytest.approx(15 / 20)
    assert score.values["ate"] == pytest.approx(0, abs=1e-5)
    assert len(score.positions) == len(score.true_positions) == 15
    np.testing.assert_allclose(score.positions, score.true_positions, atol=1e-4)
    # What the part does not have is missing in the map.
    assert (score.values["map_completeness"] or 0) > 0.01
    assert (score.values["map_accuracy"] or 0) < 0.005


@pytest.mark.parametrize(
    ("given", "keys"),
    [
        ((), set()),
        (("intrinsics",), {"intrinsics"}),
        (("depth",), {"intrinsics", "depth_z"}),
        (GIVEN, {"intrinsics", "depth_z", "camera_poses"}),
    ],
)
def test_what_is_given_arrives(walk: Frames, given: tuple[str, ...], keys: set[str]) -> None:
    mapper = TrueMapper(walk)
    evaluate_sequence(mapper, walk, given=given)
    assert len(mapper.views) == FRAMES
    for view in mapper.views:
        assert set(view) == {"img", "data_norm_type", "is_metric_scale"} | keys


def test_poses_of_some_frames_are_given(walk: Frames) -> None:
    mapper = TrueMapper(walk)
    evaluate_sequence(mapper, walk, given=GIVEN, posed=range(0, FRAMES, 7))
    posed = [number for number, view in enumerate(mapper.views) if "camera_poses" in view]
    assert posed == list(range(0, FRAMES, 7))
    np.testing.assert_array_equal(mapper.views[7]["camera_poses"][0], walk.poses[7])


def test_frames_are_asked_for_one_by_one(walk: Frames) -> None:
    mapper = TrueMapper(walk)

    def frames() -> Iterator[WalkFrame]:
        for number in range(FRAMES):
            assert len(mapper.views) == number
            yield walk[number]

    assert evaluate_sequence(mapper, frames()).frames == FRAMES


def test_refusals(walk: Frames) -> None:
    with pytest.raises(InputError, match="'poes' cannot be given; there are intrinsics, depth, poses"):
        evaluate_sequence(TrueMapper(walk), walk, given=["poes"])
    with pytest.raises(InputError, match="handed out 18 of 20 frames"):
        evaluate_sequence(TrueMapper(walk, leave_out=2), walk)
    with pytest.raises(InputError, match="2 frames are no sequence"):
        evaluate_sequence(TrueMapper(walk), [walk[0], walk[1]])


def test_results_as_tables(walk: Frames) -> None:
    scores = {str(n): evaluate_sequence(TrueMapper(walk, scale=1 + 0.1 * n), walk) for n in range(2)}
    record = {
        "results": {name: score.to_json() for name, score in scores.items()},
        "mean": mean_values([score.values for score in scores.values()]),
        "seed": 1_000_003,
        "size": "42x28",
        "given": ["intrinsics"],
        "mapper": {"join": "poses"},
    }
    text = sequence_table(record)
    assert text.count("\n|") == 4
    assert "2 rendered walks at 42x28, seeds 1000003 to 1000004; given images, intrinsics; join poses." in text
    rows = {row[0]: row[1:] for row in summary_rows(record)}
    assert rows["depth AbsRel"] == ["0.050", "0.000", "0.100"]
    assert len(record["results"]["0"]["path"]) == FRAMES


def test_a_mean_is_over_the_sequences_that_have_the_metric() -> None:
    assert mean_values([{"a": 1.0, "b": None}, {"a": 3.0, "b": None}, {"a": None, "b": 5.0}]) == {"a": 2.0, "b": 5.0}
