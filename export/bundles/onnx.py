"""Write a bundle of ONNX stages in float32 or 16 bit: tracing, precision, golden file, and the parity that it shows.

It is what the CPU backends run, and what TensorRT plans are compiled from (``plan_bundle.py``).
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mapengine.calibration.ranges import Calibration
from mapengine.runtime import Engine
from mapengine.runtime.backends.host_pipeline import Pipeline
from mapengine.runtime.backends.libraries import installed_version
from mapengine.runtime.backends.onnxruntime import OnnxRuntimeBackend
from mapengine.runtime.backends.registry import available_backends
from mapengine.runtime.backends.table import BACKENDS_BY_FORMAT, BACKENDS_BY_NAME
from mapengine.runtime.bundle.backend_info import BackendInfo
from mapengine.runtime.bundle.build_record import Parity, Tolerance
from mapengine.runtime.bundle.manifest import (
    Golden,
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
from mapengine.runtime.checks.parity import Predictions, measure_parity

from ..graphs.openvino import rewrite_for_openvino
from ..graphs.tracing import AttentionExport, ExportedStage, export_stages
from ..model.checkpoint import parameter_count
from ..model.reference import MapAnything
from ..precision import LoweredStage, load_runnable, lower_precision, measure_ranges
from ..quantization.stages import measured_tolerance, write_quantised
from ..quantization.weights_only import WeightsOnly
from .parity_cases import GOLDEN_SIZE, golden_views, parity_cases, served_cases, small_size

Progress = Callable[[str], None]

LOOSE_MARGIN = 4.0
"""Of the golden check of a BF16 bundle for a CPU, over the error of PyTorch's BF16 autocast."""
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 8e-2}
"""Allowed difference of an engine from the float32 reference, relative to the largest value of an output.

For float32 rounding stays below a tenth of it, and an engine that silently ran in half precision is outside. For the
16-bit formats it is twenty units of the last place (2**-11 and 2**-8): what the blocks' independent rounding adds up to
stays well inside, a kernel that computes something else does not.
"""

_TIGHTEST = 8
"""Tensors with the least room in FP16's range that the manifest lists."""


@dataclass(frozen=True)
class Graphs:
    """The four stages as files, in running order.

    Attributes:
        reduced: what writing 16 bit into them found; None for float32. quantization: None but for int8 and fp8.
    """

    stages: tuple[ExportedStage | LoweredStage, ...]
    reduced: ReducedPrecision | None
    quantization: Quantization | None = None


def write_graphs(
    model: MapAnything,
    folder: Path,
    *,
    precision: str,
    attention: AttentionExport,
    origin: Mapping[str, str],
    report: Progress,
    calibration: Calibration | WeightsOnly | None = None,
    around: str | None = None,
    mha_layers: Collection[str] = (),
) -> Graphs:
    """Write ``<stage>.onnx`` in ``precision`` into ``folder``, with ``origin`` as metadata of each file.

    For 16 bit the network is run over the parity cases first, and what comes near the end of FP16's range stays in
    float32 (a bf16 engine has parts in FP16 too).

    Args:
        calibration: for int8 and fp8; or what stands for it where only weights are in int8.
        around: precision of the files, or of what int8 and fp8 leave in them; that of the bundle if not given. It is
            float32 where the backend rounds.
        mha_layers: see :func:`.onnx_export.export_stages`.
    """
    around = around or precision

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
        return _lower(full, into, around, model.data_norm_type, report)

    if calibration is not None:
        stages, quantization, sources = write_quantised(
            model, folder, calibration, export, None if around == "fp32" else lower, report
        )
        return Graphs(stages, _reduced([s for s in sources if isinstance(s, LoweredStage)]), quantization)
    if around == "fp32":
        return Graphs(export(model, folder), None if precision == "fp32" else ReducedPrecision())
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        lowered = lower(export(model, Path(scratch)), folder)
    return Graphs(tuple(lowered), _reduced(lowered))


def _lower(
    full: Sequence[ExportedStage | LoweredStage], folder: Path, precision: str, norm_type: str, report: Progress
) -> list[LoweredStage]:
    """The float32 stages in 16 bit."""
    report("measuring the magnitudes of all tensors")
    ranges = measure_ranges(
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
                ranges=ranges[stage.name],
            )
        )
    return lowered


def write_onnx_bundle(
    model: MapAnything,
    writer: BundleWriter,
    *,
    precision: str,
    attention: AttentionExport,
    requests: ServedRequests,
    backend: str | None,
    report: Progress,
    calibration: Calibration | WeightsOnly | None = None,
    rest: str | None = None,
    mha_layers: Collection[str] = (),
) -> Manifest:
    """Fill ``writer`` with the four stages, the golden file and the manifest, and check them with ``backend``.

    Args:
        model: float32 reference on the CPU.
        writer: of :func:`mapengine.runtime.bundle.store.write_bundle`.
        precision: ``"fp32"``, ``"fp16"``, ``"bf16"``, ``"int8"`` or ``"fp8"``.
        attention: see :data:`.onnx_export.AttentionExport`.
        requests: goes into the manifest; the golden input has a size and a view count that it covers.
        backend: ``"onnxruntime"`` or ``"openvino"``; None to run the graphs as they say in ONNX Runtime, see
            :func:`open_graphs`.
        report: called with a line per step.
        calibration: of this model, for int8 and fp8; or its layers, where only weights are in int8.
        rest: precision of what they leave: ``"fp32"``, ``"fp16"`` or ``"bf16"``. By default float32 with a ``backend``
            and float16 without one, as the CPU backends have no float16 kernels.
        mha_layers: see :func:`.onnx_export.export_stages`.

    Returns:
        The manifest, with the measured parity.

    Raises:
        CalibrationError: the calibration is of another model or precision.
    """
    weights = model.weights_hash()
    if isinstance(calibration, Calibration):
        calibration.check_model(weights, model.model_id, precision)
    origin = model_metadata(model, weights)
    rest = rest or ("fp32" if backend is not None else "fp16")
    around = precision if calibration is None else rest
    loose = around == "bf16" and backend is not None
    written = "fp32" if loose else around
    graphs = write_graphs(
        model,
        writer.folder,
        precision=precision,
        attention=attention,
        origin=origin,
        report=report,
        calibration=calibration,
        around=written,
        mha_layers=mha_layers,
    )
    if loose:
        report("rewriting the stages for openvino")
        graphs = _for_openvino(graphs)
    report("computing reference outputs")
    views = golden_views(model.data_norm_type, small_size(requests, GOLDEN_SIZE), requests.views)
    predictions = model.predict(views, use_amp=False)
    cases = served_cases(model.data_norm_type, requests)
    reference = {name: model.predict(given, use_amp=False) for name, given in cases.items()}
    limits = _loose_tolerance(model, views, predictions) if loose else dict.fromkeys(predictions[0], TOLERANCE[around])
    if calibration is not None:
        wanted = {"golden": predictions, **reference}
        rounding = measured_tolerance(model, calibration, {"golden": views, **cases}, wanted)
        limits = {key: limits[key] + rounding[key] for key in rounding}
    golden = _golden(writer, views, predictions, limits)
    manifest = Manifest(
        created_by=metadata.version("mapengine"),
        tools=_tool_versions(),
        model=_model_info(model, weights),
        precision=precision,
        reduced_precision=graphs.reduced,
        quantization=None if graphs.quantization is None else replace(graphs.quantization, rest=rest),
        attention=attention,
        format="onnx",
        backends=_backends((backend,) if loose and backend is not None else BACKENDS_BY_FORMAT["onnx"]),
        requests=requests,
        stages={stage.name: _stage_spec(stage, writer, requests) for stage in graphs.stages},
        golden=golden,
    )
    writer.write_manifest(manifest)
    if backend is None:
        report("checking the graphs with onnxruntime")
        engine = open_graphs(Bundle.open(writer.folder, verify=False))
    else:
        report(f"checking the engine with {backend}")
        engine = Engine.load(writer.folder, backend, verify=False)
    engine.verify()
    report("measuring parity with PyTorch")
    parity = measure_parity({name: engine.predict(given) for name, given in cases.items()}, reference, engine.where)
    return writer.write_manifest(replace(manifest, parity=parity))


def _for_openvino(graphs: Graphs) -> Graphs:
    """The graphs in OpenVINO's form, and their products counted anew."""
    record = graphs.quantization
    for stage in graphs.stages:
        more = rewrite_for_openvino(stage.path, stage.name)
        if record is not None and more and not record.weights_only:
            products = {**record.products, stage.name: record.products[stage.name] + more}
            record = replace(record, products=products)
    return replace(graphs, quantization=record)


def open_graphs(bundle: Bundle) -> Engine:
    """An engine on ONNX Runtime that computes what the graphs of a bundle say, in every precision.

    On its own ONNX Runtime's CPU computes most of a 16-bit graph in float32; here it rounds where the graph does, see
    :func:`.precision.runnable`. The folder of the bundle must be writable for a moment.
    """
    library = OnnxRuntimeBackend()
    if bundle.manifest.precision != "fp32":
        library.device += f", {bundle.manifest.precision} emulated"
    stages = {
        name: load_runnable(library, name, bundle.stage_path(name), bundle.folder) for name in bundle.manifest.stages
    }
    return Engine(bundle, library, Pipeline(stages))


def measure(engine: Engine, model: MapAnything) -> Parity:
    """Measure how far an engine is from the PyTorch reference, over :func:`.parity_cases.served_cases`."""
    cases = served_cases(model.data_norm_type, engine.manifest.requests)
    found = {name: engine.predict(views) for name, views in cases.items()}
    reference = {name: model.predict(views, use_amp=False) for name, views in cases.items()}
    return measure_parity(found, reference, engine.where)


def model_metadata(model: MapAnything, weights_sha256: str) -> dict[str, str]:
    """What every exported file says of its origin."""
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


def _loose_tolerance(model: MapAnything, views: list[dict[str, Any]], wanted: Predictions) -> dict[str, float]:
    """Allowed difference per output of a bundle whose backend rounds: from what BF16 autocast does to this network.

    OpenVINO rounds more than autocast (LayerNorm, softmax and gates as well), by two bits at most in what was measured.
    """
    with torch.autocast("cpu", torch.bfloat16):
        found = model.predict(views, use_amp=False)
    parity = measure_parity({"golden": found}, {"golden": wanted}, "PyTorch, BF16 autocast")
    return {key: max(TOLERANCE["bf16"], LOOSE_MARGIN * output.max_rel) for key, output in parity.outputs.items()}


def _golden(
    writer: BundleWriter, views: list[dict[str, Any]], predictions: Predictions, limits: Mapping[str, float]
) -> Golden:
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


def _stage_spec(stage: ExportedStage | LoweredStage, writer: BundleWriter, requests: ServedRequests) -> StageSpec:
    def specs(tensors: Sequence[Any]) -> tuple[TensorSpec, ...]:
        return tuple(t if isinstance(t, TensorSpec) else TensorSpec(t.name, "float32", t.axes) for t in tensors)

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
