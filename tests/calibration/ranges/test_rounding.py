"""Rounding against independent implementations, and the smoothing of channels."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from mapengine.calibration.ranges import FORMATS, quantize, round_to_grid, weight_scales
from mapengine.calibration.ranges.smoothing import (
    best_choice,
    hadamard,
    output_error,
    rotate,
    smoothing_exponents,
)

INT8, FP8 = FORMATS["int8"], FORMATS["fp8"]
RNG = np.random.default_rng(0)


def test_fp8_is_that_of_ml_dtypes() -> None:
    every = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    grid = np.unique(every[np.isfinite(every)])
    np.testing.assert_array_equal(round_to_grid(grid, FP8), grid)
    middles = (grid[1:] + grid[:-1]) / 2  # ties
    for values in (middles, RNG.standard_normal(5000).astype(np.float32) * 30, np.geomspace(1e-5, 440, 5000)):
        wanted = values.astype(np.float32).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
        np.testing.assert_array_equal(round_to_grid(values.astype(np.float32), FP8), wanted)
    np.testing.assert_array_equal(round_to_grid(np.array([1e6, -np.inf]), FP8), [448, -448])


def test_int8_is_symmetric_and_ties_go_to_even() -> None:
    values = np.array([-1000, -127.6, -2.5, -0.5, 0.5, 1.5, 127.4, np.inf], np.float32)
    np.testing.assert_array_equal(round_to_grid(values, INT8), [-127, -127, -2, 0, 0, 2, 127, 127])


@pytest.mark.parametrize("form", [INT8, FP8], ids=lambda form: form.name)
def test_weight_scales(form: object) -> None:
    weight = RNG.standard_t(3, (256, 20)).astype(np.float32) * np.geomspace(0.01, 10, 20, dtype=np.float32)
    weight[:, 3] = 0
    largest = weight_scales(weight, form, "max")  # type: ignore[arg-type]
    best = weight_scales(weight, form, "mse")  # type: ignore[arg-type]
    assert (best > 0).all()
    used = np.arange(20) != 3
    np.testing.assert_allclose((largest * form.largest)[used], np.abs(weight).max(0)[used], rtol=1e-6)  # type: ignore[attr-defined]
    errors = [np.square(quantize(weight, s, form) - weight).sum(0) for s in (best, largest)]  # type: ignore[arg-type]
    assert (errors[0] <= errors[1]).all()
    assert (quantize(weight, best, form)[:, 3] == 0).all()  # type: ignore[arg-type]


def test_hadamard_is_orthonormal_and_its_own_inverse() -> None:
    for size in (1, 2, 16, 64):
        matrix = hadamard(size)
        assert matrix is not None
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-6)
        np.testing.assert_array_equal(matrix, matrix.T)
    assert hadamard(24) is None
    rows = RNG.standard_normal((5, 128)).astype(np.float32)
    np.testing.assert_allclose(rotate(rotate(rows, 64), 64), rows, atol=1e-5)


def test_smoothing_is_exact_and_helps_where_channels_differ() -> None:
    rows = RNG.standard_normal((200, 64)).astype(np.float32)
    rows[:, [3, 40]] *= 80
    weight = RNG.standard_normal((64, 48)).astype(np.float32) * 0.05
    exponents = smoothing_exponents(np.abs(rows).max(0), weight, 0.5)
    factors = np.exp2(exponents).astype(np.float32)
    # Every single product is the same to the last bit.
    np.testing.assert_array_equal((rows / factors)[:, :, None] * (weight * factors[:, None])[None],
                                  rows[:, :, None] * weight[None])  # fmt: skip
    choice = best_choice(rows, np.abs(rows).max(0), weight, INT8)
    assert choice.alpha is not None
    halves = (rows[:100], rows[100:])
    errors = [output_error(halves[i], halves[1 - i], weight, INT8, "mse") for i in (0, 1)]
    assert choice.plain_error == pytest.approx(np.mean(errors))
    assert choice.error < 0.5 * choice.plain_error


@pytest.mark.slow
def test_rotation_is_chosen_for_an_outlier_of_a_head() -> None:
    rows = RNG.standard_normal((300, 128)).astype(np.float32)
    rows[::50, 5] *= 40  # single tokens, which no scale per channel can help
    weight = RNG.standard_normal((128, 32)).astype(np.float32)
    choice = best_choice(rows, np.abs(rows).max(0), weight, INT8, rotation=64, alphas=())
    assert choice.rotated
    assert choice.error < choice.plain_error
    gain = choice.plain_error / choice.error
    for factor, taken in ((0.99 * gain, True), (1.01 * gain, False)):
        found = best_choice(rows, np.abs(rows).max(0), weight, INT8, rotation=64, alphas=(), least_gain=factor)
        assert found.rotated == taken


@pytest.mark.slow
def test_smoothing_is_not_fitted_to_the_rows() -> None:
    """Heavy tails without outlier channels: the channels' largest magnitudes are chance, and say nothing of others."""
    rows = (RNG.standard_normal((96, 256)) * RNG.standard_normal((96, 256))).astype(np.float32)
    weight = RNG.standard_normal((256, 48)).astype(np.float32)
    assert best_choice(rows, np.abs(rows).max(0), weight, INT8, alphas=(0.9,)).exponents is None
    exponents = smoothing_exponents(np.abs(rows).max(0), weight, 0.5)
    assert (exponents == 0).mean() > 0.95  # within a factor of two of the middle
    rows[:, 7] *= 64
    choice = best_choice(rows, np.abs(rows).max(0), weight, INT8)
    assert choice.exponents is not None
    assert choice.exponents[7] == max(choice.exponents) >= 2
    assert np.count_nonzero(choice.exponents) < 32


def test_dead_channels_are_left_alone() -> None:
    weight = np.ones((4, 2), np.float32)
    weight[1] = 0
    np.testing.assert_array_equal(smoothing_exponents(np.array([1, 8, 0, 16], np.float32), weight, 1.0)[1:3], 0)
    assert not smoothing_exponents(np.zeros(4, np.float32), weight, 0.5).any()
