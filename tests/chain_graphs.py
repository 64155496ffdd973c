"""The aggregator of a float32 bundle in half precision, cut at its attention."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from mapengine.export.attention.choice import AttentionChoice
from mapengine.export.attention.operator import mark_attention
from mapengine.export.attention.segments import Segment, cut_stage
from mapengine.export.bundles.chains import segment_profiles, with_launches
from mapengine.export.bundles.parity_cases import parity_cases
from mapengine.export.graphs.weights import save_model
from mapengine.export.model.config_json import parse_config
from mapengine.export.precision import lower_precision, measure_magnitudes
from mapengine.runtime.bundle.kernel_attention import KernelAttention
from mapengine.runtime.bundle.manifest import STAGES, ReducedPrecision, StageSpec
from mapengine.runtime.bundle.store import Bundle, BundleWriter, write_bundle

from .runtime.backends.cuda.stand_in_kernels import write_kernels

STAGE = "aggregator"


def half_aggregator(source: Path, folder: Path) -> Path:
    """The stage in float16, written into ``folder``."""
    paths, magnitudes = _measured(source)
    target = folder / f"{STAGE}.onnx"
    lower_precision(paths[STAGE], target, stage=STAGE, precision="fp16", magnitudes=magnitudes[STAGE])
    return target


def half_bundle(source: Path, folder: Path) -> Path:
    """The bundle in float16."""
    paths, magnitudes = _measured(source)
    bundle = Bundle.open(source, verify=False)
    with write_bundle(folder) as writer:
        stages = {}
        for name, path in paths.items():
            target = writer.folder / path.name
            stage = lower_precision(path, target, stage=name, precision="fp16", magnitudes=magnitudes[name])
            file = writer.record(target.name)
            spec = bundle.manifest.stages[name]
            stages[name] = replace(spec, file=file, inputs=stage.inputs, outputs=stage.outputs, opset=stage.opset)
        golden = replace(bundle.manifest.golden, file=writer.golden(bundle.golden()))
        reduced = ReducedPrecision()
        changed = replace(
            bundle.manifest, precision="fp16", reduced_precision=reduced, stages=stages, golden=golden, parity=None
        )
        writer.write_manifest(changed)
    return folder


@functools.cache
def _measured(source: Path) -> tuple[dict[str, Path], dict[str, dict[str, float]]]:
    bundle = Bundle.open(source, verify=False)
    paths = {name: bundle.stage_path(name) for name in STAGES}
    return paths, measure_magnitudes(paths, parity_cases("dinov2"), data_norm_type="dinov2")


def mark(source: Path, graph: Path, target: Path, attention: str) -> Path:
    """The graph with the operator of our kernels where ``attention`` says so."""
    manifest = Bundle.open(source, verify=False).manifest
    layers = AttentionChoice.parse(attention).layers(parse_config(manifest.model.config, "test"))
    model = ir.load(graph)
    mark_attention(model.graph, layers, manifest.model.extra_tokens, manifest.shares_by_block)
    save_model(model, target)
    return target


def cut(
    source: Path, graph: Path, folder: Path, attention: str
) -> tuple[tuple[Segment, ...], tuple[KernelAttention, ...]]:
    """The segments of the stage in ``folder``."""
    marked = folder / "marked" / f"{STAGE}.onnx"
    marked.parent.mkdir()
    mark(source, graph, marked, attention)
    spec = Bundle.open(source, verify=False).manifest.stages[STAGE]
    segments, cuts = cut_stage(marked, folder, spec)
    return segments, tuple(with_launches(entry) for entry in cuts)


def write_chain(
    source: Path,
    folder: Path,
    segments: Sequence[Segment],
    attention: tuple[KernelAttention, ...],
    write_segment: Callable[[BundleWriter, Segment, StageSpec], StageSpec],
) -> None:
    """A bundle for a GPU with the chain in place of its aggregator, and kernels that the stand-in driver runs."""
    manifest = Bundle.open(source, verify=False).manifest
    old = manifest.stages[STAGE]
    with write_bundle(folder) as writer:
        for file in source.iterdir():
            if file.stem != STAGE and file.name != "manifest.json":
                shutil.copyfile(file, writer.folder / file.name)
        parts = []
        shares = {entry.key_share for entry in attention if entry.key_share is not None}
        for segment in segments:
            tensors = (*segment.inputs, *segment.outputs)
            magnitudes = segment_profiles(old.optimization_profiles, tensors, 1, shares)
            spec = StageSpec(None, segment.inputs, segment.outputs, opset=old.opset, optimization_profiles=magnitudes)
            parts.append(write_segment(writer, segment, spec))
        chain = replace(old, file=None, data=(), segments=tuple(parts), attention=attention)
        kernels = write_kernels(writer, 32)
        writer.write_manifest(replace(manifest, stages={**manifest.stages, STAGE: chain}, kernels=kernels))


def weight_bytes(graph: Path) -> Mapping[str, int]:
    """Bytes of each weight of a thousand and more numbers."""
    weights = ir.load(graph).graph.initializers.values()
    found = {str(value.name): value.const_value for value in weights}
    return {name: tensor.nbytes for name, tensor in found.items() if tensor is not None and tensor.size >= 1000}
