"""``mapengine samples``, which ``make engine`` uses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mapengine.calibration.data.samples import SAMPLE_SEED, sample_names, write_samples
from mapengine.runtime.writing.output_checks import check_writable


def samples(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the images and views.json.")],
    views: Annotated[int, typer.Option(min=1, max=8, metavar="N", help="How many views.")] = 4,
    seed: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Another scene than the usual one.", show_default=False),
    ] = None,
) -> None:
    """Write sample images of a rendered scene.

    Beside them, views.json holds their cameras, depth and poses.

    \b
    Example:
      mapengine samples build/samples
      mapengine run build/engine build/samples --preview scene.png
    """

    check_writable(out, "samples", folder=True, names=sample_names(views))
    images = write_samples(out, views, seed=SAMPLE_SEED if seed is None else seed)
    print(f"Wrote {len(images)} views to {out}")
