"""Evaluations of sequences as a picture: the true and the estimated path of each from above."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mapengine.calibration.sequences.report import described_sequences

from .figures import FAINT, figure

_MOST = 12
_COLUMNS = 4


def draw_sequences(record: Mapping[str, Any], path: Path) -> None:
    """Draw the paths of up to 12 sequences, seen along the axis in which the true one has the least extent.

    Raises:
        BackendUnavailableError: matplotlib is not installed.
        OutputError: the picture could not be written.
    """
    import numpy as np

    results = list(record["results"].items())[:_MOST]
    columns = min(_COLUMNS, len(results))
    rows = math.ceil(len(results) / columns)
    with figure(path, rows, columns, (3.2 * columns + 0.5, 3.2 * rows + 0.5)) as grid:
        for axis, (name, found) in zip(grid.flat, results, strict=False):
            true, estimated = np.array(found["true_path"]), np.array(found["path"])
            across, along = sorted(np.argsort(np.ptp(true, axis=0), kind="stable")[1:])
            for positions, colour, label in ((true, FAINT, "true"), (estimated, "C0", "estimated")):
                width = 3 if label == "true" else 1.2
                axis.plot(positions[:, across], positions[:, along], color=colour, linewidth=width, label=label)
            axis.plot(*estimated[0, [across, along]], "o", color="C2", markersize=4, label="start")
            axis.plot(*estimated[-1, [across, along]], "s", color="C3", markersize=4, label="end")
            axis.set_aspect("equal", adjustable="datalim")
            values = found["metrics"]
            axis.set_title(f"{name}: {found['length']:.0f} m, ATE {values['ate']:.2f} m", fontsize=8)
            axis.tick_params(labelsize=7)
        for axis in grid.flat[len(results) :]:
            axis.set_axis_off()
        grid.flat[0].legend(fontsize=7, frameon=False)
        grid.flat[0].figure.suptitle(f"{record['model']}: {described_sequences(record)}", fontsize=8)
