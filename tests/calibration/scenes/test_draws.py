"""Draws are exact and named by their seed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mapengine.calibration.scenes.draws import Draws, frame


def test_the_stream_is_fixed() -> None:
    draws = Draws("test", 7)
    assert [draws.unit() for _ in range(3)] == [0.5340739816610289, 0.9698638805131755, 0.9346573178605366]
    assert draws.integer(3, 9) == 3
    for _ in range(5):
        draws.unit()
    assert draws.bytes(2, 3).tolist() == [[189, 171, 6], [131, 155, 58]]


def test_streams_of_other_names_differ() -> None:
    first = [Draws("a", seed).unit() for seed in range(200)]
    assert len(set(first)) == 200
    assert Draws("a", 1).unit() != Draws("b", 1).unit()


def test_distributions() -> None:
    draws = Draws("distributions")
    uniform = np.array([draws.uniform(2, 4) for _ in range(4000)])
    assert uniform.min() >= 2
    assert uniform.max() < 4
    assert uniform.mean() == pytest.approx(3, abs=0.05)
    assert {draws.integer(1, 3) for _ in range(100)} == {1, 2, 3}
    noise = draws.gaussian(100, 100)
    assert noise.dtype == np.float32
    assert noise.mean() == pytest.approx(0, abs=0.03)
    assert noise.std() == pytest.approx(1, abs=0.03)
    assert all(math.hypot(*draws.in_ball()) <= 1 for _ in range(100))
    assert all(math.hypot(*draws.heading()) == pytest.approx(1) for _ in range(100))


def test_a_frame_is_a_rotation_with_z_forward() -> None:
    matrix = np.array(frame((1.0, 2.0, -0.5), (0.0, 1.0, 0.1)))
    assert matrix.T @ matrix == pytest.approx(np.eye(3), abs=1e-12)
    assert np.linalg.det(matrix) == pytest.approx(1)
    assert matrix[:, 2] == pytest.approx(np.array([1, 2, -0.5]) / math.sqrt(5.25))
    assert matrix[1, 1] > 0  # y of the camera points down too
