"""Cut a stage at its attention into segments, between which our own kernels compute the attention.

The graph is cut at every node of the operator ``mapengine::Attention`` (``operator.py``). A segment is an
ordinary graph: what an earlier segment computed and a later one reads becomes an output of the one and an input of the
other. Arithmetic on shapes and unpacking of weights is repeated where it is needed, so that only tensors of features
cross a cut, and every weight is in the one segment that uses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from mapengine.runtime.bundle.kernel_attention import TOKENS, KernelAttention, keys_axis
from mapengine.runtime.bundle.stages import StageSpec, TensorSpec
from mapengine.runtime.errors import ExportError

from ..graphs.weights import save_model
from .choice import KernelChoice
from .operator import DOMAIN, is_kernel_attention, mark_attention, read_attention


@dataclass(frozen=True)
class Segment:
    """One written segment.

    Attributes:
        path: of the graph, with large weights in ``<path>.data``.
        inputs, outputs: its tensors. Those of the stage keep their names.
    """

    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def cut_at_kernels(
    graph: Path,
    folder: Path,
    spec: StageSpec,
    kernels: Mapping[str, KernelChoice],
    extra_tokens: int,
    shares: Mapping[int, float] = {},
) -> tuple[tuple[Segment, ...], tuple[KernelAttention, ...]]:
    """Leave attention of a stage to kernels, and cut it there; see :func:`cut_stage`.

    Args:
        graph: the stage, whose attention is ``mha`` in the layers of ``kernels``.
        kernels: attention modules with what computes them. extra_tokens: class tokens per view.
        shares: of the keys, by block; see :func:`.operator.mark_attention`.
    """
    model = ir.load(graph)
    mark_attention(model.graph, kernels, extra_tokens, shares)
    marked = folder / "marked" / graph.name
    marked.parent.mkdir()
    save_model(model, marked)
    return cut_stage(marked, folder, spec)


def cut_stage(graph: Path, folder: Path, spec: StageSpec) -> tuple[tuple[Segment, ...], tuple[KernelAttention, ...]]:
    """Write the segments of a stage as ``<stage>_<n>.onnx``.

    Args:
        graph: the stage, with its weights beside it.
        folder: existing, for the segments.
        spec: tensors of the stage.

    Returns:
        The segments in order, and what runs behind each but the last.

    Raises:
        ExportError: there is nothing to cut at, or something else than features of all tokens crosses a cut.
    """
    model = ir.load(graph)
    free = _repeatable(model.graph)
    levels = _levels(model.graph, free)
    cuts = [node for node in model.graph if is_kernel_attention(node)]
    if not cuts:
        raise ExportError(f"{graph.name}: no attention is left to kernels; build it with --attention flash or int8")
    attention = tuple(read_attention(node) for node in cuts)
    reads = _reads(model.graph, free, levels, attention, len(cuts) + 1)
    gives: list[list[str]] = [[] for _ in range(len(cuts) + 1)]
    names = {value.name: value for node in model.graph for value in node.outputs}
    stage_inputs = {tensor.name: tensor for tensor in spec.inputs}
    stage_outputs = {tensor.name: tensor for tensor in spec.outputs}
    results = {cut.out for cut in attention}
    wanted = {name for needed in reads for name in needed if name not in stage_inputs} - results
    for cut in attention:
        wanted |= {cut.query, cut.key, cut.value}
    for name in names:
        if name is not None and (name in wanted or name in stage_outputs):
            gives[levels[name]].append(name)

    def tensor(name: str) -> TensorSpec:
        known = stage_inputs.get(name) or stage_outputs.get(name)
        return known or _crossing(names[name], attention)

    segments = []
    for index in range(len(gives)):
        path = folder / f"{graph.stem}_{index}.onnx"
        inputs, outputs = (tuple(tensor(name) for name in side) for side in (reads[index], gives[index]))
        _write(graph, path, inputs, outputs)
        segments.append(Segment(path, inputs, outputs))
    return tuple(segments), attention


def _repeatable(graph: ir.Graph) -> set[str]:
    """Return values that any segment computes for itself: from weights and from the shapes of the stage's inputs
    alone."""
    found: set[str] = set()
    inputs = {value.name for value in graph.inputs}
    for node in graph:
        given = [value for value in node.inputs if value is not None]
        if all(
            value.is_initializer() or value.name in found or (node.op_type == "Shape" and value.name in inputs)
            for value in given
        ):
            found |= {str(value.name) for value in node.outputs}
    return found


def _levels(graph: ir.Graph, free: set[str]) -> dict[str, int]:
    """Return the number of the segment that computes each value: the earliest that can.

    Raises:
        ExportError: two cuts depend on the same earlier ones, so that they are no chain.
    """
    levels: dict[str, int] = {}
    cuts = 0
    for node in graph:
        level = max((levels.get(str(value.name), 0) for value in node.inputs if value is not None), default=0)
        if is_kernel_attention(node):
            if level != cuts:
                raise ExportError(f"{node.name}: attention that kernels compute must be one after the other")
            level = cuts = cuts + 1
        for value in node.outputs:
            if value.name not in free:
                levels[str(value.name)] = level
    return levels


def _reads(
    graph: ir.Graph, free: set[str], levels: Mapping[str, int], attention: Iterable[KernelAttention], count: int
) -> list[list[str]]:
    """Return names that each segment takes from outside: inputs of the stage, values of earlier segments, results of
    cuts."""
    results = {cut.out for cut in attention}
    inputs = {str(value.name) for value in graph.inputs}
    producers = {str(value.name): node for node in graph for value in node.outputs}
    found: list[dict[str, None]] = [{} for _ in range(count)]
    for index in range(count):
        waiting = [
            node
            for node in graph
            if not is_kernel_attention(node) and any(levels.get(str(value.name)) == index for value in node.outputs)
        ]
        seen: set[str] = set()
        while waiting:
            for value in waiting.pop().inputs:
                if value is None or value.is_initializer() or str(value.name) in seen:
                    continue
                name = str(value.name)
                seen.add(name)
                if name in free:
                    waiting.append(producers[name])
                elif name in inputs or name in results or levels[name] < index:
                    found[index][name] = None
    order = {name: position for position, name in enumerate([*inputs, *producers])}
    return [sorted(names, key=order.__getitem__) for names in found]


def _crossing(value: ir.Value, attention: Iterable[KernelAttention]) -> TensorSpec:
    """Describe a tensor that crosses a cut: (1, L, C), or (1, K, C) where it is one of fewer keys or their values."""
    shape = (
        None
        if value.shape is None
        else [side.value if isinstance(side, ir.SymbolicDim) else side for side in value.shape]
    )
    if value.name in {cut.out for cut in attention} or (shape is not None and len(shape) == 3 and shape[0] == 1):
        channels = None if shape is None else shape[2]
        if isinstance(channels, int) and value.dtype is not None and value.dtype.is_floating_point():
            shares = [cut.key_share for cut in attention if value.name in (cut.key, cut.value)]
            axis = TOKENS if not shares or shares[0] is None else keys_axis(shares[0])
            return TensorSpec(str(value.name), value.dtype.numpy().name, (1, axis, channels))
    raise ExportError(
        f"{value.name} of type {value.dtype} and shape {shape} would cross a cut; only features of all tokens can"
    )


def _write(graph: Path, path: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
    """Write a segment: the part of the stage between the given tensors."""
    model = ir.load(graph)  # again, with its weights mapped: taking a graph apart changes it
    body = model.graph
    values = {str(value.name): value for value in (*body.inputs, *(v for node in body for v in node.outputs))}
    given = {str(value.name) for value in body.inputs}
    body.outputs.clear()
    body.outputs.extend(values[tensor.name] for tensor in outputs)
    stage_inputs = {str(value.name): value for value in body.inputs}
    body.inputs.clear()
    for tensor in inputs:
        if tensor.name in given:
            body.inputs.append(stage_inputs[tensor.name])
            continue
        old = values[tensor.name]
        new = ir.Value(name=tensor.name, type=old.type, shape=ir.Shape(list(tensor.shape)))
        ir.convenience.replace_all_uses_with(old, new)
        old.name = f"{tensor.name}.before"  # its node goes
        body.inputs.append(new)
    RemoveUnusedNodesPass()(model)
    for value, tensor in zip(body.outputs, outputs, strict=True):
        value.shape = ir.Shape(list(tensor.shape))
    body.name = path.stem
    body.opset_imports.pop(DOMAIN, None)
    save_model(model, path)
