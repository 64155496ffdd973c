"""Make a bundle for a GPU from a finished bundle of ONNX stages, without PyTorch: the device itself can do it."""

from __future__ import annotations

import os
from pathlib import Path

from mapengine.runtime.backend_table import BACKENDS_BY_NAME, GPU_BACKENDS
from mapengine.runtime.bundle.manifest import Manifest
from mapengine.runtime.bundle.store import Bundle, write_bundle
from mapengine.runtime.errors import InputError

from .attention.choice import NATIVE, AttentionChoice
from .bundles.compilers import Report, open_compiler
from .bundles.gpu import decide_gpu, write_gpu_bundle
from .model.config_json import parse_config
from .options import check_plan_settings
from .tensorrt.progress import Fraction
from .tensorrt.settings import PlanSettings


def compile_engine(
    bundle: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    backend: str,
    attention: str = "auto",
    settings: PlanSettings | None = None,
    progress: Report | None = None,
    fraction: Fraction | None = None,
) -> Manifest:
    """Make a bundle for a GPU from a bundle of ONNX stages, with the same precision, views and sizes.

    Args:
        bundle: folder that ``build_engine`` wrote for ``onnxruntime`` or ``openvino``, perhaps on another machine.
        out: folder of the new bundle. An older bundle there is replaced; anything else is not touched.
        backend: ``"tensorrt"``, ``"tensorrt-rtx"`` or ``"onnxruntime-cuda"``.
        attention: ``"auto"``, ``"native"`` or our own kernels, as :func:`.build_engine` takes them. Kernels are for
            bundles in 16 bits, or with 16 bits around their 8-bit products, whose attention is written as ``mha``.
        settings: see :class:`.tensorrt.settings.PlanSettings`.
        progress: called with a line per step.
        fraction: called with how much of a step is done (0 to 1) and what it does.

    Returns:
        The manifest. Its parity is that of the source, unless the plans could be run here.

    Raises:
        InputError: the bundle holds plans already, or an option is wrong.
        BundleError: the bundle is damaged. BackendUnavailableError: the library or a GPU that it needs is missing.
        ExportError, OutputError, ParityError: the step that failed.
    """
    settings = settings or PlanSettings()
    if backend not in GPU_BACKENDS:
        raise InputError(f"backend {backend!r} is not one of a GPU; use {' or '.join(GPU_BACKENDS)}")
    check_plan_settings(settings, backend)
    for name, value in (("bundle", bundle), ("out", out)):
        if not isinstance(value, str | os.PathLike):
            raise InputError(f"{name} is a {type(value).__name__}; give the path of a folder")
    if Path(out).resolve() == Path(bundle).resolve():
        raise InputError(f"{out} is the bundle to compile; give another folder for the plans")
    source = Bundle.open(bundle)
    manifest = source.manifest
    if manifest.format != "onnx":
        raise InputError(f"{bundle} is for a GPU already; give a bundle that was built with --backend onnxruntime")
    if manifest.arithmetic == "bf16":
        raise InputError(
            f"{bundle} is float32 on disk, which OpenVINO runs in bfloat16; build plans in bf16 from the model instead"
        )
    if manifest.precision not in BACKENDS_BY_NAME[backend].precisions:
        raise InputError(
            f"{bundle} is {manifest.precision}, which is not built for {backend}; use "
            f"{' or '.join(BACKENDS_BY_NAME[backend].precisions)}"
        )
    report = progress or (lambda line: None)
    record = manifest.quantization
    recipe = decide_gpu(
        open_compiler(backend, settings),
        precision=manifest.precision,
        form=manifest.attention,
        kernels=attention if _takes_kernels(manifest, attention, str(bundle)) else None,
        requests=manifest.requests,
        config=parse_config(manifest.model.config, str(bundle)).with_key_shares(manifest.shares_by_block),
        weights_only=record is not None and record.weights_only,
        report=report,
    )
    with write_bundle(Path(out)) as writer, source.unchanged():
        return write_gpu_bundle(source, writer, recipe, report=report, fraction=fraction)


def _takes_kernels(manifest: Manifest, attention: str, bundle: str) -> bool:
    """Return whether kernels are asked for and the source has a place for them.

    Raises:
        InputError: they are asked for by name and it has none; or a form is asked for, which the source has.
    """
    asked = AttentionChoice.parse(attention)
    if asked.form != "auto":
        raise InputError(
            f"attention {attention!r} is a way of writing it, and {bundle} has its own ({manifest.attention}); leave "
            f"it out, or build from the model"
        )
    if not asked.keeps_all_keys:
        raise InputError(
            f"attention {attention!r} chooses keys, which the ONNX files of {bundle} chose already; leave out kv=, or "
            "build from the model"
        )
    around = manifest.precision if manifest.quantization is None else manifest.quantization.rest
    problem = ""
    if around == "fp32":
        problem = f"{bundle} has its attention in float32; build it in fp16"
    elif manifest.attention != "mha":
        problem = f"{bundle} has its attention written as {manifest.attention}; build it with --attention mha"
    if problem and asked.kernels:
        raise InputError(f"attention {attention!r} is in 16 bits and takes the place of mha, and {problem}")
    return not problem and attention != NATIVE
