"""Choose the range of a tensor from the histogram of its magnitudes: what lies beyond is clipped.

``max`` clips nothing. ``percentile`` clips the largest 0.01 % (McKinstry et al., arXiv 1809.04191). ``entropy`` is the
range whose clipped and rounded distribution has the least Kullback-Leibler divergence from the measured one (Migacz,
"8-bit inference with TensorRT", GTC 2017). ``mse`` is the one with the least squared error of clipping and rounding.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mapengine.runtime.errors import InputError

from .histogram import Histogram
from .rounding import NumberFormat, quantize

Method = Literal["max", "percentile", "entropy", "mse"]
METHODS: tuple[Method, ...] = ("max", "percentile", "entropy", "mse")
"""How the range of an input is chosen, as `mapengine calibrate --method` takes it."""

PERCENTILE = 99.99
_CANDIDATES = 96
"""Ranges that ``mse`` tries, evenly from the largest magnitude down to where nearly everything would be clipped."""
_SAMPLES = 8
"""Points at which a bin of the histogram is evaluated."""
_LINEAR_BINS, _LEVELS = 2048, 128
"""Of the entropy method, as TensorRT used to have them."""

Array = NDArray[np.float64]


def choose_range(histogram: Histogram, method: Method, form: NumberFormat) -> float:
    """Return the magnitude that the largest number of the format stands for; 0 if all values are zero.

    Raises:
        InputError: the method is unknown, nothing was counted, or a value was NaN or infinite.
    """
    if method not in METHODS:
        raise InputError(f"range method {method!r} is unknown; use {', '.join(METHODS)}")
    if histogram.not_finite:
        raise InputError(
            f"{histogram.not_finite} activations are NaN or infinite, so they have no range; check the model's weights"
        )
    if not histogram.total:
        raise InputError("no activations were seen, so they have no range; calibrate with at least one case")
    if method == "max" or histogram.largest == 0:
        return histogram.largest
    if method == "percentile":
        return _percentile(histogram)
    return _entropy(histogram) if method == "entropy" else _least_error(histogram, form)


def noise_ratio(histogram: Histogram, largest: float, form: NumberFormat) -> float:
    """Return the power of the error of rounding and clipping to ``largest``, over the power of the values.

    Values are taken as spread evenly over each bin and both signs as equal. 0 for a tensor of zeros, 1 where
    everything becomes zero.
    """
    if histogram.largest == 0:
        return 0.0
    points, weights = _points(histogram)
    power = float(weights @ np.square(points))
    if largest <= 0:
        return 1.0
    return float(weights @ np.square(quantize(points, largest / form.largest, form) - points)) / power


def _points(histogram: Histogram) -> tuple[Array, Array]:
    low, high, counts = histogram.bins()
    fractions = (np.arange(_SAMPLES) + 0.5) / _SAMPLES
    points = low[:, None] + (high - low)[:, None] * fractions
    return points.reshape(-1), np.repeat(counts / _SAMPLES, _SAMPLES)


def _percentile(histogram: Histogram) -> float:
    _, high, counts = histogram.bins()
    reached = np.searchsorted(np.cumsum(counts), PERCENTILE / 100 * counts.sum())
    return float(high[min(int(reached), len(high) - 1)])


def _least_error(histogram: Histogram, form: NumberFormat) -> float:
    points, weights = _points(histogram)
    # A range below the root mean square would clip most of the signal.
    lowest = min(float(np.sqrt(weights @ np.square(points) / weights.sum())), histogram.largest)
    best, chosen = np.inf, histogram.largest
    for candidate in np.geomspace(histogram.largest, max(lowest, histogram.largest * 1e-4), _CANDIDATES):
        error = float(weights @ np.square(quantize(points, candidate / form.largest, form) - points))
        if error < best:
            best, chosen = error, float(candidate)
    return chosen


def _entropy(histogram: Histogram) -> float:
    points, weights = _points(histogram)
    linear, edges = np.histogram(points, bins=_LINEAR_BINS, range=(0.0, histogram.largest), weights=weights)
    linear[0] = 0.0  # exact zeros and what rounds to them say nothing about the range
    if not linear.any():
        return histogram.largest
    best, chosen = np.inf, _LINEAR_BINS
    for count in range(_LEVELS, _LINEAR_BINS + 1, 16):
        inside = linear[:count]
        clipped = inside.copy()
        clipped[-1] += linear[count:].sum()
        if not clipped.any() or not inside.any():
            continue
        # Every level spreads its mass evenly over the bins that it stands for and that were not empty.
        level = np.arange(count) * _LEVELS // count
        mass = np.bincount(level, weights=inside, minlength=_LEVELS)
        filled = np.bincount(level, weights=inside > 0, minlength=_LEVELS)
        spread = np.where(inside > 0, (mass / np.maximum(filled, 1))[level], 0.0)
        divergence = _divergence(clipped / clipped.sum(), spread / spread.sum())
        if divergence < best:
            best, chosen = divergence, count
    return float(edges[chosen])


def _divergence(wanted: Array, found: Array) -> float:
    used = wanted > 0
    return float(np.sum(wanted[used] * np.log(wanted[used] / np.maximum(found[used], 1e-12))))
