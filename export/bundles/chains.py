"""Compile a stage into a plan, or into a chain of plans with our own attention kernels between them."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mapengine.kernels.tuning import ARCHITECTURES, FP8_FROM
from mapengine.kernels.variants import launch_order
from mapengine.runtime.backends.libraries import import_library
from mapengine.runtime.bundle.kernel_attention import (
    TOKENS,
    KernelAttention,
    KernelCode,
    all_tokens,
    kept_keys,
    keys_axis,
)
from mapengine.runtime.bundle.manifest import StageSpec, TensorSpec
from mapengine.runtime.bundle.requests import Range, ServedRequests
from mapengine.runtime.bundle.stages import LayerRecord
from mapengine.runtime.bundle.store import BundleWriter
from mapengine.runtime.errors import BackendUnavailableError, ExportError, InputError
from mapengine.runtime.system.children import child_command, child_environment

from ..attention.choice import LAYER, AttentionChoice, KernelChoice, LayerChoice, choose_attention, rounds
from ..attention.segments import cut_at_kernels
from ..model.config import ModelConfig
from ..tensorrt import stage_profiles
from ..tensorrt.progress import Fraction
from .compilers import Profiles, Report, StageCompiler

_AXES = ("views", "patch_rows", "patch_columns")

DEFAULT_ARCHITECTURES = (80, 86, 89, 120)
"""Kernels for a plan without targets: TensorRT-RTX's default plan runs on these and later ones, which take the PTX."""
OLDEST = ARCHITECTURES[0]


def usual_tokens(requests: ServedRequests, config: ModelConfig) -> int:
    """Return the number of tokens of all views in the request that a bundle is optimised for."""
    usual = stage_profiles(requests, "aggregator", "tensorrt-rtx")[0]
    views, rows, columns = (usual[axis].opt for axis in _AXES)
    return all_tokens(views, rows, columns, int(config.use_class_token))


def choose_kernels(
    attention: str,
    compiler: StageCompiler,
    requests: ServedRequests,
    config: ModelConfig,
    precision: str,
    report: Report,
) -> dict[str, KernelChoice]:
    """Choose the attention modules that our own kernels compute, by what a build in 16 bits asks for.

    Args:
        attention: ``"auto"`` or whatever else :meth:`mapengine.export.attention.choice.AttentionChoice.parse` takes.
        compiler, requests: of the new bundle. config: of the network. precision: of the bundle.
        report: called with a line that says what ``"auto"`` chose.

    Raises:
        InputError: kernels are asked for that the network, or a target, has no place for.
        BackendUnavailableError: what the build needs for them is not installed.
    """
    choice = AttentionChoice.parse(attention)
    if attention == "auto":
        kernel, why = choose_attention(compiler.architectures(), usual_tokens(requests, config), precision)
        if kernel is not None and not _has_triton():
            kernel, why = None, "attention: native, because Triton, which compiles our kernels, is not installed"
        report(why)
        choice = AttentionChoice(parts=() if kernel is None else ((LayerChoice(kernel), None),))
    kernels = choice.layers(config)
    for block, share in config.aggregator.key_shares:
        kernel = kernels.get(LAYER.format(block))
        if kernel is not None and kernel.traits.sparse:
            raise InputError(
                f"attention {kernel} would choose among keys in block {block}, which keeps {share:g} of them; use "
                f"another kernel there, or all keys"
            )
    if kernels:
        kernel_architectures(compiler, kernels.values())
        if not _has_triton():
            raise BackendUnavailableError(
                "our attention kernels are compiled by Triton, which is not installed; run: pip install "
                "'mapengine[kernels]', or use attention native"
            )
    if rounds(kernels):
        import_library("onnxruntime")  # for the tolerance
    return kernels


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def kernel_architectures(compiler: StageCompiler, kernels: Iterable[KernelChoice]) -> tuple[int, ...]:
    """Return what kernels are compiled for: the stages' architectures, and the oldest ones, whose PTX serves later
    ones.

    Kernels with FP8 are compiled for those of them that have it. A bundle for a range of GPUs is refused by the runtime
    on the others; one that names a GPU without it is refused here.

    Raises:
        InputError: a target that no kernel is compiled for.
    """
    architectures = compiler.architectures()
    named = architectures if compiler.format == "plan" else ()  # graphs are for no GPU in particular
    wanted = architectures or DEFAULT_ARCHITECTURES
    if min(wanted) < OLDEST:
        raise InputError(
            f"our attention kernels need compute capability {OLDEST / 10} or newer, not {min(wanted) / 10}; leave that "
            f"target out, or use attention native"
        )
    with_fp8 = next((choice for choice in kernels if choice.traits.fp8), None)
    if with_fp8 is None:
        return tuple(sorted({OLDEST, *wanted}))
    lacking = min(named, default=FP8_FROM) if max(wanted) >= FP8_FROM else max(wanted)
    if lacking < FP8_FROM:
        other = str(with_fp8).replace("-fp8", "")
        raise InputError(
            f"attention {with_fp8} needs compute capability {FP8_FROM / 10} or newer, which has FP8, not "
            f"{lacking / 10}; leave that target out, or use attention {other}"
        )
    return tuple(sorted({OLDEST, FP8_FROM, *wanted}))


def compile_chain(
    compiler: StageCompiler,
    writer: BundleWriter,
    graph: Path,
    scratch: Path,
    spec: StageSpec,
    profiles: Profiles,
    kernels: Mapping[str, KernelChoice],
    extra_tokens: int,
    shares: Mapping[int, float] = {},
    fraction: Fraction | None = None,
) -> tuple[StageSpec, tuple[KernelCode, ...]]:
    """Cut a stage at its attention, compile the segments, and the kernels that run between them.

    Args:
        compiler, writer: of the bundle.
        graph: the stage, whose attention is ``mha`` in the layers of ``kernels``. scratch: folder for its segments.
        spec: of the stage. profiles: of the stage.
        kernels: attention modules with what computes them. extra_tokens: class tokens per view.
        shares: of the keys in the graph, by block of the aggregator.
        fraction: called with the progress of a segment.

    Returns:
        The chain, and the code of its kernels.

    Raises:
        ExportError: a layer is not there, or something cannot be cut or compiled.
    """
    segments, cuts = cut_at_kernels(graph, scratch, spec, kernels, extra_tokens, shares)
    attention = tuple(with_launches(entry) for entry in cuts)
    parts = []
    for segment in segments:
        part = StageSpec(None, segment.inputs, segment.outputs, opset=spec.opset)
        ranges = segment_profiles(profiles, (*segment.inputs, *segment.outputs), extra_tokens, set(shares.values()))
        parts.append(compiler.compile(writer, segment.path, part, ranges, fraction))
    chain = StageSpec(
        None,
        spec.inputs,
        spec.outputs,
        optimization_profiles=tuple(profiles),
        layers=_sum(tuple(part.layers for part in parts if part.layers is not None)),
        segments=tuple(parts),
        attention=attention,
    )
    architectures = kernel_architectures(compiler, kernels.values())
    return chain, compile_kernels(architectures, writer, scratch / "kernels", attention)


def with_launches(attention: KernelAttention) -> KernelAttention:
    """Return an attention with the kernels that it launches."""
    dtype = {"float16": "fp16", "bfloat16": "bf16"}[attention.dtype]
    return replace(attention, launches=launch_order(attention.kernel, dtype, attention.head_dim))


def segment_profiles(
    profiles: Profiles, tensors: Sequence[TensorSpec], extra_tokens: int, shares: Collection[float] = ()
) -> tuple[Mapping[str, Range], ...]:
    """Return the profiles of a stage for the axes of a segment's tensors, with the number of all tokens and of the keys
    of these shares, which follow."""
    axes = {str(axis).rpartition("*")[2] for tensor in tensors for axis in tensor.shape if isinstance(axis, str)}
    found = []
    for profile in profiles:
        counts: dict[str, list[int]] = {TOKENS: [], **{keys_axis(share): [] for share in shares}}
        for end in ("min", "opt", "max"):
            views, rows, columns = (getattr(profile[axis], end) for axis in _AXES)
            counts[TOKENS].append(all_tokens(views, rows, columns, extra_tokens))
            for share in shares:
                counts[keys_axis(share)].append(kept_keys(views, rows, columns, extra_tokens, share))
        known = {**profile, **{axis: Range(*numbers) for axis, numbers in counts.items()}}
        found.append({axis: limits for axis, limits in known.items() if axis in axes})
    return tuple(found)


def _sum(records: Sequence[LayerRecord]) -> LayerRecord | None:
    if not records:
        return None
    gemms: Counter[str] = Counter()
    macs: Counter[str] = Counter()
    for record in records:
        gemms.update(record.gemms)
        macs.update(record.macs)
    return LayerRecord(
        sum(record.attention for record in records),
        sum(record.fused for record in records),
        tuple(name for record in records for name in record.unfused),
        dict(gemms),
        dict(macs),
    )


def compile_kernels(
    architectures: Sequence[int], writer: BundleWriter, folder: Path, attention: Sequence[KernelAttention]
) -> tuple[KernelCode, ...]:
    """Compile what the attention needs into the bundle.

    Args:
        architectures: compute capabilities times ten.
        writer: of the bundle.
        folder: for the kernels; those that it has already are kept, and belong to the bundle too.
        attention: with its launches.

    Returns:
        The code of the kernels, as the manifest lists it.

    Raises:
        ExportError: one cannot be compiled.
    """
    from mapengine.kernels.compile import read_manifest

    names = {variant for entry in attention for launch in entry.launches for variant in launch}
    options = ["compile", "--out", str(folder)]
    for option, values in (
        ("--arch", architectures),
        ("--head-dim", {entry.head_dim for entry in attention}),
        ("--kernel", names),
    ):
        options += [option, *sorted(map(str, values))]
    # In a process of its own: whether Triton compiles or interprets is decided when it is imported.
    command, environment = child_command("mapengine.kernels", *options), child_environment(TRITON_INTERPRET=None)
    made = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if made.returncode:
        lines = made.stderr.strip().splitlines() or ["no reason given"]
        reason = lines[-1].removeprefix("error: ").removeprefix("refused: ")
        raise ExportError(f"the attention kernels cannot be compiled: {reason}")
    codes = []
    for entry in read_manifest(folder)["kernels"].values():
        for record in (entry["cubin"], entry["ptx"]):
            if record is not None:
                shutil.copyfile(folder / record["file"], writer.folder / record["file"])
                codes.append(KernelCode.from_compiled(writer.record(record["file"]), entry))
    return tuple(codes)
