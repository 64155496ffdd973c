"""Tables of what was run on a GPU."""

from __future__ import annotations

from typing import Any

from table_text import origin_text, table


def gpu_test(record: dict[str, Any]) -> str:
    """Result per backend, precision and attention."""
    rows = [
        [
            name,
            figures["status"],
            f"{max(figures['checks'].values()):.0e}" if figures.get("checks") else "none",
            f"{figures['tolerance']:.0e}",
        ]
        for name, figures in record["results"].items()
    ]
    gpu = record["machine"]["gpu"]
    head = ["backend, precision, attention", "result", "largest difference", "allowed"]
    what = (
        f"`{record['model']}` on {gpu['name']} (compute capability {gpu['compute_capability']}, CUDA {gpu['driver']})"
    )
    return f"{table(head, rows)}\n\n{what}. {origin_text(record)}"


def chain(record: dict[str, Any]) -> str:
    """Time per attention and number of views, beside the first attention."""
    first = next(iter(record["results"].values()))
    rows = [
        [
            name,
            views,
            f"{figures['milliseconds']:.2f} ms",
            f"{first[views]['milliseconds'] / figures['milliseconds']:.2f}",
            f"{figures['difference_from_first']:.1e}",
        ]
        for name, results in record["results"].items()
        for views, figures in results.items()
    ]
    head = ["attention", "views", "median", "speed", "difference from native"]
    what = (
        f"Aggregator of `{record['model']}` in FP16, {record['size']}, random features, {record['rounds']} runs, "
        f"{record['machine']['gpu']['name']}. Difference: largest of an output, root mean square, relative"
    )
    return f"{table(head, rows)}\n\n{what}. {origin_text(record)}"
