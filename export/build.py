"""Build an engine bundle: ONNX stages for the CPU backends, or TensorRT plans compiled from them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from mapengine.calibration.data.cases import rendered_cases
from mapengine.calibration.ranges import Calibration, load_calibration
from mapengine.runtime.backend_table import EIGHT_BIT, GPU_BACKENDS
from mapengine.runtime.bundle.manifest import Manifest
from mapengine.runtime.bundle.store import BundleWriter, files_of_old_bundle, write_bundle
from mapengine.runtime.errors import InputError

from .attention.choice import AttentionChoice
from .bundles.compilers import Report, open_compiler
from .bundles.gpu import GpuRecipe, decide_gpu, write_gpu_bundle
from .bundles.onnx import write_onnx_bundle
from .bundles.recipe import decide_graphs
from .model.network.model import with_key_shares
from .model.reference import MapAnything
from .options import attention_form, check_options, processor_chunks, served_requests
from .quantization import CalibrationOptions, QuantizedNetwork, WeightsOnly
from .quantization.calibrate import Calibrator
from .tensorrt.progress import Fraction
from .tensorrt.settings import PlanSettings


def build_engine(
    model: MapAnything,
    out: str | os.PathLike[str],
    *,
    precision: str = "fp32",
    backend: str = "onnxruntime",
    views: tuple[int, int, int] = (1, 4, 32),
    resolutions: str | Sequence[tuple[int, int]] = "all",
    attention: str = "auto",
    calibration: Calibration | str | os.PathLike[str] | None = None,
    settings: PlanSettings | None = None,
    rest: str | None = None,
    weights_only: bool = False,
    progress: Report | None = None,
    fraction: Fraction | None = None,
) -> Manifest:
    """Build a bundle that :meth:`mapengine.runtime.Engine.load` opens.

    The folder appears, complete and checked, at the end; a build that fails or is stopped leaves what was there.

    Args:
        model: from :func:`.load_model`.
        out: folder of the bundle. An older bundle there is replaced; anything else is not touched.
        precision: ``"fp32"``, ``"fp16"``, ``"bf16"``, ``"int8"`` or ``"fp8"``; not every backend has all of them, see
            :data:`mapengine.runtime.backend_table.BACKENDS`.
        backend: ``"onnxruntime"`` or ``"openvino"``: the one that the build is checked with, the files serve both;
            ``"onnxruntime-cuda"`` or ``"tensorrt-rtx"``, which need no GPU to build; or ``"tensorrt"``, which builds
            for the GPU that is there.
        views: fewest, usual and most views of one call.
        resolutions: ``"all"`` (sides up to 518 pixels, multiples of 14), or (width, height) pairs.
        attention: ``"auto"`` or ``"native"`` for the library's own, in the form that it fuses; ``"mha"``,
            ``"attention"`` or ``"matmul"`` for that form, see :data:`mapengine.export.graphs.tracing.AttentionExport`;
            or, for the backends on a GPU, our own kernels over all views: ``"flash"``, ``"int8"``, ``"int8-fp8"``,
            ``"sparse:0.9"``, ``"sparse-int8:0.9"``, ``"sparse-int8-fp8:0.9"``, or several by block as in
            ``"int8@0,2/sparse:0.9@4"``. A share of the keys behind any of these but ``sparse``, as in
            ``"native:kv=0.25@2,4"``, makes another network, which keeps so many of them in these blocks: the reference
            that the bundle is checked with keeps as many.
        calibration: for INT8 and FP8 only: of :func:`mapengine.export.quantization.calibrate` or its file. By default
            the model is calibrated with rendered views.
        settings: for the TensorRT backends only.
        rest: for INT8 with ``"openvino"``: ``"bf16"`` runs what is not in 8 bits in the transformers in bfloat16, on
            processors that have it; float32 if not given.
        weights_only: for INT8: round the weights and no activations, so that the products stay in what ``rest`` or the
            backend says. Nothing is calibrated.
        progress: called with a line per step.
        fraction: called with how much of a step is done (0 to 1) and what it does, while plans are compiled.

    Returns:
        The manifest, with the measured parity. Without the GPU that a plan is for, it is the parity of the graph that
        the plan was compiled from, as ``measured_with`` says.

    Raises:
        InputError: an option that this version does not build, or a model that is not float32 on the CPU.
        CalibrationError: the calibration is damaged, of another model, or of another precision.
        BackendUnavailableError: the backend is not installed, or lacks a GPU that it needs to build.
        ExportError, OutputError, ParityError: the step that failed.
    """
    report = progress or (lambda line: None)
    settings = settings or PlanSettings()
    _check_model(model)
    check_options(precision, backend, attention, calibration, settings, rest, weights_only)
    shares = AttentionChoice.parse(attention).key_shares(model.config)
    if shares:
        model = with_key_shares(model, shares)
    if not isinstance(out, str | os.PathLike):
        raise InputError(f"out is a {type(out).__name__}; give the path of the bundle's folder")
    requests = served_requests(views, resolutions, {})
    requests = replace(requests, chunks=processor_chunks(requests.sizes, requests.views))
    files_of_old_bundle(Path(out))  # refused before anything is measured
    on_gpu = backend in GPU_BACKENDS
    gpu: GpuRecipe | None = None
    if on_gpu:
        compiler = open_compiler(backend, settings)
        form = attention_form(attention, backend, compiler.version)
        gpu = decide_gpu(
            compiler,
            precision=precision,
            form=form,
            kernels=None if precision == "fp32" else attention,
            requests=requests,
            config=model.config,
            weights_only=weights_only,
            report=report,
        )
    else:
        form = attention_form(attention, backend, "")
    weights_sha256 = model.weights_hash()
    quantized = _quantized(model, weights_sha256, precision, calibration, weights_only, report, fraction)
    report("computing reference outputs")
    graphs = decide_graphs(
        model,
        precision=precision,
        attention=form,
        requests=requests,
        weights_sha256=weights_sha256,
        backend=None if on_gpu else backend,
        quantized=quantized,
        rest=rest,
        mha_layers=gpu.kernels if gpu is not None else (),
    )
    with write_bundle(Path(out)) as writer:
        if gpu is None:
            return write_onnx_bundle(graphs, writer, report).manifest
        with tempfile.TemporaryDirectory(dir=writer.folder) as scratch:
            source = Path(scratch) / "onnx"
            source.mkdir()
            return write_gpu_bundle(
                write_onnx_bundle(graphs, BundleWriter(source), report),
                writer,
                gpu,
                report=report,
                fraction=fraction,
                reference=graphs.reference,
            )


def _quantized(
    model: MapAnything,
    weights_sha256: str,
    precision: str,
    given: object,
    weights_only: bool,
    report: Report,
    fraction: Fraction | None,
) -> QuantizedNetwork | None:
    """Return what an int8 or fp8 build writes in 8 bits, calibrated if no calibration is given."""
    if precision not in EIGHT_BIT:
        return None
    if weights_only:
        return QuantizedNetwork.of(model, WeightsOnly.of(model))
    if given is None:
        cases = rendered_cases(data_norm_type=model.data_norm_type)
        calibrator = Calibrator(
            model, cases, precision, report=report, fraction=fraction, weights_sha256=weights_sha256
        )
        return QuantizedNetwork(*calibrator.calibrated(CalibrationOptions(precision)))
    if isinstance(given, str | os.PathLike):
        given = load_calibration(given)
    if not isinstance(given, Calibration):
        raise InputError(f"calibration is a {type(given).__name__}; give a calibration or the path of its file")
    given.check_model(weights_sha256, model.model_id, precision)
    return QuantizedNetwork.of(model, given)


def _check_model(model: object) -> None:
    if not isinstance(model, MapAnything):
        raise InputError(f"the model is a {type(model).__name__}; give what load_model returns")
    if model.dtype != torch.float32 or model.device.type != "cpu":
        raise InputError(f"the model is {model.dtype} on {model.device}; give it in float32 on the CPU")
