"""Moving the range of activation channels into weights, exactly.

SmoothQuant (Xiao et al., arXiv 2211.10438) divides channel ``i`` of a layer's input by ``s_i`` and multiplies row ``i``
of its weight by it. Here ``s_i`` is a power of two: in float32 the product is then the same to the last bit, and the
factors are small integers in a file. A layer whose input comes out of attention may instead be rotated per head by a
Hadamard matrix (QuaRot, Ashkboos et al., arXiv 2404.00456), which spreads an outlier over all channels of the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .histogram import Histogram
from .ranges import Method, choose_range
from .rounding import NumberFormat, quantise, weight_scales

Array = NDArray[np.float32]

ALPHAS = tuple(round(0.1 * i, 1) for i in range(1, 10))
"""Strengths that are tried: 0 leaves all of the difficulty in the activations, 1 moves all of it into the weights."""

_MOST = 24
"""Exponents stay within this, so that no weight leaves float32's or float16's range."""


@dataclass(frozen=True)
class Choice:
    """What is done to a layer's input before it is rounded.

    Attributes:
        alpha: strength of the smoothing; None for none.
        exponents: (inputs,) of 2, or None without smoothing.
        rotated: whether every head is rotated.
        error: squared error of the layer's output over its power, on the sample, with this choice.
        plain_error: the same without any change.
    """

    alpha: float | None
    exponents: NDArray[np.int64] | None
    rotated: bool
    error: float
    plain_error: float


def smoothing_exponents(activations: Array, weight: Array, alpha: float) -> NDArray[np.int64]:
    """Exponents of 2 of the factors ``max|x_i|^alpha / max|w_i|^(1 - alpha)``, centred on 0.

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
    exponents[used] = np.clip(np.rint(logarithm - np.median(logarithm)), -_MOST, _MOST).astype(np.int64)
    return exponents


def hadamard(size: int) -> Array | None:
    """Orthonormal symmetric Hadamard matrix (Sylvester's), or None if ``size`` is no power of two."""
    if size < 1 or size & (size - 1):
        return None
    matrix = np.ones((1, 1), np.float64)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return np.asarray(matrix / np.sqrt(size), np.float32)


def rotate(values: Array, head_dim: int) -> Array:
    """Rotate the last axis, in parts of ``head_dim``; its own inverse."""
    matrix = hadamard(head_dim)
    assert matrix is not None
    parts = values.reshape(*values.shape[:-1], -1, head_dim)
    return np.ascontiguousarray((parts @ matrix).reshape(values.shape))


def output_error(rows: Array, weight: Array, form: NumberFormat, method: Method) -> float:
    """Squared error of ``rows @ weight`` with both sides rounded, over the power of the product."""
    histogram = Histogram()
    histogram.add(rows)
    largest = choose_range(histogram, method, form)
    wanted = rows @ weight
    power = float(np.square(wanted).sum())
    if power == 0 or largest == 0:
        return 0.0
    scale = np.float32(largest / form.largest)
    found = quantise(rows, scale, form) @ quantise(weight, weight_scales(weight, form, "max"), form)
    return float(np.square(found - wanted).sum()) / power


def best_choice(
    rows: Array,
    largest: Array,
    weight: Array,
    form: NumberFormat,
    *,
    method: Method = "mse",
    alphas: Sequence[float] = ALPHAS,
    head_dim: int | None = None,
) -> Choice:
    """The smoothing or rotation with the least error of the layer's output, or none.

    Args:
        rows: (n, inputs) sample of the layer's input.
        largest: (inputs,) largest magnitude per channel over all data.
        weight: (inputs, outputs).
        alphas: strengths to try; none for no smoothing.
        head_dim: channels of a head where a rotation folds, else None.
    """
    plain = output_error(rows, weight, form, method)
    best = Choice(None, None, False, plain, plain)
    for alpha in alphas:
        exponents = smoothing_exponents(largest, weight, alpha)
        factors = np.exp2(exponents).astype(np.float32)
        error = output_error(rows / factors, weight * factors[:, None], form, method)
        if error < best.error:
            best = Choice(alpha, exponents, False, error, plain)
    if head_dim is not None and hadamard(head_dim) is not None:
        error = output_error(rotate(rows, head_dim), rotate(np.ascontiguousarray(weight.T), head_dim).T, form, method)
        if error < best.error:
            best = Choice(None, None, True, error, plain)
    return best
