"""From a bundle of ONNX stages to one for a GPU: TensorRT plans, or graphs that ONNX Runtime runs there.

It needs no PyTorch, so it runs on the device itself.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import onnx_ir as ir

from mapengine.runtime import Engine
from mapengine.runtime.backends.registry import available_backends
from mapengine.runtime.backends.table import BACKENDS_BY_NAME, GPU_BACKENDS
from mapengine.runtime.bundle.build_record import Parity
from mapengine.runtime.bundle.kernel_attention import KernelCode
from mapengine.runtime.bundle.manifest import Manifest, StageSpec, TensorSpec
from mapengine.runtime.bundle.requests import ServedRequests
from mapengine.runtime.bundle.store import Bundle, BundleWriter, write_bundle
from mapengine.runtime.checks.product_precision import check_executed, listed_products
from mapengine.runtime.errors import InputError

from ..attention.chains import choose_kernels, compile_chain
from ..attention.choice import NATIVE, AttentionChoice, KernelChoice
from ..attention.tolerance import kernel_tolerance, rounds, widened
from ..graphs.split_products import split_quantised_products
from ..graphs.weights import save_model
from ..model.config_json import parse_config
from ..options import PlanSettings, check_plan_settings
from ..tensorrt import gpu_chunks, stage_profiles
from .compilers import Fraction, StageCompiler, open_compiler

Progress = Callable[[str], None]


def compile_engine(
    bundle: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    backend: str,
    attention: str = "auto",
    settings: PlanSettings | None = None,
    progress: Progress | None = None,
    fraction: Fraction | None = None,
) -> Manifest:
    """Make a bundle for a GPU from a bundle of ONNX stages, with the same precision, views and sizes.

    Args:
        bundle: folder that ``build_engine`` wrote for ``onnxruntime`` or ``openvino``, perhaps on another machine.
        out: folder of the new bundle. An older bundle there is replaced; anything else is not touched.
        backend: ``"tensorrt"``, ``"tensorrt-rtx"`` or ``"onnxruntime-cuda"``.
        attention: ``"auto"``, ``"native"`` or our own kernels, as :func:`.build_engine` takes them. Kernels are for
            bundles in 16 bits, or with 16 bits around their 8-bit products, whose attention is written as ``mha``.
        settings: see :class:`.build_options.PlanSettings`.
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
    compiler = open_compiler(backend, settings)
    config = parse_config(manifest.model.config, str(bundle))
    requests = gpu_requests(manifest.requests)
    record = manifest.quantization
    weights_only = record is not None and record.weights_only
    compiler.check(manifest.precision, manifest.attention, requests, config, weights_only)
    kernels: Mapping[str, KernelChoice] = {}
    if _takes_kernels(manifest, attention, str(bundle)):
        report = progress or (lambda line: None)
        kernels = choose_kernels(attention, compiler, requests, config, manifest.precision, report)
    with write_bundle(Path(out)) as writer:
        return write_plan_bundle(
            source, writer, compiler, requests=requests, report=progress, fraction=fraction, kernels=kernels
        )


def _takes_kernels(manifest: Manifest, attention: str, bundle: str) -> bool:
    """Whether kernels are asked for and the source has a place for them.

    Raises:
        InputError: they are asked for by name and it has none; or a form is asked for, which the source has.
    """
    asked = AttentionChoice.parse(attention)
    if asked.form != "auto":
        raise InputError(
            f"attention {attention!r} is a way of writing it, and {bundle} has its own ({manifest.attention}); leave "
            f"it out, or build from the model"
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


def write_plan_bundle(
    source: Bundle,
    writer: BundleWriter,
    compiler: StageCompiler,
    *,
    requests: ServedRequests,
    report: Progress | None = None,
    fraction: Fraction | None = None,
    measure: Callable[[Engine], Parity] | None = None,
    kernels: Mapping[str, KernelChoice] = MappingProxyType({}),
) -> Manifest:
    """Fill ``writer`` with what the stages of ``source`` become, and run them if their GPU is here.

    Args:
        source: ONNX stages, opened.
        writer: of the new bundle.
        compiler: of its stages.
        requests: of the new bundle, see :func:`gpu_requests`.
        report: called with a line per step. fraction: with the progress of a step.
        measure: measures the parity of the running engine; by default its golden check does.
        kernels: attention modules of the aggregator that our own kernels compute; exported as ``mha``. The golden check
            of the new bundle allows for their rounding.

    Raises:
        ExportError, OutputError: a stage could not be compiled or written.
        ParityError: the plans multiply less in 8 bits than the bundle asks for, or are outside its tolerance.
    """
    report = report or (lambda line: None)
    stages: dict[str, StageSpec] = {}
    codes: tuple[KernelCode, ...] = ()
    quantization = source.manifest.quantization
    for name, spec in source.manifest.stages.items():
        report(f"{'compiling' if compiler.format == 'plan' else 'writing'} {name}")
        with tempfile.TemporaryDirectory(dir=writer.folder) as scratch:
            graph = source.stage_path(name)
            if name == "geometry_encoder":
                graph, spec = add_patch_features(graph, Path(scratch), spec)
            if quantization is not None:
                graph, split = split_quantised_products(graph, Path(scratch))
                if split and not quantization.weights_only:  # each of them is three products from here on
                    wanted = quantization.products[name] + 2 * split
                    quantization = replace(quantization, products={**quantization.products, name: wanted})
            profiles = stage_profiles(requests, name, compiler.backend)
            if kernels and name == "aggregator":
                extra = source.manifest.model.extra_tokens
                stages[name], codes = compile_chain(
                    compiler, writer, graph, Path(scratch), spec, profiles, kernels, extra, fraction
                )
            else:
                stages[name] = compiler.compile(writer, graph, spec, profiles, fraction)
    golden = source.manifest.golden
    if rounds(kernels):
        report("measuring what the kernels round")
        with tempfile.TemporaryDirectory(dir=writer.folder) as scratch:
            golden = widened(golden, kernel_tolerance(source, kernels, Path(scratch)))
    shutil.copyfile(source.folder / golden.file.file, writer.folder / golden.file.file)
    manifest = replace(
        source.manifest,
        format=compiler.format,
        quantization=quantization,
        backends=(compiler.info(),),
        requests=requests,
        stages=stages,
        golden=golden,
        kernels=codes,
        tools={**source.manifest.tools, compiler.backend: compiler.version},
    )
    if manifest.quantization is not None:
        check_executed(manifest, listed_products(manifest), compiler.backend)
    writer.write_manifest(manifest)
    if compiler.backend not in available_backends():
        return manifest
    report(f"checking the engine with {compiler.backend}")
    engine = Engine.load(writer.folder, compiler.backend, verify=False)
    parity = engine.verify()
    if measure is not None:
        report("measuring parity with PyTorch")
        parity = measure(engine)
    return writer.write_manifest(replace(manifest, parity=parity))


def gpu_requests(requests: ServedRequests) -> ServedRequests:
    """A bundle's requests with chunk sizes for a GPU."""
    return replace(requests, chunks=gpu_chunks(requests.views))


def add_patch_features(graph: Path, scratch: Path, spec: StageSpec) -> tuple[Path, StageSpec]:
    """The geometry encoder with the sum inside: ``features = patch_features + geometry_features``.

    On the host NumPy adds what the encoder returns; on a GPU that would take a kernel of our own, so the plan does it.

    Args:
        graph: the stage as exported, with its weights beside it.
        scratch: folder for the changed graph.
        spec: of the stage.

    Returns:
        The changed graph, and the stage's description with the input ``patch_features`` and the output ``features``.
    """
    model = ir.load(graph)
    (old,) = model.graph.outputs
    patches = ir.val("patch_features", ir.DataType.FLOAT, old.shape)
    model.graph.inputs.append(patches)
    node = ir.node("Add", [patches, old], name="geometry_encoder/Add:patch_features")
    total = node.outputs[0]
    total.name, total.shape, total.dtype = "features", old.shape, ir.DataType.FLOAT
    model.graph.append(node)
    model.graph.outputs[0] = total
    target = scratch / graph.name
    save_model(model, target)
    shape = spec.outputs[0].shape
    return target, replace(
        spec,
        inputs=(*spec.inputs, TensorSpec("patch_features", "float32", shape)),
        outputs=(TensorSpec("features", "float32", shape),),
    )
