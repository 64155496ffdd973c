"""The noise of predictions against those of the float32 network, in decibels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Predictions = Sequence[Mapping[str, Any]]
"""Of the views of one case."""


def prediction_decibels(
    found: Iterable[Predictions], wanted: Iterable[Predictions], keys: Iterable[str]
) -> dict[str, float]:
    """Return the signal-to-noise ratio of each named prediction over all cases, in decibels to one decimal."""
    noise, signal = dict.fromkeys(keys, 0.0), dict.fromkeys(keys, 0.0)
    for case, exact_case in zip(found, wanted, strict=True):
        for view, exact in zip(case, exact_case, strict=True):
            for key in signal:
                noise[key] += float(np.square(view[key].astype(np.float64) - exact[key]).sum())
                signal[key] += float(np.square(exact[key].astype(np.float64)).sum())
    return {key: round(10 * float(np.log10(signal[key] / max(noise[key], 1e-30))), 1) for key in signal}
