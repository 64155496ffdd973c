"""Tables of maps of sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mapengine.runtime.profiling.report import table

from .page import Record, origin

_METRICS = (
    ("ate", "ATE, m", ".3f"),
    ("ate_similarity", "ATE, m, scaled", ".3f"),
    ("rpe_metre", "RPE per m, m", ".3f"),
    ("rpe_metre_degrees", "RPE per m, degrees", ".1f"),
    ("end_error", "end, m", ".2f"),
    ("drift_percent", "drift, %", ".1f"),
    ("scale_drift_percent", "scale drift, %", ".0f"),
    ("depth_abs_rel", "depth AbsRel", ".3f"),
    ("map_accuracy", "accuracy, m", ".3f"),
    ("map_completeness", "completeness, m", ".3f"),
    ("located", "located", ".0%"),
)


def sequences(record: Record) -> str:
    """Return how right maps of walks are, what they take, and which bars are met."""
    parts, counts, results = [], record["counts"], record["results"]
    if "windows" in results:
        rows = [_row(name, found, _METRICS) for name, found in results["windows"].items()]
        what = f"{counts['sequences']} held-out walks, the first {counts['frames']} frames of each."
        parts.append(f"{table(['windows', *(title for _, title, _ in _METRICS)], rows)}\n\n{what}")
    if "keyframes" in results:
        columns = (*_METRICS, ("keyframes", "keyframes", ".0%"), ("cpu_seconds", "seconds a frame", ".3f"))
        rows = [_row(name, found, columns) for name, found in results["keyframes"].items()]
        what = f"{counts['slow']} held-out walks of a slow camera, {counts['slow_frames']} frames of each."
        parts.append(f"{table(['keyframes', *(title for _, title, _ in columns)], rows)}\n\n{what}")
    if "loops" in results:
        parts.append(_loops(results["loops"], counts["walk"]))
    if "places" in results:
        parts.append(_places(results["places"], counts["places"]))
    if "growth" in record["results"]:
        rows = [
            [frames, f"{found['peak_mb']:.0f} MB", *(f"{1000 * found[key]:.0f} ms" for key in _TIMES)]
            for frames, found in record["results"]["growth"].items()
        ]
        head = ["frames", "peak memory", "processor time per frame", "the first tenth", "the last tenth"]
        parts.append(table(head, rows))
    if record["bars"]:
        rows = [
            [bar["bar"], f"{bar['value']:.2f}", f"{bar['most']:.2f}", "met" if bar["met"] else "missed"]
            for bar in record["bars"]
        ]
        parts.append(table(["bar", "measured", "at most", ""], rows))
    parts.append(
        f"`{record['model']}`, {record['precision']}, images and intrinsics given, {record['size']}, seeds from "
        f"{record['seed']}, windows of {record['window']} with {record['overlap']} shared. Means, ± standard error. "
        f"One thread beside other work on {origin(record)}"
    )
    return "\n\n".join(parts)


def _row(name: str, found: dict[str, Any], columns: Sequence[tuple[str, str, str]]) -> list[str]:
    """Return the means of one way to map, the first with its standard error."""
    spread, values = found["ate_standard_error"], found["metrics"]
    shown = ["-" if values[key] is None else format(values[key], form) for key, _, form in columns]
    shown[0] += "" if spread is None else f" ± {spread:.3f}"
    return [name, *shown]


def _loops(results: Record, frames: int) -> str:
    """Return the table of whole closed walks."""
    rows = []
    for name, found in results.items():
        values, off = found["metrics"], "-"
        if found["loop_degrees"] is not None:
            off = f"{found['loop_degrees']:.1f}°, {found['loop_metres']:.2f} m"
        on = name.startswith("with loops")
        shown = [f"{values[key]:.2f}" for key in ("closing", "ate_of_all", "ate", "end_error")]
        loops = [str(found[key]) if on else "-" for key in ("loops", "wrong", "believed", "closed")]
        rows.append([name, str(found["sequences"]), *shown, *loops, off])
    head = ["whole walks", "walks", "end to start, m", "ATE of all, m", "ATE of the largest submap, m", "its end, m"]
    head += ["loops that passed", "of them wrong", "believed", "walks closed", "a loop is off by"]
    return f"{table(head, rows)}\n\nClosed held-out walks of {frames} frames."


def _places(found: Record, walks: int) -> str:
    """Return what is recognised, in words."""
    again = max(found["seen_again"], 1)
    return (
        f"Places, {walks} walks: {found['seen_again']} of the {found['frames']} frames that are kept see one again "
        f"(30 % of their pixels). For {found['first_right'] / again:.0%} of these the best candidate is right, for "
        f"{found['any_right'] / again:.0%} one of two; {found['wrong']} of all {found['candidates']} candidates share "
        "less than 5 % with their frame, which the check has to find out."
    )


_TIMES = ("cpu_seconds_per_frame", "first_tenth", "last_tenth")
