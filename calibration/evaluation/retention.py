"""How much of an accuracy is kept: metrics of a reduced network over those of the float32 one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .scoring import METRICS, SceneScore, aggregate

LEAST_SHARE = 0.02
"""A share (of inliers, or under a curve) that is smaller in float32 already says nothing of rounding."""

_SHARES = frozenset(metric.key for metric in METRICS if metric.form.endswith("%"))

TaskMetrics = Mapping[str, Mapping[str, float | None]]
"""Metrics by task."""


def retention(found: TaskMetrics, float32: TaskMetrics) -> dict[tuple[str, str], float]:
    """Return the part of every metric of every task that is kept, by task and metric; above 1 where it is better.

    Of a share (inliers, area under a recall curve, overlap of masks) ``found / float32`` is kept, of an error
    ``float32 / found``: the quotients with which MLPerf Inference states its accuracy targets (99 % and 99.9 %), turned
    over for errors. Left out is what does not exist, shares below :data:`LEAST_SHARE` and errors of 0 in float32.
    """
    parts = {}
    for task, metrics in float32.items():
        for key, wanted in metrics.items():
            value = found.get(task, {}).get(key)
            if wanted is None or value is None:
                continue
            if key in _SHARES and wanted >= LEAST_SHARE:
                parts[task, key] = value / wanted
            elif key not in _SHARES and wanted > 0:
                parts[task, key] = wanted / max(value, 1e-30)
    return parts


def retention_errors(
    found: Mapping[str, Sequence[SceneScore]], float32: Mapping[str, Sequence[SceneScore]], resamples: int = 400
) -> dict[tuple[str, str], float]:
    """Return the standard errors of :func:`retention`: how far a part would move with other scenes of the same kind.

    By the bootstrap over scenes (Efron 1979), in pairs: a resampled set has the same scenes for both networks, so that
    what they have in common cancels. The same scores give the same result.

    Args:
        found: scores by task.
        float32: scores by task, of the same scenes in the same order.
        resamples: how many sets of scenes are drawn.
    """
    rng = np.random.default_rng(0)
    parts: dict[tuple[str, str], list[float]] = {}
    for task, wanted in float32.items():
        scores = found.get(task, ())
        if len(scores) != len(wanted):
            continue
        for _ in range(resamples):
            chosen = rng.integers(len(wanted), size=len(wanted))
            drawn = ({task: aggregate([side[i] for i in chosen])} for side in (scores, wanted))
            for name, part in retention(*drawn).items():
                parts.setdefault(name, []).append(part)
    return {name: float(np.std(values)) for name, values in parts.items()}
