"""``mapengine export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from mapengine.runtime.backend_table import EIGHT_BIT, PRECISIONS
from mapengine.runtime.errors import InputError
from mapengine.runtime.writing.folders import atomic_folder
from mapengine.runtime.writing.output_checks import InputPaths

from ...console import Steps
from ...extras import needs
from ...options import AttentionOption, Model, Revision, one_of, value_of
from ...outputs import check_folder
from ...tables import StageRow, show_stages

if TYPE_CHECKING:
    from mapengine.export.graphs.tracing import AttentionExport

_KIND = "ONNX export"


def export(
    model: Model,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder for the ONNX files; new, empty or an older export.")
    ],
    attention: AttentionOption = "auto",
    precision: Annotated[
        str,
        typer.Option(
            **one_of([name for name in PRECISIONS if name not in EIGHT_BIT]),
            help="Number format that is written into the graphs.",
        ),
    ] = "fp32",
    revision: Revision = None,
) -> None:
    """Write MODEL as five ONNX files, one per stage.

    The number of views and the image size stay dynamic. `mapengine build` does this too; the files alone are for
    other tools, such as trtexec or Netron.

    \b
    Example:
      mapengine export preset:tiny build/onnx --attention matmul --precision fp16
      mapengine export preset:tiny build/onnx --attention matmul:kv=0.25@2,4
    """

    check_folder(out, _KIND, InputPaths([model]))
    with needs("export"):
        from mapengine.export.attention.choice import AttentionChoice
        from mapengine.export.bundles.onnx import model_metadata, write_graphs
        from mapengine.export.graphs.tracing import export_added_stages
        from mapengine.export.model.network.model import with_key_shares
        from mapengine.export.model.reference import load_model
    with value_of("--attention"):
        choice = AttentionChoice.parse(attention)
        if choice.kernels:
            raise InputError(f"attention {attention!r} names kernels, which bundles have; use mapengine build")
    form = cast("AttentionExport", "mha" if choice.form == "auto" else choice.form)
    with Steps() as step:
        step(f"loading {model}")
        network = load_model(model, revision)
        with value_of("--attention"):
            network = with_key_shares(network, choice.key_shares(network.config))
        with atomic_folder(out, _KIND) as folder:
            origin = model_metadata(network, network.weights_hash())
            graphs = write_graphs(network, folder, precision=precision, attention=form, origin=origin, report=step)
            around = export_added_stages(
                folder, network.data_norm_type, metadata=origin, progress=lambda name: step(f"exporting {name}")
            )
            stages = (*graphs.stages, *around)

    def axes(tensors: Any) -> tuple[tuple[str, tuple[int | str, ...]], ...]:
        return tuple((tensor.name, getattr(tensor, "axes", None) or tensor.shape) for tensor in tensors)

    show_stages(
        StageRow(
            stage.name,
            tuple((path.name, (out / path.name).stat().st_size) for path in (stage.path, stage.data_path) if path),
            stage.opset,
            axes(stage.inputs),
            axes(stage.outputs),
        )
        for stage in stages
    )
    print(f"Exported {network.model_id} ({precision}) to {out}")
