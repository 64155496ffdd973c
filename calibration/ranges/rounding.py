"""Rounding to symmetric INT8 and to FP8 E4M3: ``x`` is stored as ``round(x / scale)`` and read as that times ``scale``.

Sources: INT8 W8A8 as in Jacob et al., arXiv 1712.05877, without zero points; FP8 E4M3 of Micikevicius et al.,
arXiv 2209.05433 (largest number 448, no infinity, saturating).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

FormatName = Literal["int8", "fp8"]
WeightMethod = Literal["max", "mse"]
Array = NDArray[np.float32]


@dataclass(frozen=True)
class NumberFormat:
    """A format of 8 bits.

    Attributes:
        name: as in manifests.
        largest: the largest magnitude on its grid, before scaling. INT8 leaves out -128, to be symmetric.
    """

    name: FormatName
    largest: float


FORMATS: Mapping[str, NumberFormat] = {"int8": NumberFormat("int8", 127.0), "fp8": NumberFormat("fp8", 448.0)}
"""The 8-bit formats by name, with the magnitude of their largest number."""

_FRACTION_BITS = 3
_SMALLEST_NORMAL = 2.0**-6
"""Of E4M3."""
_CLIPS = np.linspace(1.0, 0.7, 13)
"""Parts of a channel's largest weight that are tried as its range."""
_PART = 1 << 16
"""Weights whose scales are searched at a time."""


def round_to_grid(values: NDArray[Any], form: NumberFormat) -> NDArray[Any]:
    """Return the nearest number of the format (ties to even), saturated, in the type of ``values``."""
    clipped = np.clip(values, -form.largest, form.largest)
    if form.name == "int8":
        return np.rint(clipped)
    _, exponent = np.frexp(np.maximum(np.abs(clipped), _SMALLEST_NORMAL))
    step = np.ldexp(np.ones_like(clipped), exponent - 1 - _FRACTION_BITS)
    return np.rint(clipped / step) * step


def quantize(values: NDArray[Any], scale: Any, form: NumberFormat) -> NDArray[Any]:
    """Return what is read back after storing ``values`` with ``scale``, which broadcasts."""
    return round_to_grid(values / scale, form) * scale


def weight_scales(weight: Array, form: NumberFormat, method: WeightMethod = "mse") -> Array:
    """Scale per output channel of a weight of (inputs, outputs).

    Args:
        method: ``max`` for the whole range of each channel, ``mse`` for the part of it, 70 % or more, that gives the
            least squared error. FP8 always takes the whole range: its step grows with the magnitude.

    Returns:
        (outputs,) float32, positive.
    """
    largest = np.abs(weight).max(axis=0)
    largest[largest == 0] = form.largest  # nothing but zeros: any scale will do
    if method == "max" or form.name == "fp8":
        return np.asarray(largest / form.largest, np.float32)
    chosen = np.empty_like(largest, np.float32)
    # In parts that stay in a processor's cache: a full-size layer takes half the time.
    step = max(1, _PART // len(weight))
    for start in range(0, weight.shape[1], step):
        part = slice(start, start + step)
        chosen[part] = _least_error_scales(np.ascontiguousarray(weight[:, part].T), largest[part], form)
    return chosen


def _least_error_scales(rows: Array, largest: Array, form: NumberFormat) -> Array:
    """Scale per row of (outputs, inputs), of those that :data:`_CLIPS` gives."""
    best = np.full(largest.shape, np.inf, np.float32)
    chosen = np.asarray(largest / form.largest, np.float32)
    for clip in _CLIPS:
        scale = np.asarray(largest * clip / form.largest, np.float32)
        error = np.square(quantize(rows, scale[:, None], form) - rows).sum(axis=1)
        better = error < best
        best[better], chosen[better] = error[better], scale[better]
    return chosen
