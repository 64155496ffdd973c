"""Results over sequences as rows and as Markdown; both read the JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mapengine.runtime.profiling.report import table

from ..evaluation.report import NOTHING
from ..evaluation.scoring import Metric

SEQUENCE_EVALUATION = "sequence-evaluation"
"""Name of the benchmark in its records."""

SEQUENCE_METRICS = (
    Metric("ate", "ATE, m", ".3f"),
    Metric("ate_similarity", "ATE, m, scaled", ".3f"),
    Metric("rpe_metre", "RPE per m, m", ".3f"),
    Metric("rpe_metre_degrees", "RPE per m, degrees", ".2f"),
    Metric("rpe_window", "RPE per window, m", ".3f"),
    Metric("rpe_window_degrees", "RPE per window, degrees", ".2f"),
    Metric("end_error", "end, m", ".3f"),
    Metric("drift_percent", "drift, %", ".2f"),
    Metric("scale_drift_percent", "scale drift, %", ".2f"),
    Metric("depth_abs_rel", "depth AbsRel", ".3f"),
    Metric("map_accuracy", "accuracy, m", ".3f"),
    Metric("map_completeness", "completeness, m", ".3f"),
    Metric("located", "located", ".0%"),
    Metric("seconds_per_frame", "s per frame", ".3f"),
    Metric("peak_gb", "peak, GB", ".2f"),
)
"""Every metric, in the order of the tables. None in a result means that the metric does not exist there."""

SEQUENCE_HEAD = ("sequence", "frames", "path, m", "parts", *(metric.title for metric in SEQUENCE_METRICS))
"""Heads of the columns of :func:`sequence_rows`."""

MEAN = "mean"

SUMMARY_HEAD = ("metric", MEAN, "least", "most")
"""Heads of the columns of :func:`summary_rows`."""

_EXPLAINED = (
    "ATE after rigid alignment, and after a similarity; RPE, end, drift and depth without any. Drift: the error of the "
    "motion from the first frame to the last, in percent of the path. Accuracy: from the map to the true surfaces; "
    "completeness: from these to the map; distances above 0.5 m count as that. Time is that of the mapper alone."
)


def sequence_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """Return the table of a record: a row per sequence, and their mean if there are several."""
    results = record["results"]
    rows = [
        [name, str(found["frames"]), f"{found['length']:.1f}", str(found["submaps"]), *shown_values(found["metrics"])]
        for name, found in results.items()
    ]
    if len(results) > 1:
        frames, length = (sum(found[key] for found in results.values()) / len(results) for key in ("frames", "length"))
        rows.append([MEAN, f"{frames:.0f}", f"{length:.1f}", "", *shown_values(record["mean"])])
    return rows


def summary_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """Return a row per metric: its mean, and the least and most over the sequences; as :data:`SUMMARY_HEAD` says."""
    rows = []
    for metric in SEQUENCE_METRICS:
        values = [found["metrics"][metric.key] for found in record["results"].values()]
        known = [value for value in values if value is not None]
        figures = [record["mean"][metric.key], *((min(known), max(known)) if known else (None, None))]
        shown = [NOTHING if value is None else format(value, metric.form) for value in figures]
        rows.append([metric.title, *shown])
    return rows


def shown_values(values: Mapping[str, Any]) -> list[str]:
    """Return the metrics as a table shows them."""
    return [NOTHING if values[m.key] is None else format(values[m.key], m.form) for m in SEQUENCE_METRICS]


def sequence_table(record: Mapping[str, Any]) -> str:
    """Return the table as Markdown with a line that explains it."""
    align = ["---", *["---:"] * (len(SEQUENCE_HEAD) - 1)]
    return f"{table(SEQUENCE_HEAD, sequence_rows(record), align)}\n\n{described_sequences(record)}. {_EXPLAINED}"


def described_sequences(record: Mapping[str, Any]) -> str:
    """Return what was evaluated, and how it was mapped, in words."""
    count, seed = len(record["results"]), record["seed"]
    walks = "walk" if count == 1 else "walks"
    where = (
        f"1 recorded sequence at {record['size']}"
        if seed is None
        else f"{count} rendered {walks} at {record['size']}, seeds {seed} to {seed + count - 1}"
    )
    given = ", ".join(["images", *record["given"]])
    mapper = ", ".join(f"{name} {value}" for name, value in record["mapper"].items())
    return f"{where}; given {given}; {mapper}"
