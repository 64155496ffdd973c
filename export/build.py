"""Build an engine bundle: export, golden file, manifest, and the parity that the finished engine shows."""

from __future__ import annotations

import dataclasses
import math
import operator
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mapengine.runtime import Engine
from mapengine.runtime.backend_info import BackendInfo
from mapengine.runtime.backends import available_backends
from mapengine.runtime.bundle import BundleWriter, write_bundle
from mapengine.runtime.errors import InputError
from mapengine.runtime.golden import pack
from mapengine.runtime.manifest import Golden, Manifest, ModelInfo, StageSpec, TensorSpec
from mapengine.runtime.parity import measure_parity
from mapengine.runtime.parity_record import Parity, Tolerance
from mapengine.runtime.pipeline import ChunkSizes
from mapengine.runtime.profile import MAX_SIDE, MAX_VIEWS, AnySize, Profile, Range
from mapengine.runtime.resolution import RESOLUTION_TABLES

from .checkpoint import parameter_count
from .config import PATCH_SIZE
from .onnx_export import AttentionExport, ExportedStage, export_stages
from .parity_cases import PARITY_SIZE, golden_views, parity_cases
from .reference import MapAnything

Progress = Callable[[str], None]

_MINIMUM_VERSIONS = {"onnxruntime": "1.22", "openvino": "2026.0"}
"""Oldest versions that serve the exported operators (contrib MultiHeadAttention with float32 on the CPU)."""

_LARGEST_SIDE = 518
"""Longest side of the sizes that MapAnything was trained at (set 518)."""

_CHUNKS = dataclasses.asdict(ChunkSizes())

_FP32_TOLERANCE = 1e-4
"""Allowed difference of a float32 engine, relative to the largest value of an output. Rounding of the golden views
stays below a tenth of it; an engine that silently ran in half precision is a hundred times outside."""


def build_engine(
    model: MapAnything,
    out: str | os.PathLike[str],
    *,
    precision: str = "fp32",
    backend: str = "onnxruntime",
    views: tuple[int, int, int] = (1, 4, 32),
    resolutions: str | Sequence[tuple[int, int]] = "all",
    attention: str = "auto",
    calibration: object | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Build a bundle that :meth:`mapengine.runtime.Engine.load` opens.

    The folder appears, complete and checked, at the end; a build that fails or is stopped leaves what was there.

    Args:
        model: from :func:`.load_model`.
        out: folder of the bundle. An older bundle there is replaced; anything else is not touched.
        precision: ``"fp32"``.
        backend: ``"onnxruntime"`` or ``"openvino"``: the one that the build is checked with. The files serve both.
        views: fewest, usual and most views of one call.
        resolutions: ``"all"`` (sides up to 518 pixels, multiples of 14), or (width, height) pairs.
        attention: ``"auto"``, ``"mha"``, ``"attention"`` or ``"matmul"``, see :mod:`.onnx_export`.
        calibration: for INT8 and FP8 only.
        progress: called with a line per step.

    Returns:
        The manifest, with the measured parity.

    Raises:
        InputError: an option that this version does not build, or a model that is not float32 on the CPU.
        ExportError, OutputError, ParityError: the step that failed.
    """
    report = progress or (lambda line: None)
    _check_model(model)
    _check_options(precision, backend, attention, calibration)
    if not isinstance(out, str | os.PathLike):
        raise InputError(f"out is a {type(out).__name__}; give the path of the bundle's folder")
    form: AttentionExport = "mha" if attention == "auto" else attention  # type: ignore[assignment]
    profile = make_profile(views, resolutions)
    with write_bundle(Path(out)) as writer:
        weights = model.weights_hash()
        stages = export_stages(
            model,
            writer.folder,
            attention=form,
            metadata=model_metadata(model, weights),
            progress=lambda name: report(f"exporting {name}"),
        )
        report("computing reference outputs")
        golden = _golden(model, writer)
        manifest = Manifest(
            created_by=metadata.version("mapengine"),
            tools=_tool_versions(),
            model=_model_info(model, weights),
            precision=precision,
            reduced_precision=None,
            quantization=None,
            attention=form,
            format="onnx",
            backends=_backends(),
            profile=profile,
            stages={stage.name: _stage_spec(stage, writer, profile) for stage in stages},
            golden=golden,
        )
        writer.write_manifest(manifest)
        report(f"checking the engine with {backend}")
        engine = Engine.load(writer.folder, backend, verify=False)
        engine.verify()
        report("measuring parity with PyTorch")
        parity = measure(engine, model)
        return writer.write_manifest(dataclasses.replace(manifest, parity=parity))


def measure(engine: Engine, model: MapAnything) -> Parity:
    """Measure how far an engine is from the PyTorch reference, over :func:`.parity_cases.parity_cases`.

    The cases have a small size, or the smallest one that the bundle was built for, and view counts that it serves.
    """
    found: dict[str, list[dict[str, NDArray[Any]]]] = {}
    reference: dict[str, list[dict[str, NDArray[Any]]]] = {}
    profile = engine.manifest.profile
    size = PARITY_SIZE if isinstance(profile.sizes, AnySize) else min(profile.sizes, key=math.prod)
    for name, views in parity_cases(model.data_norm_type, size, profile.views.min).items():
        if len(views) > profile.views.max:
            continue
        found[name] = engine.predict(views)
        reference[name] = model.predict(views, use_amp=False)
    return measure_parity(found, reference, engine.where)


def make_profile(views: tuple[int, int, int], resolutions: str | Sequence[tuple[int, int]]) -> Profile:
    """The profile of a bundle from build options.

    Raises:
        InputError: counts that are not 1 <= min <= opt <= max, or a size that is not a multiple of 14; both must be
            whole numbers that the manifest can hold.
    """
    counts = _whole_numbers(views)
    if counts is None or len(counts) != 3:
        raise InputError(f"views is {views!r}; give the fewest, usual and most views of a call, as in (1, 4, 32)")
    low, opt, high = counts
    if not 1 <= low <= opt <= high <= MAX_VIEWS:
        raise InputError(f"views {low}:{opt}:{high} is not min:opt:max with 1 <= min <= opt <= max <= {MAX_VIEWS}")
    if isinstance(resolutions, str):
        if resolutions != "all":
            raise InputError(f"resolutions is {resolutions!r}; give 'all' or (width, height) pairs")
        return Profile(Range(low, opt, high), AnySize(PATCH_SIZE, _LARGEST_SIDE), _CHUNKS)
    pairs = [_whole_numbers(pair) for pair in resolutions] if isinstance(resolutions, Iterable) else [None]
    if any(pair is None or len(pair) != 2 for pair in pairs):
        raise InputError(f"resolutions is {resolutions!r}; give 'all' or (width, height) pairs of whole numbers")
    sizes = tuple(dict.fromkeys((pair[0], pair[1]) for pair in pairs if pair is not None))
    for width, height in sizes:
        if max(width, height) > MAX_SIDE:
            raise InputError(f"resolution {width}x{height} is larger than {MAX_SIDE} pixels; give a smaller one")
        if width < 1 or height < 1 or width % PATCH_SIZE or height % PATCH_SIZE:
            near = ", ".join(f"{w}x{h}" for w, h in RESOLUTION_TABLES[518].values())
            raise InputError(
                f"resolution {width}x{height} is not a multiple of {PATCH_SIZE} pixels; sizes of the table are {near}"
            )
    if not sizes:
        raise InputError("resolutions is empty; give 'all' or (width, height) pairs")
    return Profile(Range(low, opt, high), sizes, _CHUNKS)


def _whole_numbers(values: Any) -> tuple[int, ...] | None:
    """Values as plain integers (those of NumPy count), or None: 56.5 must not become 56."""
    try:
        numbers = tuple(values)
        if any(isinstance(number, bool) for number in numbers):
            return None
        return tuple(operator.index(number) for number in numbers)
    except TypeError:
        return None


def model_metadata(model: MapAnything, weights_sha256: str) -> dict[str, str]:
    """What every exported file says of its origin."""
    return {
        "mapengine.version": metadata.version("mapengine"),
        "mapengine.model": model.model_id,
        "mapengine.revision": model.revision or "",
        "mapengine.weights_sha256": weights_sha256,
    }


def _check_model(model: object) -> None:
    if not isinstance(model, MapAnything):
        raise InputError(f"the model is a {type(model).__name__}; give what load_model returns")
    if model.dtype != torch.float32 or model.device.type != "cpu":
        raise InputError(f"the model is {model.dtype} on {model.device}; give it in float32 on the CPU")


def _check_options(precision: str, backend: str, attention: str, calibration: object | None) -> None:
    if precision != "fp32":
        raise InputError(f"precision {precision!r} is not built by this version; use fp32")
    if backend not in _MINIMUM_VERSIONS:
        raise InputError(f"backend {backend!r} is not built by this version; use {' or '.join(_MINIMUM_VERSIONS)}")
    if attention not in ("auto", "mha", "attention", "matmul"):
        raise InputError(f"attention {attention!r} is unknown; use auto, mha, attention or matmul")
    if calibration is not None:
        raise InputError("calibration is for int8 and fp8; leave it out for fp32")


def _golden(model: MapAnything, writer: BundleWriter) -> Golden:
    views = golden_views(model.data_norm_type)
    predictions = model.predict(views, use_amp=False)
    tolerance = {}
    for key, value in predictions[0].items():
        if value.dtype.kind == "f":
            largest = max(float(np.abs(prediction[key]).max()) for prediction in predictions)
            tolerance[key] = Tolerance(atol=_FP32_TOLERANCE * largest, rtol=_FP32_TOLERANCE)
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


def _stage_spec(stage: ExportedStage, writer: BundleWriter, profile: Profile) -> StageSpec:
    def specs(tensors: Sequence[Any]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(tensor.name, "float32", tensor.axes) for tensor in tensors)

    return StageSpec(
        file=writer.record(stage.path.name),
        inputs=specs(stage.inputs),
        outputs=specs(stage.outputs),
        data=() if stage.data_path is None else (writer.record(stage.data_path.name),),
        opset=stage.opset,
        profiles=({"views": profile.views},) if stage.name == "aggregator" else (),
    )


def _backends() -> tuple[BackendInfo, ...]:
    installed = available_backends()
    return tuple(
        BackendInfo(name, metadata.version(name) if name in installed else minimum, minimum)
        for name, minimum in _MINIMUM_VERSIONS.items()
    )


def _tool_versions() -> dict[str, str]:
    versions = {name: metadata.version(name) for name in ("torch", "onnx", "onnxscript", "numpy")}
    return {"python": platform.python_version(), **versions}
