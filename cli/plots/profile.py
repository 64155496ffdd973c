"""A profile as a picture. It is drawn here because the runtime does without matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mapengine.runtime.profiling.accuracy import pareto

from .figures import FAINT, figure


def draw_profile(record: Mapping[str, Any], path: Path) -> None:
    """Draw time by phase as stacked bars, memory against views, and error against time where it is known.

    There is a bar per contender, size and number of views, and a line of memory per contender and size.

    Raises:
        BackendUnavailableError: matplotlib is not installed.
        OutputError: the picture could not be written.
    """
    accurate = [entry for entry in record["results"] if entry.get("accuracy")]
    panels = 3 if accurate else 2
    height = max(4, 1.2 + 0.24 * len(record["results"]))
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for entry in record["results"]:
        lines.setdefault("{} {}x{}".format(entry["contender"], *entry["size"]), []).append(entry)
    with figure(path, 1, panels, (5.5 * panels, height)) as grid:
        axes = grid[0]
        for label, entries in lines.items():
            known = [entry for entry in entries if entry["peak_process_mb"] is not None]
            sizes = [entry["peak_process_mb"] for entry in known]
            axes[1].plot([entry["views"] for entry in known], sizes, marker="o", markersize=3, label=label)
        if accurate:
            _accuracy(axes[2], record["results"], max(entry["views"] for entry in accurate))
        _phases(axes[0], [(label, entry) for label, entries in lines.items() for entry in entries])
        axes[1].set_xlabel("views")
        axes[1].set_ylabel("peak memory of the process, MB")
        axes[1].set_ylim(bottom=0)
        axes[1].xaxis.get_major_locator().set_params(integer=True)
        axes[1].legend(fontsize=7, frameon=False)


def _phases(axis: Any, entries: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Median seconds of each phase, and what the whole call takes beside them."""
    phases = list(dict.fromkeys(phase for _, entry in entries for phase in entry["phases_s"] or {}))
    rows = range(len(entries))
    ends = [0.0] * len(entries)
    for phase in phases:
        seconds = [(entry["phases_s"] or {}).get(phase, {}).get("p50", 0.0) for _, entry in entries]
        axis.barh(rows, seconds, left=ends, label=phase)
        ends = [end + second for end, second in zip(ends, seconds, strict=True)]
    rest = [max(0.0, entry["end_to_end_s"]["p50"] - end) for (_, entry), end in zip(entries, ends, strict=True)]
    axis.barh(rows, rest, left=ends, color=FAINT, label="not told apart")
    axis.set_yticks(
        rows, [f"{label}, {entry['views']} view{'s'[: entry['views'] - 1]}" for label, entry in entries], fontsize=7
    )
    axis.invert_yaxis()
    axis.set_xlabel("seconds, files to scene (median)")
    axis.legend(fontsize=7, frameon=False)


def _accuracy(axis: Any, results: Sequence[Mapping[str, Any]], views: int) -> None:
    """Error against time at one number of views, with the line of those that nothing beats in both."""
    for entry in results:
        if entry["views"] == views and entry.get("accuracy"):
            point = entry["end_to_end_s"]["p50"], entry["accuracy"]["depth_abs_rel"]
            axis.plot(*point, marker="o", linestyle="none")
            axis.annotate(entry["contender"], point, textcoords="offset points", xytext=(5, 4), fontsize=7)
    front = pareto(results, views)
    seconds = [entry["end_to_end_s"]["p50"] for entry in front]
    axis.plot(seconds, [entry["accuracy"]["depth_abs_rel"] for entry in front], color="grey", linewidth=0.8)
    axis.set_xlim(left=0)
    axis.margins(x=0.3, y=0.3)
    axis.set_xlabel(f"seconds, files to scene (median), {views} views")
    axis.set_ylabel("depth AbsRel, images only")
