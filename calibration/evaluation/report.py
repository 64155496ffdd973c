"""Results as rows and as Markdown; both read the JSON form, so a committed record renders as a fresh result does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mapengine.runtime.profiling.report import table

from .scoring import METRICS

HEAD = ("task", "views", *(metric.title for metric in METRICS))
"""Heads of the columns of :func:`table_rows`."""

NOTHING = "-"
"""Stands for a metric that does not exist."""

BASELINE = "constant depth"

_EXPLAINED = (
    "Depth AbsRel and inliers after median scaling with one factor per scene; metric depth without. Means over scenes; "
    "rotation: the median over all pairs of views. *{baseline}*: the same depth everywhere, no motion, a lens of 75 "
    "degrees."
)


def table_rows(evaluation: Mapping[str, Any]) -> list[list[str]]:
    """Return the table of an evaluation's JSON: the tasks by number of views, the baseline below those of its
    number."""
    rows = []
    results, baseline = evaluation["results"], evaluation["baseline"]
    for views in sorted({result["views"] for result in results.values()}):
        rows += [_row(name, result) for name, result in results.items() if result["views"] == views]
        if str(views) in baseline:
            rows.append(_row(BASELINE, baseline[str(views)]))
    return rows


def markdown_table(evaluation: Mapping[str, Any]) -> str:
    """Return the table as Markdown with a line that explains it; the baseline in italics."""
    rows = [[f"*{row[0]}*" if row[0] == BASELINE else f"`{row[0]}`", *row[1:]] for row in table_rows(evaluation)]
    align = ["---", *["---:"] * (len(HEAD) - 1)]
    return f"{table(HEAD, rows, align)}\n\n{described(evaluation)}. {_EXPLAINED.format(baseline=BASELINE)}"


def described(evaluation: Mapping[str, Any]) -> str:
    """Return what was evaluated on, in words."""
    count, size, seed = evaluation["scenes"], evaluation["size"], evaluation["seed"]
    scenes = "scene" if count == 1 else "scenes"
    if seed is None:
        return f"{count} recorded {scenes} at {size}"
    return f"{count} rendered {scenes} at {size}, seeds {seed} to {seed + count - 1}"


def fewer_scenes(evaluation: Mapping[str, Any]) -> Sequence[str]:
    """Return the tasks that not every scene could serve, with the number of scenes that could."""
    count = evaluation["scenes"]
    results = evaluation["results"].items()
    return [f"{name} on {result['scenes']}" for name, result in results if result["scenes"] != count]


def _row(name: str, result: Mapping[str, Any]) -> list[str]:
    values = result["metrics"]
    shown = (NOTHING if values[m.key] is None else format(values[m.key], m.form) for m in METRICS)
    return [name, str(result["views"]), *shown]
