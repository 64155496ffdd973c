"""From ONNX stages to a bundle for a GPU: TensorRT plans, or graphs that ONNX Runtime runs there.

It needs no PyTorch, so it runs on the device itself.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mapengine.runtime import Engine
from mapengine.runtime.backends.registry import available_backends
from mapengine.runtime.bundle.kernel_attention import KernelCode
from mapengine.runtime.bundle.manifest import Manifest, Quantization, StageSpec
from mapengine.runtime.bundle.requests import ServedRequests
from mapengine.runtime.bundle.store import Bundle, BundleWriter
from mapengine.runtime.checks.product_precision import check_product_precision, listed_products

from ..attention.choice import KernelChoice, rounds
from ..graphs.gpu import add_patch_features, separate_products_for_gpu
from ..model.config import ModelConfig
from ..tensorrt import gpu_chunks, stage_profiles
from ..tensorrt.progress import Fraction
from .chains import choose_kernels, compile_chain
from .compilers import Report, StageCompiler
from .references import ReferencePredictions
from .tolerances import kernel_tolerance, widen


@dataclass(frozen=True)
class GpuRecipe:
    """Everything that is decided about a bundle for a GPU before its ONNX stages are compiled.

    Attributes:
        compiler: of its stages.
        requests: that it serves, with chunk sizes for a GPU.
        kernels: attention modules of the aggregator that our own kernels compute; exported as ``mha``.
    """

    compiler: StageCompiler
    requests: ServedRequests
    kernels: Mapping[str, KernelChoice]


def decide_gpu(
    compiler: StageCompiler,
    *,
    precision: str,
    form: str,
    kernels: str | None,
    requests: ServedRequests,
    config: ModelConfig,
    weights_only: bool,
    report: Report,
) -> GpuRecipe:
    """Decide how ONNX stages become a bundle for a GPU, and refuse what cannot be compiled.

    Args:
        compiler: of the stages.
        precision: of the bundle.
        form: that attention is written in.
        kernels: what is asked for, see :meth:`mapengine.export.attention.choice.AttentionChoice.parse`; None where
            kernels have no place.
        requests: of the ONNX stages.
        config: of the network.
        weights_only: whether weights alone are in 8 bits.
        report: called with a line per step.

    Raises:
        InputError: the message names the option.
        BackendUnavailableError: what the build needs is not installed, or no GPU is here that it needs.
    """
    requests = replace(requests, chunks=gpu_chunks(requests.views))
    compiler.check(precision, form, requests, config, weights_only)
    chosen: Mapping[str, KernelChoice] = {}
    if kernels is not None:
        chosen = choose_kernels(kernels, compiler, requests, config, precision, report)
    return GpuRecipe(compiler, requests, chosen)


def write_gpu_bundle(
    source: Bundle,
    writer: BundleWriter,
    recipe: GpuRecipe,
    *,
    report: Report,
    fraction: Fraction | None = None,
    reference: ReferencePredictions | None = None,
) -> Manifest:
    """Fill ``writer`` with what the stages of ``source`` become, and run them if their GPU is here.

    Args:
        source: ONNX stages, opened.
        writer: of the new bundle.
        recipe: of :func:`decide_gpu`.
        report: called with a line per step. fraction: with the progress of a step.
        reference: that the parity of the running engine is measured with; by default its golden check does.

    Returns:
        The manifest. The golden check of the new bundle allows for the rounding of the kernels.

    Raises:
        ExportError, OutputError: a stage could not be compiled or written.
        ParityError: the plans multiply less in 8 bits than the bundle asks for, or are outside its tolerance.
    """
    compiler, kernels = recipe.compiler, recipe.kernels
    stages, codes, quantization = _write_stages(source, writer, recipe, report, fraction)
    golden = source.manifest.golden
    if rounds(kernels):
        report("measuring what the kernels round")
        with tempfile.TemporaryDirectory(dir=writer.folder) as scratch:
            golden = widen(golden, kernel_tolerance(source, kernels, Path(scratch)))
    shutil.copyfile(source.folder / golden.file.file, writer.folder / golden.file.file)
    manifest = replace(
        source.manifest,
        format=compiler.format,
        quantization=quantization,
        backends=(compiler.info(),),
        requests=recipe.requests,
        stages=stages,
        golden=golden,
        kernels=codes,
        tools={**source.manifest.tools, compiler.backend: compiler.version},
    )
    if manifest.quantization is not None:
        check_product_precision(manifest, listed_products(manifest), compiler.backend)
    bundle = writer.write_manifest(manifest)
    if compiler.backend not in available_backends():
        return manifest
    report(f"checking the engine with {compiler.backend}")
    engine = Engine.load(bundle, compiler.backend, verify=False)
    parity = engine.verify()
    if reference is not None:
        report("measuring parity with PyTorch")
        parity = reference.parity(engine, engine.where)
    return writer.write_manifest(replace(manifest, parity=parity)).manifest


def _write_stages(
    source: Bundle, writer: BundleWriter, recipe: GpuRecipe, report: Report, fraction: Fraction | None
) -> tuple[dict[str, StageSpec], tuple[KernelCode, ...], Quantization | None]:
    """Compile the stages; return them, the code of the kernels, and the record with the products of the new graphs."""
    compiler = recipe.compiler
    stages: dict[str, StageSpec] = {}
    codes: tuple[KernelCode, ...] = ()
    quantization = source.manifest.quantization
    for name, spec in source.manifest.stages.items():
        report(f"{'compiling' if compiler.format == 'plan' else 'writing'} {name}")
        with tempfile.TemporaryDirectory(dir=writer.folder) as folder:
            scratch = Path(folder)
            graph = source.stage_path(name)
            if name == "geometry_encoder":
                graph, spec = add_patch_features(graph, scratch, spec)
            if quantization is not None:
                graph, count = separate_products_for_gpu(graph, scratch)
                if count and not quantization.weights_only:  # each of them is three products from here on
                    wanted = quantization.products[name] + 2 * count
                    quantization = replace(quantization, products={**quantization.products, name: wanted})
            profiles = stage_profiles(recipe.requests, name, compiler.backend)
            if recipe.kernels and name == "aggregator":
                extra, shares = source.manifest.model.extra_tokens, source.manifest.shares_by_block
                stages[name], codes = compile_chain(
                    compiler, writer, graph, scratch, spec, profiles, recipe.kernels, extra, shares, fraction
                )
            else:
                stages[name] = compiler.compile(writer, graph, spec, profiles, fraction)
    return stages, codes, quantization
