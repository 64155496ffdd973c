"""``mapengine plot``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mapengine.runtime.errors import InputError
from mapengine.runtime.writing.output_checks import InputPaths

from ..outputs import check_files
from ..plots.profile import PLOT, check_plots
from ..plots.profile import plot as draw


def plot(
    record: Annotated[Path, typer.Argument(metavar="FILE.json", help="What `mapengine profile --json` wrote.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="PNG", help="Where to draw it; beside the record if not given."),
    ] = None,
) -> None:
    """Draw a record of `mapengine profile` again.

    Time by phase as stacked bars, memory against views, and accuracy against time where it was measured.

    \b
    Example:
      mapengine plot build/profile.json --out build/profile.png
    """
    target = out or record.with_suffix(".png")
    check_plots()
    document = _read(record)
    check_files({"--out": (target, PLOT)}, InputPaths([record], []))
    try:
        draw(document, target)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(f"{record}: is no whole record of `mapengine profile`; measure again") from error
    print(f"Wrote {target}")


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; check the path") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is no JSON; give what `mapengine profile --json` wrote") from error
    kind = document.get("benchmark") if isinstance(document, dict) else None
    if kind != "profile":
        what = f"a record of {kind}" if isinstance(kind, str) else "no record"
        raise InputError(f"{path}: is {what[:60]}, and only those of `mapengine profile` are drawn")
    return dict(document)
