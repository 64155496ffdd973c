"""``mapengine build``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import Steps
from .options import (
    Attention,
    AttentionOption,
    BackendName,
    Model,
    Precision,
    Revision,
    import_export,
    parse_sizes,
    parse_views,
)
from .tables import show_parity


def build(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the bundle; an older bundle is replaced.")],
    precision: Annotated[Precision, typer.Option(help="Number format of the engine.")] = Precision.fp32,
    backend: Annotated[
        BackendName, typer.Option(help="Backend that the build is checked with; the files serve both.")
    ] = BackendName.onnxruntime,
    views: Annotated[
        str, typer.Option(metavar="FEWEST:USUAL:MOST", help="How many views one call may have.")
    ] = "1:4:32",
    resolution: Annotated[
        str,
        typer.Option(metavar="all|WxH,...", help="Image sizes to serve: all (sides up to 518), or a list of sizes."),
    ] = "all",
    attention: AttentionOption = Attention.auto,
    revision: Revision = None,
) -> None:
    """Build an engine bundle from MODEL, and check it.

    The parity with PyTorch is measured, printed and kept in the bundle.

    \b
    Example:
      mapengine build facebook/map-anything-apache build/engine --views 1:8:64
      mapengine build preset:tiny build/engine --resolution 518x392,392x518
    """
    from mapengine.runtime.bundle import files_of_old_bundle

    counts, sizes = parse_views(views, "--views"), parse_sizes(resolution, "--resolution")
    package = import_export()
    files_of_old_bundle(out)  # refused before a model is loaded
    with Steps() as step:
        step(f"loading {model}")
        network = package.load_model(model, revision)
        manifest = package.build_engine(
            network,
            out,
            precision=precision.value,
            backend=backend.value,
            views=counts,
            resolutions=sizes,
            attention=attention.value,
            progress=step,
        )
    print(f"\nParity of {backend.value} with PyTorch, float32:\n")
    show_parity(manifest.parity)
    print(f"Built {manifest.model.id} ({manifest.precision}) in {out}")
