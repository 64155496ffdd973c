"""What all plots share: matplotlib, found and set up, and the picture written in one step."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mapengine.runtime.errors import BackendUnavailableError
from mapengine.runtime.writing.files import atomic_write
from mapengine.runtime.writing.recognition import marker

PLOT = "plot"
"""What the picture of any record is marked as, so that one may replace another."""
FAINT = "lightgrey"


def check_plots() -> None:
    """Refuse to plot without matplotlib; before anything is measured.

    Raises:
        BackendUnavailableError: it is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise BackendUnavailableError("plots need matplotlib; run: pip install 'mapengine[viz]'")


@contextmanager
def figure(path: Path, rows: int, columns: int, size: tuple[float, float]) -> Iterator[Any]:
    """Give axes (rows, columns) to draw on, and write them to ``path`` as a PNG.

    Args:
        size: width and height in inches, of 110 pixels.

    Raises:
        BackendUnavailableError: matplotlib is not installed.
        OutputError: the picture could not be written.
    """
    check_plots()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn, axes = pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    try:
        yield axes
        for axis in axes.flat:
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
        with atomic_write(path, PLOT) as temporary:
            drawn.savefig(temporary, format="png", dpi=110, metadata={"Software": marker(PLOT)})
    finally:
        pyplot.close(drawn)
