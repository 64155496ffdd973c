"""Evaluations as a picture: the error of each task, and what each precision changes of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mapengine.calibration.evaluation.report import BASELINE, described
from mapengine.calibration.evaluation.scoring import METRICS

from .figures import figure

_SHOWN = [
    metric for metric in METRICS if metric.key in ("depth_abs_rel", "ray_degrees", "rotation_degrees", "points_abs_rel")
]
"""Errors, where less is better, of depth, cameras, poses and points."""


def draw_evaluations(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the errors of each record by task, and below, how far they are from those of the first record.

    Bars are two standard errors, in records that know them. A task or metric that a record lacks is left out.

    Raises:
        BackendUnavailableError: matplotlib is not installed.
        OutputError: the picture could not be written.
    """
    tasks = list(dict.fromkeys(task for record in records for task in record["results"]))
    labels = _labels(records)
    rows = 2 if len(records) > 1 else 1
    height = 1.6 + 0.24 * len(tasks)
    with figure(path, rows, len(_SHOWN), (3.4 * len(_SHOWN) + 1, rows * height)) as grid:
        for column, metric in enumerate(_SHOWN):
            axis = grid[0][column]
            for index, record in enumerate(records):
                found = [(place, _error(record, task, metric.key)) for place, task in enumerate(tasks)]
                known = [(place + _offset(index, len(records)), value) for place, value in found if value is not None]
                _dots(axis, known, f"C{index}", labels[index])
            _baseline(axis, records[0], tasks, metric.key)
            _logarithmic(axis)
            axis.set_xlabel(f"{metric.title} (logarithmic)", fontsize=8)
            if rows == 2:
                _changes(grid[1][column], records, tasks, metric.key)
                grid[1][column].set_xlabel(f"{metric.title}, change in %", fontsize=8)
            for row in range(rows):
                named = tasks if column == 0 else [""] * len(tasks)
                grid[row][column].set_yticks(range(len(tasks)), named, fontsize=7)
                grid[row][column].set_ylim(len(tasks) - 0.5, -0.5)
        legend = grid[0][0].legend(fontsize=7, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=6)
        legend.set_in_layout(False)  # it reaches over the next panels, and would make this one narrow
        grid[0][-1].set_title(described(records[0]), fontsize=8, loc="right")
        if rows == 2:
            grid[1][0].set_title(f"against {labels[0]}; bars: two standard errors", fontsize=8, loc="left")


def _labels(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What tells the records apart, in as few words as that needs."""
    for parts in (("precision",), ("model", "precision")):
        labels = [", ".join(str(record[part]) for part in parts) for record in records]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{number}: {label}" for number, label in enumerate(labels, 1)]


def _error(record: Mapping[str, Any], task: str, key: str) -> float | None:
    value = record["results"].get(task, {"metrics": {}})["metrics"].get(key)
    return float(value) if value is not None and math.isfinite(value) and value > 0 else None


def _offset(index: int, count: int) -> float:
    """How far from the middle of its line a record's mark stands, so that equal ones do not hide each other."""
    return 0.6 * ((index + 0.5) / count - 0.5)


def _logarithmic(axis: Any) -> None:
    """A logarithmic scale whose ticks are 1, 2 and 5, in plain figures."""
    from matplotlib import ticker

    axis.set_xscale("log")
    axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axis.xaxis.set_minor_locator(ticker.NullLocator())
    axis.tick_params(axis="x", labelsize=7)


def _dots(axis: Any, points: Sequence[tuple[float, float]], colour: str, label: str) -> None:
    places, values = [place for place, _ in points], [value for _, value in points]
    axis.plot(values, places, marker="o", markersize=4, linestyle="none", color=colour, label=label)


def _baseline(axis: Any, record: Mapping[str, Any], tasks: Sequence[str], key: str) -> None:
    points = []
    for place, task in enumerate(tasks):
        views = record["results"].get(task, {}).get("views")
        value = record["baseline"].get(str(views), {"metrics": {}})["metrics"].get(key)
        if value:
            points.append((place, value))
    axis.plot([v for _, v in points], [p for p, _ in points], "|", color="grey", markersize=8, label=BASELINE)


def _changes(axis: Any, records: Sequence[Mapping[str, Any]], tasks: Sequence[str], key: str) -> None:
    """Errors of the later records in percent of the first's."""
    axis.axvline(0, color="grey", linewidth=0.8)
    for index, record in enumerate(records[1:], 1):
        for place, task in enumerate(tasks):
            before, after = _error(records[0], task, key), _error(record, task, key)
            if before is None or after is None:
                continue
            spread = record.get("kept_errors", {}).get(task, {}).get(key)
            axis.errorbar(
                100 * (after / before - 1),
                place + _offset(index, len(records)),
                xerr=None if spread is None else 200 * spread,
                marker="o",
                markersize=4,
                color=f"C{index}",
                linewidth=0.8,
            )
    axis.tick_params(axis="x", labelsize=7)
