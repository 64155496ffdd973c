"""Statistics of repeated timings, and when two of them differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

_LEAST_CHANGE = 0.02
"""Share below which a difference is not called one, however many runs there were: machines drift more than that."""
_SIGMAS = 3.0
_MEDIAN = 1.2533
"""Standard error of a median over that of a mean, for normal noise: sqrt(pi / 2)."""


@dataclass(frozen=True)
class Summary:
    """Repeated measurements of one thing, in its own unit.

    ``cv`` is the coefficient of variation: standard deviation over mean.
    """

    runs: int
    min: float
    p50: float
    p90: float
    p99: float
    mean: float
    cv: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Summary:
        """Summarise at least one measurement; percentiles are interpolated linearly."""
        values = np.asarray(samples, float)
        p50, p90, p99 = (float(x) for x in np.percentile(values, (50, 90, 99)))
        mean = float(values.mean())
        spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        return cls(len(values), float(values.min()), p50, p90, p99, mean, spread / mean if mean else 0.0)

    def to_json(self) -> dict[str, float]:
        """Return plain values of six significant digits."""
        return {key: value if key == "runs" else float(f"{value:.6g}") for key, value in asdict(self).items()}


def is_beyond_noise(old: Summary, new: Summary) -> bool:
    """Return whether the medians differ by more than three standard errors of both, and by more than two per cent."""
    if min(old.p50, new.p50) <= 0:
        return old.p50 != new.p50
    noise = _SIGMAS * _MEDIAN * math.hypot(old.cv / math.sqrt(old.runs), new.cv / math.sqrt(new.runs))
    return abs(math.log(new.p50 / old.p50)) > max(noise, math.log1p(_LEAST_CHANGE))
