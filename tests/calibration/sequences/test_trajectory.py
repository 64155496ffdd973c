"""Errors of a path: cases computed by hand, and what must not change them."""

from __future__ import annotations

import numpy as np
import pytest

from mapengine.calibration.evaluation.metrics import absolute_trajectory_error
from mapengine.calibration.sequences import trajectory

from ..evaluation.oracle import rigid, rotation


def line(count: int = 5, step: float = 1.0) -> np.ndarray:
    """Cameras along z, one every ``step`` metres."""
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, 2, 3] = step * np.arange(count)
    return poses


def scaled(poses: np.ndarray, scale: float | np.ndarray) -> np.ndarray:
    result = poses.copy()
    result[:, :3, 3] *= np.reshape(scale, (-1, 1))
    return result


def wandering(count: int = 40) -> np.ndarray:
    """A path with turns and heights, at a step of 0.2 to 0.4 m."""
    rng = np.random.default_rng(3)
    poses = [np.eye(4)]
    for _ in range(count - 1):
        poses.append(poses[-1] @ rigid(1, rng.uniform(-9, 12), rng.uniform(-0.05, 0.05), 0, rng.uniform(0.2, 0.4)))
    return np.array(poses)


def test_a_line_that_is_a_tenth_too_long() -> None:
    true, found = line(), scaled(line(), 1.1)
    positions = found[:, :3, 3], true[:, :3, 3]
    # Off by 0.1 times the distance from the middle: -2, -1, 0, 1, 2.
    assert absolute_trajectory_error(*positions, rigid=True) == pytest.approx(0.1 * np.sqrt(2))
    assert absolute_trajectory_error(*positions) == pytest.approx(0, abs=1e-12)
    assert trajectory.error_per_metre(found, true) == pytest.approx((0.1, 0))
    assert trajectory.error_per_window(found, true, 3) == pytest.approx((0.2, 0))
    assert trajectory.end_error(found, true) == pytest.approx(0.4)
    assert trajectory.drift_percent(found, true) == pytest.approx(10)
    assert trajectory.section_scales(found, true, 2) == pytest.approx([1 / 1.1] * 2)
    assert trajectory.scale_drift_percent(found, true, 2) == pytest.approx(0, abs=1e-9)


def test_a_path_that_bends_by_a_degree_per_frame() -> None:
    true = line(5)
    found = np.array([rigid(1, number, *position) for number, position in enumerate(true[:, :3, 3])])
    # Seen from camera i, turned i degrees, the next one lies i degrees aside: 2 sin(i / 2) off.
    off = 2 * np.sin(np.radians(np.arange(4)) / 2)
    error = trajectory.error_per_metre(found, true)
    assert error is not None
    assert error.translation == pytest.approx(np.sqrt(np.mean(off**2)))
    assert error.degrees == pytest.approx(1)
    window = trajectory.error_per_window(found, true, 5)
    assert window == pytest.approx((0, 4), abs=1e-9)
    assert trajectory.end_error(found, true) == pytest.approx(0, abs=1e-12)


def test_the_scale_of_each_part_counts() -> None:
    true = line(9, 0.5)
    found = true.copy()
    found[4:, 2, 3] = 2.0 + 2 * (true[4:, 2, 3] - 2.0)  # the second half is twice as long
    scales = trajectory.section_scales(found, true, 2)
    assert scales == pytest.approx([1, 0.5])
    # ln 1 and ln 1/2 deviate by ln(2) / 2 from their mean.
    assert trajectory.scale_drift_percent(found, true, 2) == pytest.approx(100 * (np.sqrt(2) - 1))


def test_a_closed_walk_ends_where_it_began() -> None:
    square = np.tile(np.eye(4), (5, 1, 1))
    square[:, :3, 3] = [[0, 0, 0], [1, 0, 0], [1, 0, 1], [0, 0, 1], [0, 0, 0]]
    found = square.copy()
    found[4, :3, 3] = [0.3, 0, 0.4]
    assert trajectory.end_error(found, square) == pytest.approx(0.5)
    assert trajectory.drift_percent(found, square) == pytest.approx(12.5)
    assert trajectory.path_length(square) == pytest.approx([0, 1, 2, 3, 4])


def test_the_frame_of_the_estimate_does_not_count() -> None:
    true = wandering()
    rng = np.random.default_rng(5)
    found = np.array([pose @ rigid(0, rng.normal(), *(0.02 * rng.normal(size=3))) for pose in true])
    moved = rigid(2, 75, 4, -5, 6) @ found

    def errors(poses: np.ndarray) -> list[float]:
        metre, window = trajectory.error_per_metre(poses, true), trajectory.error_per_window(poses, true, 8)
        assert metre is not None
        assert window is not None
        return [
            *metre,
            *window,
            trajectory.end_error(poses, true),
            trajectory.drift_percent(poses, true) or 0,
            trajectory.scale_drift_percent(poses, true) or 0,
            absolute_trajectory_error(poses[:, :3, 3], true[:, :3, 3], rigid=True),
        ]

    assert errors(moved) == pytest.approx(errors(found))
    assert min(errors(found)) > 0
    assert max(errors(rigid(1, 30, 1, 2, 3) @ true)) == pytest.approx(0, abs=1e-6)


def test_the_rigid_error_is_the_smallest_over_rigid_motions() -> None:
    true = wandering()[:, :3, 3]
    found = true @ rotation(0, 20).T + np.random.default_rng(1).normal(0, 0.1, true.shape)
    least = absolute_trajectory_error(found, true, rigid=True)
    assert absolute_trajectory_error(found, true) <= least
    for axis in range(3):
        for turn in (-20.5, -19.5):
            turned = (found - found.mean(0)) @ rotation(axis, turn).T + true.mean(0)
            assert np.sqrt(np.mean(np.sum((turned - true) ** 2, axis=1))) > least


def test_what_does_not_exist_is_not_counted() -> None:
    short = line(3, 0.1)
    assert trajectory.error_per_metre(short, short) is None
    assert trajectory.error_per_window(short, short, 4) is None
    assert trajectory.error_per_window(short, short, 1) is None
    still = line(4, 0.0)
    assert trajectory.drift_percent(still, still) is None
    assert trajectory.scale_drift_percent(still, still) is None
