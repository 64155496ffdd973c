"""Write a bundle of ONNX stages in float32 or 16 bit: tracing, precision, golden file, and the parity that it shows.

It is what the CPU backends run, and what bundles for a GPU are made from (``gpu.py``).
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from mapengine.runtime import Engine
from mapengine.runtime.backend_table import BACKENDS_BY_FORMAT, BACKENDS_BY_NAME
from mapengine.runtime.backends.host_pipeline import Pipeline
from mapengine.runtime.backends.libraries import installed_version
from mapengine.runtime.backends.onnxruntime import OnnxRuntimeBackend
from mapengine.runtime.backends.registry import available_backends
from mapengine.runtime.bundle.backend_info import BackendInfo
from mapengine.runtime.bundle.build_record import Parity, Tolerance
from mapengine.runtime.bundle.manifest import (
    STAGES,
    Golden,
    KeyShare,
    Manifest,
    ModelInfo,
    Quantization,
    ReducedPrecision,
    StageSpec,
    TensorSpec,
)
from mapengine.runtime.bundle.requests import ServedRequests
from mapengine.runtime.bundle.store import Bundle, BundleWriter
from mapengine.runtime.checks.golden import pack
from mapengine.runtime.checks.parity import Predictions

from ..graphs.processors import rewrite_for_processors
from ..graphs.tracing import AttentionExport, ExportedStage, export_added_stages, export_stages
from ..model.checkpoint import parameter_count
from ..model.config import AggregatorConfig
from ..model.reference import MapAnything
from ..precision import LoweredStage, load_runnable, lower_precision, measure_magnitudes
from ..quantization import QuantizedNetwork
from ..quantization.stages import write_quantized
from .compilers import Report
from .parity_cases import GOLDEN, Views, parity_cases
from .recipe import GraphRecipe
from .references import ReferencePredictions

_TIGHTEST = 8
"""Tensors with the least room in FP16's range that the manifest lists."""


@dataclass(frozen=True)
class Graphs:
    """The four stages of the network as files, in running order.

    Attributes:
        reduced: what writing 16 bit into them found; None for float32. quantization: None but for int8 and fp8.
    """

    stages: tuple[ExportedStage | LoweredStage, ...]
    reduced: ReducedPrecision | None
    quantization: Quantization | None = None


def write_graphs(
    model: MapAnything | QuantizedNetwork,
    folder: Path,
    *,
    precision: str,
    attention: AttentionExport,
    origin: Mapping[str, str],
    report: Report,
    mha_layers: Collection[str] = (),
) -> Graphs:
    """Write ``<stage>.onnx`` into ``folder``, with ``origin`` as metadata of each file.

    For 16 bit the network is run over the parity cases first, and what comes near the end of FP16's range stays in
    float32 (a bf16 engine has parts in FP16 too).

    Args:
        model: whose stages are written; or, for int8 and fp8, the network and how it rounds.
        folder: existing folder to write into.
        precision: of the files: ``"fp32"``, ``"fp16"`` or ``"bf16"``; of a quantised network what is not in 8 bits.
        attention: see :data:`mapengine.export.graphs.tracing.AttentionExport`.
        origin: see :func:`model_metadata`.
        report: called with a line per step.
        mha_layers: names of attention modules that are ``mha`` whatever ``attention`` says.
    """

    def export(network: MapAnything, into: Path) -> tuple[ExportedStage, ...]:
        return tuple(
            export_stages(
                network,
                into,
                attention=attention,
                mha_layers=mha_layers,
                metadata=origin,
                progress=lambda name: report(f"exporting {name}"),
            )
        )

    def lower(full: Sequence[ExportedStage | LoweredStage], into: Path) -> list[LoweredStage]:
        network = model.network if isinstance(model, QuantizedNetwork) else model
        return _lower(full, into, precision, network.data_norm_type, report)

    if isinstance(model, QuantizedNetwork):
        stages, quantization, sources = write_quantized(
            model, folder, export, None if precision == "fp32" else lower, report
        )
        return Graphs(stages, _reduced([s for s in sources if isinstance(s, LoweredStage)]), quantization)
    if precision == "fp32":
        return Graphs(export(model, folder), None)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        lowered = lower(export(model, Path(scratch)), folder)
    return Graphs(tuple(lowered), _reduced(lowered))


def _lower(
    full: Sequence[ExportedStage | LoweredStage], folder: Path, precision: str, norm_type: str, report: Report
) -> list[LoweredStage]:
    """Write the float32 stages in 16 bit."""
    report("measuring the magnitudes of all tensors")
    magnitudes = measure_magnitudes(
        {stage.name: stage.path for stage in full}, parity_cases(norm_type), data_norm_type=norm_type
    )
    lowered = []
    for stage in full:
        report(f"writing {stage.name} in {precision}")
        lowered.append(
            lower_precision(
                stage.path,
                folder / stage.path.name,
                stage=stage.name,
                precision=precision,  # type: ignore[arg-type]
                magnitudes=magnitudes[stage.name],
            )
        )
    return lowered


def write_onnx_bundle(recipe: GraphRecipe, writer: BundleWriter, report: Report) -> Bundle:
    """Fill ``writer`` with the stages, the golden file and the manifest, and check them.

    Args:
        recipe: of :func:`.recipe.decide_graphs`.
        writer: of :func:`mapengine.runtime.bundle.store.write_bundle`.
        report: called with a line per step.

    Returns:
        The bundle in the writer's folder, with the measured parity.

    Raises:
        ExportError: a stage could not be written.
        ParityError: the written stages are not as near to the reference as the recipe says.
    """
    model, reference = recipe.model, recipe.reference
    graphs = write_graphs(
        recipe.quantized or model,
        writer.folder,
        precision=recipe.stored,
        attention=recipe.attention,
        origin=model_metadata(model, recipe.weights_sha256),
        report=report,
        mha_layers=recipe.mha_layers,
    )
    around = export_added_stages(
        writer.folder,
        model.data_norm_type,
        metadata=model_metadata(model, recipe.weights_sha256),
        progress=lambda name: report(f"exporting {name}"),
    )
    backends = BACKENDS_BY_FORMAT["onnx"]
    if recipe.rounded_by_backend:
        assert recipe.backend is not None
        backends = (recipe.backend,)
    if recipe.rewritten_for_processors:
        report("rewriting the stages for processors")
        graphs = _for_processors(graphs)
    manifest = Manifest(
        created_by=metadata.version("mapengine"),
        tools=_tool_versions(),
        model=_model_info(model, recipe.weights_sha256),
        precision=recipe.precision,
        reduced_precision=None if recipe.precision == "fp32" else graphs.reduced or ReducedPrecision(),
        quantization=None if graphs.quantization is None else replace(graphs.quantization, rest=recipe.rest),
        attention=recipe.attention,
        key_shares=_key_shares(model.config.aggregator),
        format="onnx",
        backends=_backends(backends),
        requests=recipe.requests,
        stages={stage.name: _stage_spec(stage, writer, recipe.requests) for stage in (*graphs.stages, *around)},
        golden=_golden(writer, reference.inputs[GOLDEN], reference[GOLDEN], recipe.tolerance),
    )
    bundle = writer.write_manifest(manifest)
    if recipe.backend is None:
        report("checking the graphs with onnxruntime")
        engine = open_graphs(bundle)
    else:
        report(f"checking the engine with {recipe.backend}")
        engine = Engine.load(bundle, recipe.backend, verify=False)
    engine.verify()
    report("measuring parity with PyTorch")
    return writer.write_manifest(replace(manifest, parity=reference.parity(engine, engine.where)))


def _for_processors(graphs: Graphs) -> Graphs:
    """Rewrite the graphs for processors, and count their products anew."""
    record = graphs.quantization
    for stage in graphs.stages:
        more = rewrite_for_processors(stage.path, stage.name)
        if record is not None and more and not record.weights_only:
            products = {**record.products, stage.name: record.products[stage.name] + more}
            record = replace(record, products=products)
    return replace(graphs, quantization=record)


def open_graphs(bundle: Bundle) -> Engine:
    """Open an engine on ONNX Runtime that computes what the graphs of a bundle say, in every precision.

    On its own ONNX Runtime's CPU computes most of a 16-bit graph in float32; here it rounds where the graph does, see
    :func:`mapengine.export.precision.rounded_graphs.runnable`. The folder of the bundle must be writable for a moment.
    """
    library = OnnxRuntimeBackend()
    if bundle.manifest.precision != "fp32":
        library.device += f", {bundle.manifest.precision} emulated"
    stages = {name: load_runnable(library, name, bundle.stage_path(name), bundle.folder) for name in STAGES}
    return Engine(bundle, library, Pipeline(stages))


def measure(engine: Engine, model: MapAnything) -> Parity:
    """Measure how far an engine is from the PyTorch reference, over the parity cases that it serves."""
    return ReferencePredictions(model, engine.manifest.requests).parity(engine, engine.where)


def model_metadata(model: MapAnything, weights_sha256: str) -> dict[str, str]:
    """Return what every exported file says of its origin."""
    return {
        "mapengine.version": metadata.version("mapengine"),
        "mapengine.model": model.model_id,
        "mapengine.revision": model.revision or "",
        "mapengine.weights_sha256": weights_sha256,
    }


def _reduced(lowered: Sequence[LoweredStage]) -> ReducedPrecision:
    room = sorted((entry for stage in lowered for entry in stage.headroom), key=lambda entry: entry.factor)
    kept = tuple(f"{stage.name}: {module}" for stage in lowered for module in stage.kept_layers)
    return ReducedPrecision(kept, tuple(room[:_TIGHTEST]))


def _golden(writer: BundleWriter, views: Views, predictions: Predictions, limits: Mapping[str, float]) -> Golden:
    tolerance = {}
    for key, value in predictions[0].items():
        if value.dtype.kind == "f":
            limit = limits[key]
            largest = max(float(np.abs(prediction[key]).max()) for prediction in predictions)
            tolerance[key] = Tolerance(atol=limit * largest, rtol=limit)
    return Golden(writer.golden(pack(views, predictions)), tolerance)


def _model_info(model: MapAnything, weights_sha256: str) -> ModelInfo:
    config = model.config
    return ModelInfo(
        id=model.model_id,
        revision=model.revision,
        config=config.source,
        weights_sha256=weights_sha256,
        parameters=parameter_count(config),
        data_norm_type=config.data_norm_type,
        embed_dim=config.image_encoder.block.dim,
        dim=config.aggregator.block.dim,
        extra_tokens=int(config.use_class_token),
    )


def _key_shares(config: AggregatorConfig) -> tuple[KeyShare, ...]:
    shares = dict(config.key_shares)
    return tuple(KeyShare(block, shares.get(block, 1.0)) for block in range(0, config.depth, 2)) if shares else ()


def _stage_spec(stage: ExportedStage | LoweredStage, writer: BundleWriter, requests: ServedRequests) -> StageSpec:
    def specs(tensors: Sequence[Any]) -> tuple[TensorSpec, ...]:
        return tuple(t if isinstance(t, TensorSpec) else TensorSpec(t.name, t.dtype, t.axes) for t in tensors)

    return StageSpec(
        file=writer.record(stage.path.name),
        inputs=specs(stage.inputs),
        outputs=specs(stage.outputs),
        data=() if stage.data_path is None else (writer.record(stage.data_path.name),),
        opset=stage.opset,
        optimization_profiles=({"views": requests.views},) if stage.name == "aggregator" else (),
    )


def _backends(names: Sequence[str]) -> tuple[BackendInfo, ...]:
    installed = available_backends()
    oldest = {name: BACKENDS_BY_NAME[name].minimum_version for name in names}
    return tuple(
        BackendInfo(name, installed_version(name) if name in installed else oldest[name], oldest[name])
        for name in names
    )


def _tool_versions() -> dict[str, str]:
    versions = {name: metadata.version(name) for name in ("torch", "onnx", "onnxscript", "numpy")}
    return {"python": platform.python_version(), **versions}
