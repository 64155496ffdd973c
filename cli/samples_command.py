"""``mapengine samples``, which ``make engine`` uses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def samples(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the images and views.json.")],
    views: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="How many views.")] = 3,
) -> None:
    """Write sample images of a made-up room.

    Beside them, views.json holds their cameras, depth and poses.

    \b
    Example:
      mapengine samples build/samples
      mapengine run build/engine build/samples --preview scene.png
    """
    from mapengine.runtime.samples import write_samples

    images = write_samples(out, views)
    print(f"Wrote {len(images)} views to {out}")
