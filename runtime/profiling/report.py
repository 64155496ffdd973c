"""Profiles as Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .accuracy import pareto

_HEAD = ("contender", "precision", "views", "size", "p50", "p90", "p99", "min", "CV", "runs", "speed", "memory")
_ACCURACY_HEAD = (
    "contender",
    "precision",
    "views",
    "p50",
    "depth AbsRel",
    "rotation, degrees",
    "scenes",
    "best of its time",
)
NOT_MEASURED = "not measured"


def rows(record: Mapping[str, Any]) -> list[list[str]]:
    """Return a row per contender and configuration; speed is relative to eager PyTorch in float32."""
    result = []
    for entry in record["results"]:
        times = entry["end_to_end_s"]
        base = _baseline(record, entry)
        slow = entry.get("not_faster_than")
        result.append(
            [
                f"`{entry['contender']}`" + (f" **not faster than `{slow}`**" if slow else ""),
                str(entry["precision"]).upper(),
                str(entry["views"]),
                "{}x{}".format(*entry["size"]),
                *(f"{1e3 * times[key]:.1f} ms" for key in ("p50", "p90", "p99", "min")),
                f"{100 * times['cv']:.1f} %",
                str(times["runs"]),
                NOT_MEASURED if base is None else f"{base / times['p50']:.2f}",
                NOT_MEASURED if entry["peak_process_mb"] is None else f"{entry['peak_process_mb']:.0f} MB",
            ]
        )
    return result


def _baseline(record: Mapping[str, Any], entry: Mapping[str, Any]) -> float | None:
    """Return the median of the eager float32 reference in the same configuration."""
    for other in record["results"]:
        same = (other["views"], other["size"]) == (entry["views"], entry["size"])
        if same and other.get("kind") == "pytorch" and other["contender"] == "pytorch":
            return float(other["end_to_end_s"]["p50"])
    return None


def phase_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """Return the median of every phase, its share of the machine's limit, and the times of the GPU."""
    result = []
    for entry in record["results"]:
        for phase, times in entry["phases_s"].items():
            roof = entry.get("roofline", {}).get(phase)
            share = None if roof is None else roof["share"]
            result.append(
                [
                    f"`{entry['contender']}`",
                    f"{entry['views']} of {entry['size'][0]}x{entry['size'][1]}",
                    phase.replace("_", " "),
                    f"{1e3 * times['p50']:.1f} ms",
                    f"{100 * times['p50'] / entry['end_to_end_s']['p50']:.0f} %",
                    "" if roof is None else f"{roof['gflop']:.3g}",
                    "" if roof is None else f"{roof['gflops']:.3g}",
                    "" if roof is None else NOT_MEASURED if share is None else f"{100 * share:.0f} % ({roof['limit']})",
                ]
            )
        for what, times in (entry.get("device_s") or {}).items():
            result.append(
                [
                    f"`{entry['contender']}`",
                    f"{entry['views']} of {entry['size'][0]}x{entry['size'][1]}",
                    f"GPU: {what.replace('_', ' ')}",
                    f"{1e3 * times['p50']:.2f} ms",
                    f"{100 * times['p50'] / entry['end_to_end_s']['p50']:.0f} %",
                    *[""] * 3,
                ]
            )
    return result


def accuracy_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """Return times beside errors of an evaluation, and whether no other result is better in both."""
    result = []
    for views in sorted({entry["views"] for entry in record["results"] if entry.get("accuracy")}):
        front = pareto(record["results"], views)
        for entry in record["results"]:
            if entry["views"] != views or not entry.get("accuracy"):
                continue
            rotation = entry["accuracy"]["rotation_degrees"]
            result.append(
                [
                    f"`{entry['contender']}`",
                    str(entry["precision"]).upper(),
                    str(views),
                    f"{1e3 * entry['end_to_end_s']['p50']:.1f} ms",
                    f"{entry['accuracy']['depth_abs_rel']:.4f}",
                    "" if rotation is None else f"{rotation:.2f}",
                    str(entry["accuracy"]["scenes"]),
                    "yes" if any(entry is best for best in front) else "no",
                ]
            )
    return result


def markdown(record: Mapping[str, Any]) -> str:
    """Return all tables, with phases for the most views only, what was not measured, and the timing boundary."""
    most = max(entry["views"] for entry in record["results"])
    longest = {**record, "results": [entry for entry in record["results"] if entry["views"] == most]}
    parts = [
        table(_HEAD, rows(record)),
        table(("contender", "views", "phase", "p50", "share", "GFLOP", "GFLOP/s", "of the limit"), phase_rows(longest)),
    ]
    if accurate := accuracy_rows(record):
        parts.append(table(_ACCURACY_HEAD, accurate))
    ceilings = record.get("ceilings")
    if ceilings:
        products = ", ".join(
            f"{name.upper()} {NOT_MEASURED if value is None else f'{value:.0f} GFLOP/s'}"
            for name, value in ceilings["gemm_gflops"].items()
        )
        parts.append(f"Limits of this machine: products {products}; copying {ceilings['copy_gbytes']:.1f} GB/s.")
    for entry in record["not_measured"]:
        where = f", {entry['views']} views" if "views" in entry else ""
        parts.append(f"Not measured: `{entry['contender']}`{where}: {entry['why']}.")
    if record.get("ended_early") is not None:
        parts.append(f"Ended early: {record['ended_early']}.")
    parts.append(f"*{record['boundary']}*")
    return "\n\n".join(parts)


def table(head: Sequence[str], lines: Sequence[Sequence[str]], align: Sequence[str] | None = None) -> str:
    """Return a Markdown table; ``align`` is its second row, by default the renderer's choice for every column."""
    rows = [head, align or ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
