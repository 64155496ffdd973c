"""How much of an accuracy is kept: metrics of a reduced network over those of the float32 one."""

from __future__ import annotations

from collections.abc import Mapping

from .scoring import METRICS

LEAST_SHARE = 0.02
"""A share (of inliers, or under a curve) that is smaller in float32 already says nothing of rounding."""

_SHARES = frozenset(metric.key for metric in METRICS if metric.form.endswith("%"))

TaskMetrics = Mapping[str, Mapping[str, float | None]]
"""Metrics by task."""


def kept_parts(found: TaskMetrics, float32: TaskMetrics) -> dict[tuple[str, str], float]:
    """The part of every metric of every task that is kept, by task and metric; above 1 where it is better.

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
