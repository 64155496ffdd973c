"""Tables of fewer keys in the layers over all views: what they cost, and what they save."""

from __future__ import annotations

from mapengine.calibration.evaluation import METRICS
from mapengine.runtime.profiling.report import table

from .page import Record, origin

_TITLES = {"all": "all", **{metric.key: metric.title.partition(",")[0] for metric in METRICS}}


def kept_keys(record: Record) -> str:
    """Return the part of each error metric that is kept, by choice of keys and task, with standard errors."""
    tasks = list(record["errors"])
    shown = ["all", *record["errors"][tasks[0]]]
    rows = []
    for result in record["results"]:
        for task, figures in result["tasks"].items():
            kept = (f"{100 * figures[m][0] - 100:+.1f} ± {100 * figures[m][1]:.1f}" for m in shown)
            rows.append([f"`{result['choice']}`", *([task] if len(tasks) > 1 else []), *kept])
    head = ["keys", *(["given"] if len(tasks) > 1 else []), *(_TITLES[m] for m in shown)]
    shares = ", ".join(f"{100 * part:.0f} % of the keys with kv={share}" for share, part in record["keys"].items())
    what = (
        f"Change of accuracy in per cent with standard errors, negative where it is lost; *all* is the geometric mean "
        f"of the others. `{record['model']}` in PyTorch on {record['what']}, which were held out; {shares}."
    )
    return f"{table(head, rows)}\n\n{what} {origin(record)}"


def global_attention(record: Record) -> str:
    """Return time and memory with all keys and with fewer, and operations of the whole aggregator."""
    rows = []
    for result in record["results"]:
        every, few = result["all"], result["few"]
        memory = ("-" if side["peak_gb"] is None else f"{side['peak_gb']:.1f} GB" for side in (every, few))
        rows.append(
            [
                str(result["views"]),
                str(result["rounds"]),
                *(_seconds(side, result["rounds"]) for side in (every, few)),
                f"{every['median_s'] / few['median_s']:.2f}",
                *memory,
            ]
        )
    head = [
        "views",
        "rounds",
        "all keys",
        f"`{record['attention']}`",
        "times as fast",
        "memory, all keys",
        "memory, fewer",
    ]
    blocks = f"{record['blocks']} blocks of the aggregator" + (": one pair" if record["blocks"] == 2 else "")
    what = (
        f"{blocks}, of `{record['model']}` with random weights, {record['size']}, {record['backend']}, FP32, "
        "in turn, each in a process of its own."
    )
    timed = f"{table(head, rows)}\n\n{what} {origin(record)}"
    if record["blocks"] > 2:  # what is counted stands beside the pair
        return timed
    counted = [
        [views, f"{every:.1f}", f"{few:.1f}", f"{every / few:.2f}"]
        for views, (every, few) in record["teraflops"].items()
    ]
    counts = table(["views", "all keys", f"`{record['counted']}`", "quotient"], counted)
    return f"{timed}\n\nOperations of the whole aggregator by formula, in 10^12:\n\n{counts}"


def _seconds(side: Record, rounds: int) -> str:
    """Return the median of several calls and their range, or the one call."""
    spread = f" ({side['min_s']:.1f} to {side['max_s']:.1f})" if rounds > 1 else ""
    return f"{side['median_s']:.1f} s{spread}"
