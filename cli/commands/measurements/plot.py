"""``mapengine plot``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mapengine.runtime.writing.output_checks import InputPaths

from ...outputs import check_files
from ...plots.figures import PLOT, check_plots
from ...plots.records import draw_records


def plot(
    records: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE.json...",
            help="What `mapengine profile`, `eval` or `verify --layers` wrote with --json; several evaluations of "
            "scenes share a picture.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="PNG", help="Where to draw it; beside the first record if not given."),
    ] = None,
) -> None:
    """Draw a record again.

    Of a profile: time by phase as stacked bars, memory against views, and accuracy against time where it was measured.
    Of evaluations: the error of each task, and what the later records change of the first. Of sequences: true and
    estimated paths. Of a comparison of layers: where the precision loses.

    \b
    Example:
      mapengine plot build/profile.json --out build/profile.png
      mapengine plot fp32.json int8.json --out precisions.png
    """
    target = out or records[0].with_suffix(".png")
    check_plots()
    check_files({"--out": (target, PLOT)}, InputPaths(records, []))
    draw_records(records, target)
    print(f"Wrote {target}")
