"""``mapengine build``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mapengine.runtime.backend_table import BACKENDS, CPU_BACKENDS, NAMES, PRECISIONS
from mapengine.runtime.bundle.manifest import ATTENTIONS, Manifest
from mapengine.runtime.bundle.store import files_of_old_bundle
from mapengine.runtime.system.sizes import parse_bytes, parse_view_counts
from mapengine.runtime.writing.output_checks import InputPaths

from ...console import Steps, say
from ...extras import needs
from ...options import (
    BuildAttentionOption,
    Rest,
    Revision,
    one_of,
    parse_sizes,
    value_of,
)
from ...outputs import check_folder
from ...tables import show_layers, show_parity, show_precision, show_quantization

_VIEWS = "1:4:32"


def _built_for() -> str:
    """Which backends have the precisions that not all have."""
    built = {name: [spec.name for spec in BACKENDS if name in spec.precisions] for name in PRECISIONS}
    partial = {name: names for name, names in built.items() if len(names) < len(BACKENDS)}
    return "; ".join(f"{name} is for {', '.join(names)}" for name, names in partial.items()) + "."


def build(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A Hugging Face Hub id (facebook/map-anything-apache), a folder in upstream's format, a weight file "
            "with config.json beside it, a preset (preset:nano is trained; preset:tiny and preset:giant are random), "
            "or, for a backend on a GPU, a bundle of ONNX stages that was built before.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the bundle; an older bundle is replaced.")],
    precision: Annotated[
        str | None,
        typer.Option(
            **one_of(PRECISIONS),
            help=f"Number format of the engine; fp32 if not given. {_built_for()}",
            show_default=False,
        ),
    ] = None,
    backend: Annotated[
        str,
        typer.Option(
            **one_of(NAMES),
            help=f"What the bundle is for: {'; '.join(f'{spec.name}, {spec.what}' for spec in BACKENDS)}. Bundles of "
            f"{' and '.join(CPU_BACKENDS)} serve both; the one that is named checks the build.",
        ),
    ] = "onnxruntime",
    views: Annotated[
        str | None,
        typer.Option(
            metavar="FEWEST:USUAL:MOST",
            help=f"How many views one call may have; {_VIEWS} if not given.",
            show_default=False,
        ),
    ] = None,
    resolution: Annotated[
        str | None,
        typer.Option(
            metavar="all|WxH,...",
            help="Image sizes to serve: all (sides up to 518), or a list of sizes. By default all, or for a preset the "
            "sizes that it was trained at.",
            show_default=False,
        ),
    ] = None,
    attention: BuildAttentionOption = "auto",
    revision: Revision = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="sm_89,...",
            help="GPUs to compile for, as compute capabilities (tensorrt-rtx only).",
            show_default=False,
        ),
    ] = None,
    memory_limit: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Most workspace of a TensorRT kernel, such as 4GiB.", show_default=False),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="For int8 and fp8: what `mapengine calibrate` wrote. Without it the model is calibrated with rendered "
            "views.",
            show_default=False,
        ),
    ] = None,
    weights_only: Annotated[
        bool,
        typer.Option(
            "--weights-only",
            help="For int8: store weights in 8 bits and multiply in what the rest is. Nothing is calibrated.",
        ),
    ] = False,
    rest: Annotated[
        Rest | None,
        typer.Option(
            help="For int8 with openvino: what is not in 8 bits. bf16 is faster on processors that have it; fp32 if "
            "not given.",
            show_default=False,
        ),
    ] = None,
    optimization_level: Annotated[
        int | None,
        typer.Option(
            min=0, max=5, metavar="0..5", help="How long TensorRT searches for fast kernels.", show_default=False
        ),
    ] = None,
) -> None:
    """Build an engine bundle from MODEL, and check it.

    The parity with PyTorch is measured, printed and kept in the bundle.

    \b
    Example:
      mapengine build facebook/map-anything-apache build/engine --views 1:8:64
      mapengine build preset:tiny build/engine --resolution 518x392,392x518
      mapengine build preset:tiny build/engine --attention native:kv=0.25@2,4
      mapengine build preset:tiny build/engine --backend tensorrt-rtx --precision fp16
      mapengine build build/onnx build/engine --backend tensorrt
      mapengine build build/onnx build/engine --backend tensorrt-rtx --attention int8
      mapengine build preset:tiny build/engine --precision int8 --calibration build/calibration.json
      mapengine build preset:nano build/engine --precision int8 --backend openvino --rest bf16
      mapengine build preset:nano build/engine --backend tensorrt-rtx --precision int8 --weights-only
    """
    from mapengine.export.options import PlanSettings

    with value_of("--views"):
        counts = parse_view_counts(_VIEWS if views is None else views)
    sizes = None if resolution is None else parse_sizes(resolution, "--resolution")
    with value_of("--memory-limit"):
        limit = None if memory_limit is None else parse_bytes(memory_limit)
    bundled = (Path(model) / "manifest.json").is_file()
    if weights_only and precision != "int8" and not bundled:
        raise typer.BadParameter("it is for int8; give --precision int8 too", param_hint="--weights-only")
    if weights_only and calibration is not None:
        raise typer.BadParameter("it is for activations, which --weights-only leaves", param_hint="--calibration")
    read = InputPaths([model, *([] if calibration is None else [calibration])], [model] if bundled else [])
    check_folder(out, "engine bundle", read, ours=files_of_old_bundle)  # refused before a model is loaded
    settings = PlanSettings(
        tuple(part.strip() for part in target.split(",")) if target else (), limit, optimization_level
    )
    with Steps() as step:
        if bundled:
            fixed: dict[str, object] = {
                "--precision": precision,
                "--views": views,
                "--resolution": resolution,
                "--revision": revision,
                "--calibration": calibration,
                "--rest": rest,
                "--weights-only": weights_only or None,
                "--attention": attention if attention in ATTENTIONS else None,
            }
            _refuse(fixed, model)
            with needs("compile"):
                from mapengine.export.compile import compile_engine
            manifest = compile_engine(
                model,
                out,
                backend=backend,
                attention=attention,
                settings=settings,
                progress=step,
                fraction=step.part,
            )
        else:
            with needs("export"):
                from mapengine.export.build import build_engine
                from mapengine.export.model.presets import native_sizes
                from mapengine.export.model.reference import load_model
            step(f"loading {model}")
            network = load_model(model, revision)
            manifest = build_engine(
                network,
                out,
                precision=precision or "fp32",
                backend=backend,
                views=counts,
                resolutions=native_sizes(network.model_id) if sizes is None else sizes,
                attention=attention,
                calibration=calibration,
                settings=settings,
                rest=None if rest is None else rest.value,
                weights_only=weights_only,
                progress=step,
                fraction=step.part,
            )
    _show(manifest)
    print(f"Built {manifest.model.id} ({manifest.precision}) in {out}")


def _refuse(options: dict[str, object], bundle: str) -> None:
    """Options that the source bundle has decided already."""
    for name, value in options.items():
        if value is not None:
            raise typer.BadParameter(f"{bundle} is a bundle, which has its own; leave it out", param_hint=name)


def _show(manifest: Manifest) -> None:
    print()
    if manifest.format == "plan":
        show_layers(manifest)
    show_precision(manifest)
    show_quantization(manifest)
    if manifest.parity is not None:
        say(f"Parity with PyTorch in float32, of {manifest.parity.measured_with}:\n")
        show_parity(manifest.parity)
