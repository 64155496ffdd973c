"""A profile as a picture. It is drawn here because the runtime does without matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def plot(record: Mapping[str, Any], path: Path) -> None:
    """Latency and memory against views, one line per contender and size.

    Raises:
        BackendUnavailableError: matplotlib is not installed.
        OutputError: the picture could not be written.
    """
    from mapengine.runtime.errors import BackendUnavailableError
    from mapengine.runtime.files import atomic_write

    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise BackendUnavailableError("plots need matplotlib; run: pip install 'mapengine[viz]'") from None
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for entry in record["results"]:
        lines.setdefault("{} {}x{}".format(entry["contender"], *entry["size"]), []).append(entry)
    for label, entries in lines.items():
        views = [entry["views"] for entry in entries]
        axes[0].plot(views, [entry["end_to_end_s"]["p50"] for entry in entries], marker="o", markersize=3, label=label)
        known = [entry for entry in entries if entry["peak_process_mb"] is not None]
        sizes = [entry["peak_process_mb"] for entry in known]
        axes[1].plot([entry["views"] for entry in known], sizes, marker="o", markersize=3, label=label)
    for axis, what in zip(axes, ("seconds, files to scene (median)", "peak memory of the process, MB"), strict=True):
        axis.set_xlabel("views")
        axis.set_ylabel(what)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=7, frameon=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    pyplot.close(figure)
