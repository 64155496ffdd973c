"""Histograms do not depend on the order of the data, and ranges do what their names say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapengine.calibration.ranges import FORMATS, METHODS, Histogram, choose_range, noise_ratio, quantize
from mapengine.calibration.ranges.selection import Method
from mapengine.runtime.errors import InputError

INT8, FP8 = FORMATS["int8"], FORMATS["fp8"]


def histogram(*parts: np.ndarray) -> Histogram:
    result = Histogram()
    for part in parts:
        result.add(np.asarray(part, np.float32))
    return result


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.floats(width=32), max_size=40), max_size=5), st.randoms())
def test_any_order_and_split_gives_the_same(parts: list[list[float]], random: object) -> None:
    arrays = [np.array(part, np.float32) for part in parts]
    together = histogram(np.concatenate([*arrays, np.zeros(0, np.float32)]))
    random.shuffle(arrays)  # type: ignore[attr-defined]
    apart = histogram(*arrays)
    for other in (apart, Histogram.from_state(apart.state())):
        np.testing.assert_array_equal(other.counts, together.counts)
        assert other.largest == together.largest
    values = np.concatenate([*arrays, np.zeros(0, np.float32)])
    assert together.not_finite == (~np.isfinite(values)).sum()
    assert together.largest == np.abs(values[np.isfinite(values)]).max(initial=0.0)


def test_bins_hold_their_values() -> None:
    values = np.random.default_rng(0).standard_normal(5000).astype(np.float32) * 10
    low, high, counts = histogram(values).bins()
    assert counts.sum() == 5000
    assert (high[:-1] <= low[1:]).all()
    assert (high / np.maximum(low, 1e-30) < 1.02)[low > 0].all()
    for edge in (0.01, 1.0, 8.0):
        assert counts[high <= edge].sum() <= (np.abs(values) <= edge).sum() <= counts[low <= edge].sum()


@pytest.mark.parametrize("form", [INT8, FP8], ids=lambda form: form.name)
def test_noise_is_that_of_rounding_the_values(form: object) -> None:
    values = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    found = histogram(values)
    for largest in (1.5, 3.0, found.largest):
        error = quantize(values, largest / form.largest, form) - values  # type: ignore[attr-defined]
        wanted = np.square(error).sum() / np.square(values).sum()
        assert noise_ratio(found, largest, form) == pytest.approx(wanted, rel=0.05)  # type: ignore[arg-type]


def test_max_keeps_an_outlier_and_the_others_clip_it() -> None:
    values = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    rest = histogram(values)
    values[7] = -50
    found = histogram(values)
    assert choose_range(found, "max", INT8) == 50
    # 99.99 % of normal values are below 3.89; a bin of the histogram is up to 1.6 % wide.
    assert choose_range(found, "percentile", INT8) == pytest.approx(3.89, rel=0.02)
    # Rounding up to c costs c**2 / (12 * 127**2) per value, clipping the outlier (50 - c)**2 once; neighbouring
    # candidates are 4 % apart.
    least = 50 / (1 + len(values) / (12 * 127**2))
    assert choose_range(found, "mse", INT8) == pytest.approx(least, rel=0.045)
    assert 3.5 < choose_range(found, "entropy", INT8) < 5
    for method in ("percentile", "entropy"):  # what is not the outlier gains by far
        assert noise_ratio(rest, choose_range(found, method, INT8), INT8) < 0.01 * noise_ratio(rest, 50.0, INT8)


def test_percentile_leaves_one_in_ten_thousand() -> None:
    values = np.arange(1, 100_001, dtype=np.float32)
    assert choose_range(histogram(values), "percentile", INT8) == pytest.approx(99_990, rel=0.016)


def test_mse_is_the_best_range() -> None:
    values = np.random.default_rng(1).standard_t(3, 50_000).astype(np.float32)
    found = histogram(values)
    best = noise_ratio(found, choose_range(found, "mse", INT8), INT8)
    assert all(best <= 1.01 * noise_ratio(found, x, INT8) for x in np.geomspace(1, found.largest, 50))


@pytest.mark.parametrize("method", METHODS)
def test_zeros_have_a_range_of_zero(method: Method) -> None:
    found = histogram(np.zeros(10))
    assert choose_range(found, method, INT8) == 0
    assert noise_ratio(found, 0.0, INT8) == 0


@pytest.mark.parametrize("method", METHODS)
def test_what_has_no_range(method: Method) -> None:
    with pytest.raises(InputError, match="2 activations are NaN or infinite"):
        choose_range(histogram(np.array([1, np.nan, np.inf])), method, INT8)
    with pytest.raises(InputError, match="no activations were seen"):
        choose_range(Histogram(), method, INT8)
    with pytest.raises(InputError, match="'best' is unknown; use max, percentile, entropy, mse"):
        choose_range(histogram(np.ones(3)), "best", INT8)  # type: ignore[arg-type]
