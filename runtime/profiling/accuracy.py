"""Accuracy beside latency: records of `mapengine eval` joined with those of `mapengine profile`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InputError

FIGURES = ("depth_abs_rel", "rotation_degrees")


_NEEDED = {"model", "weights_sha256", "precision", "where", "size", "results"}


def check_evaluation(record: Any) -> None:
    """Refuse a record that :func:`add_accuracy` cannot use, before anything is timed.

    Raises:
        InputError: no record of `mapengine eval` on rendered scenes.
    """
    fits = isinstance(record, Mapping) and record.keys() >= _NEEDED and isinstance(record["results"], Mapping)
    fits = fits and isinstance(record["where"], str) and all(map(_is_result, record["results"].values()))
    if not fits or (record.get("benchmark"), record.get("data")) != ("evaluation", "rendered"):
        raise InputError("a file is no record of `mapengine eval` on rendered scenes; give one that --json wrote")


def _is_result(task: Any) -> bool:
    if not isinstance(task, Mapping) or type(task.get("scenes")) is not int:
        return False
    figures = task.get("metrics")
    if not isinstance(figures, Mapping):
        return False
    known = [figures[name] for name in FIGURES if figures.get(name) is not None]
    return all(type(value) in (int, float) and 0 <= value < math.inf for value in known)


def add_accuracy(results: Sequence[dict[str, Any]], evaluations: Sequence[Mapping[str, Any]]) -> None:
    """Add to every result the errors that were found for its model, precision and backend, from images alone.

    Args:
        results: of a profile; ``accuracy`` is added: ``scenes`` and :data:`FIGURES`, or None where nobody evaluated
            that number of views.
        evaluations: records of `mapengine eval`.

    Raises:
        InputError: something else than such a record, or one that belongs to none of the results.
    """
    for record in evaluations:
        check_evaluation(record)
    used = [False] * len(evaluations)
    for result in results:
        result["accuracy"] = None
        for index, record in enumerate(evaluations):
            if not _belongs(result, record):
                continue
            used[index] = True
            task = record["results"].get(f"image-only-{result['views']}")
            if task is not None:
                result["accuracy"] = {
                    "scenes": task["scenes"],
                    **{name: task["metrics"].get(name) for name in FIGURES},
                }
    for was_used, record in zip(used, evaluations, strict=True):
        if not was_used:
            what = f"{record['model']} in {record['precision']} with {record['where']}"
            raise InputError(f"an evaluation is of {what}, which was not timed; evaluate what is profiled")


def _belongs(result: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    same = all(record[key] == result.get(key) for key in ("model", "precision", "weights_sha256"))
    size = record["size"] == "{}x{}".format(*result["size"])
    where = record["where"]
    runs_it = where.startswith(f"{result['backend']} ") or (result["kind"] == "pytorch" and where.startswith("PyTorch"))
    return same and size and runs_it


def pareto(results: Sequence[Mapping[str, Any]], views: int) -> list[Mapping[str, Any]]:
    """Return the results at ``views`` that no other beats in both time and error, fastest first."""
    known = [result for result in results if result["views"] == views and result.get("accuracy")]
    known.sort(key=lambda result: (result["end_to_end_s"]["p50"], result["accuracy"]["depth_abs_rel"]))
    front: list[Mapping[str, Any]] = []
    for result in known:
        if not front or result["accuracy"]["depth_abs_rel"] < front[-1]["accuracy"]["depth_abs_rel"]:
            front.append(result)
    return front
