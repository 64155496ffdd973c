"""Moving the range of activation channels into weights, exactly.

SmoothQuant (Xiao et al., arXiv 2211.10438) divides channel ``i`` of a layer's input by ``s_i`` and multiplies row ``i``
of its weight by it. Here ``s_i`` is a power of two: in float32 the product is then the same to the last bit, and the
factors are small integers in a file. A layer may instead be rotated in blocks of channels by a Hadamard matrix (QuaRot,
Ashkboos et al., arXiv 2404.00456), which spreads an outlier over all channels of a block.

Which is better is judged on rows that the factors and ranges were not taken from. A few rows can be smoothed until all
channels reach the range at once; channels of others then pass it, and at full size that cost 13 dB.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .histogram import Histogram
from .rounding import NumberFormat, quantize, weight_scales
from .selection import Method, choose_range

Array = NDArray[np.float32]

ALPHAS = tuple(round(0.1 * i, 1) for i in range(1, 10))
"""Strengths that are tried: 0 leaves all of the difficulty in the activations, 1 moves all of it into the weights."""

_OUTPUTS = 512
"""Output channels by which a change of the input is judged; they are spread evenly over those of the layer."""

_MOST = 24
"""Exponents stay within this, so that no weight leaves float32's or float16's range."""


@dataclass(frozen=True)
class Choice:
    """What is done to a layer's input before it is rounded.

    Attributes:
        alpha: strength of the smoothing; None for none.
        exponents: (inputs,) of 2, or None without smoothing.
        rotated: whether every head is rotated.
        error: squared error of the layer's output over its power, with this choice, on each half of the sample with
            factors and range of the other half.
        plain_error: the same without any change.
    """

    alpha: float | None
    exponents: NDArray[np.int64] | None
    rotated: bool
    error: float
    plain_error: float


def smoothing_exponents(activations: Array, weight: Array, alpha: float) -> NDArray[np.int64]:
    """Return exponents of 2 of the factors ``max|x_i|^alpha / max|w_i|^(1 - alpha)``, centred on 0.

    They are rounded towards 0: a channel within a factor of two of the middle gains less from its own factor than it
    loses where its largest magnitude is another in use than in the data.

    Args:
        activations: (inputs,) largest magnitude per channel.
        weight: (inputs, outputs).
        alpha: 0 to 1.
    """
    columns = np.abs(weight).max(axis=1)
    used = (activations > 0) & (columns > 0)
    if not used.any():
        return np.zeros(len(activations), np.int64)
    logarithm = alpha * np.log2(activations[used]) - (1 - alpha) * np.log2(columns[used])
    exponents = np.zeros(len(activations), np.int64)
    exponents[used] = np.clip(np.trunc(logarithm - np.median(logarithm)), -_MOST, _MOST).astype(np.int64)
    return exponents


def hadamard(size: int) -> Array | None:
    """Return the orthonormal symmetric Hadamard matrix (Sylvester's), or None if ``size`` is no power of two."""
    if size < 1 or size & (size - 1):
        return None
    matrix = np.ones((1, 1), np.float64)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return np.asarray(matrix / np.sqrt(size), np.float32)


def rotate(values: Array, size: int) -> Array:
    """Rotate the last axis, in blocks of ``size`` channels; its own inverse."""
    matrix = hadamard(size)
    assert matrix is not None
    parts = values.reshape(*values.shape[:-1], -1, size)
    return np.ascontiguousarray((parts @ matrix).reshape(values.shape))


def output_error(fit: Array, rows: Array, weight: Array, form: NumberFormat, method: Method) -> float:
    """Return the squared error of ``rows @ weight`` with both sides rounded, over the power of the product.

    Args:
        fit: (n, inputs) rows that the range is chosen on.
        rows: (m, inputs) rows that are judged.
    """
    histogram = Histogram()
    histogram.add(fit)
    largest = choose_range(histogram, method, form)
    wanted = rows @ weight
    power = float(np.square(wanted).sum())
    if power == 0 or largest == 0:
        return 0.0
    scale = np.float32(largest / form.largest)
    found = quantize(rows, scale, form) @ quantize(weight, weight_scales(weight, form, "max"), form)
    return float(np.square(found - wanted).sum()) / power


def best_choice(
    rows: Array,
    largest: Array,
    weight: Array,
    form: NumberFormat,
    *,
    method: Method = "mse",
    alphas: Sequence[float] = ALPHAS,
    rotation: int | None = None,
    least_gain: float = 1.0,
) -> Choice:
    """Return the smoothing or rotation with the least error of the layer's output, or none.

    Args:
        rows: (n, inputs) sample of the layer's input, at least one row.
        largest: (inputs,) largest magnitude per channel over all data.
        weight: (inputs, outputs).
        alphas: strengths to try; none for no smoothing.
        rotation: channels that are rotated together, a power of two; None for no rotation.
        least_gain: times that a rotation has to divide the error by to be taken.
    """
    judged = np.ascontiguousarray(weight[:, :: max(1, weight.shape[1] // _OUTPUTS)])
    columns = np.abs(weight).max(axis=1)
    # Halves in the order of the data: neighbours of one image are on the same side.
    halves = np.array_split(rows, 2) if len(rows) > 1 else [rows, rows]
    pairs = ((halves[0], halves[1]), (halves[1], halves[0]))

    def smoothed(fit: Array, other: Array, alpha: float) -> float:
        exponents = smoothing_exponents(np.abs(fit).max(axis=0), columns[:, None], alpha)
        factors = np.exp2(exponents).astype(np.float32)
        return output_error(fit / factors, other / factors, judged * factors[:, None], form, method)

    def mean(errors: Iterable[float]) -> float:
        return float(np.mean(list(errors)))

    plain = mean(output_error(fit, other, judged, form, method) for fit, other in pairs)
    best = Choice(None, None, False, plain, plain)
    for alpha in alphas:
        error = mean(smoothed(fit, other, alpha) for fit, other in pairs)
        if error < best.error:
            best = Choice(alpha, smoothing_exponents(largest, columns[:, None], alpha), False, error, plain)
    if rotation is not None:
        turned = rotate(np.ascontiguousarray(judged.T), rotation).T
        error = mean(
            output_error(rotate(fit, rotation), rotate(other, rotation), turned, form, method) for fit, other in pairs
        )
        if error * least_gain < best.error:
            best = Choice(None, None, True, error, plain)
    return best
