"""``mapengine export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import Steps
from .options import Attention, AttentionOption, Model, Revision, import_export
from .tables import StageRow, show_stages


def export(
    model: Model,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder for the ONNX files; new, empty or an older export.")
    ],
    attention: AttentionOption = Attention.auto,
    revision: Revision = None,
) -> None:
    """Write MODEL as four ONNX files, one per stage.

    The number of views and the image size stay dynamic. `mapengine build` does this too; the files alone are for
    other tools, such as trtexec or Netron.

    \b
    Example:
      mapengine export preset:tiny build/onnx --attention matmul
    """
    from mapengine.runtime.files import atomic_folder
    from mapengine.runtime.manifest import STAGES

    known = {f"{stage}.onnx{suffix}" for stage in STAGES for suffix in ("", ".data")}
    _check_folder(out, known)
    package = import_export()
    with Steps() as step:
        step(f"loading {model}")
        network = package.load_model(model, revision)
        with atomic_folder(out, stale=known) as folder:
            stages = package.export_stages(
                network,
                folder,
                attention="mha" if attention is Attention.auto else attention.value,
                metadata=package.build.model_metadata(network, network.weights_hash()),
                progress=lambda name: step(f"exporting {name}"),
            )
    show_stages(
        StageRow(
            stage.name,
            tuple((path.name, (out / path.name).stat().st_size) for path in (stage.path, stage.data_path) if path),
            stage.opset,
            tuple((tensor.name, tensor.axes) for tensor in stage.inputs),
            tuple((tensor.name, tensor.axes) for tensor in stage.outputs),
        )
        for stage in stages
    )
    print(f"Exported {network.model_id} to {out}")


def _check_folder(out: Path, known: set[str]) -> None:
    """Refuse a folder that holds anything but an older export."""
    from mapengine.runtime.errors import OutputError
    from mapengine.runtime.files import output_error

    try:
        others = sorted(entry.name for entry in out.iterdir() if entry.name not in known) if out.is_dir() else []
    except OSError as error:
        raise output_error(out, error) from error
    if others:
        raise OutputError(f"{out}: holds other files ({others[0]}); choose a new or empty folder")
