"""Which frames of a map are compared with the truth, and that its ATE is one of positions."""

from __future__ import annotations

import numpy as np
import pytest

from mapengine.calibration.evaluation.metrics import absolute_trajectory_error
from mapengine.calibration.sequences.path import ComparedPath

from ..evaluation.oracle import rigid


def wandering(count: int) -> np.ndarray:
    rng = np.random.default_rng(5)
    poses = [np.eye(4)]
    for _ in range(count - 1):
        poses.append(poses[-1] @ rigid(1, rng.uniform(-9, 12), rng.uniform(-0.05, 0.05), 0, rng.uniform(0.2, 0.4)))
    return np.array(poses)


def test_the_ate_is_one_of_positions_whatever_the_orientations_are() -> None:
    true = wandering(20)
    found = true.copy()
    found[:, :3, 3] += 0.1 * np.random.default_rng(1).normal(size=(20, 3))
    wanted = absolute_trajectory_error(found[:, :3, 3], true[:, :3, 3], rigid=True)
    submaps = np.zeros(20, int)
    assert ComparedPath.of(found, submaps, true).errors(5)["ate"] == pytest.approx(wanted)
    turned = found @ rigid(0, 25, 0, 0, 0)  # each camera about its own centre
    path = ComparedPath.of(turned, submaps, true)
    assert path.errors(5)["ate"] == pytest.approx(wanted)
    off = path.alignment().apply(turned[:, :3, 3]) - true[:, :3, 3]
    assert np.sqrt(np.mean(np.sum(off * off, axis=1))) == pytest.approx(wanted)


def test_frames_count_that_are_in_the_largest_part_and_have_a_truth() -> None:
    true = wandering(12)
    found, submaps = true.copy(), np.array([0] * 3 + [-1] + [1] * 6 + [2] * 2)
    found[3] = np.nan
    found[:3, :3, 3] += 9.0
    unknown = true.copy()
    unknown[9] = np.nan
    path = ComparedPath.of(found, submaps, unknown)
    assert np.flatnonzero(path.own).tolist() == [4, 5, 6, 7, 8]
    assert path.submaps == 3
    assert path.errors(3)["ate"] == pytest.approx(0, abs=1e-9)
    assert path.length == pytest.approx(np.linalg.norm(np.diff(np.delete(true, 9, 0)[:, :3, 3], axis=0), axis=1).sum())


@pytest.mark.parametrize("count", [0, 1, 2])
def test_two_cameras_are_no_path(count: int) -> None:
    true = wandering(5)
    submaps = np.array([0] * count + [-1] * (5 - count))
    path = ComparedPath.of(true, submaps, true)
    assert not path.is_long_enough
    assert set(path.errors(2).values()) == {None}
