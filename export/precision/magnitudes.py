"""Measure the largest magnitude of every floating tensor of every stage, on the CPU, over a few cases."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mapengine.runtime.backends.contract import Arrays, StageRunner
from mapengine.runtime.backends.host_pipeline import Pipeline
from mapengine.runtime.backends.onnxruntime import OnnxRuntimeBackend
from mapengine.runtime.errors import InputError
from mapengine.runtime.inputs.prepared import prepare_views

from ..graphs.files import add_node, constant, is_floating, load_float32_graph, save_variant
from .assign import ATTENTION, scores_of

_PREFIX = "largest:"
"""Marks the outputs that were added to a graph."""


def measure_magnitudes(
    stages: Mapping[str, Path],
    cases: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    data_norm_type: str = "dinov2",
    progress: Callable[[str], None] | None = None,
) -> dict[str, dict[str, float]]:
    """Measure the largest magnitude of every floating tensor that a float32 engine meets.

    The graphs run in ONNX Runtime with one more output per tensor, the maximum of its magnitudes, so that no tensor has
    to be kept. For attention the scores of query and key before scaling are bounded by the products of their lengths
    (Cauchy-Schwarz), because the operator does not show them.

    Args:
        stages: stage name to float32 ``.onnx`` file; the folder of each must be writable.
        cases: name to views, as of :func:`mapengine.export.bundles.parity_cases.parity_cases`.
        data_norm_type: normalisation of the network's images.
        progress: called with the name of each case.

    Returns:
        For every stage: tensor name (or ``<module>/scores``) to magnitude, over all cases. Infinity where a tensor had
        NaN or infinity in it. A stage that no case needed has no entries.

    Raises:
        InputError: there are no cases.
        ExportError, BackendError: a file is not a float32 stage, or ONNX Runtime cannot run it.
    """
    if not cases:
        raise InputError("there are no cases to measure magnitudes with; give at least one")
    backend = OnnxRuntimeBackend()
    runners: dict[str, _Measuring] = {}
    for name, path in stages.items():
        variant = path.with_name(f".{path.stem}-{secrets.token_hex(4)}.onnx")  # beside the weights, to share them
        try:
            runners[name] = _Measuring(backend.load_stage(name, add_maxima(path, variant, name)))
        finally:
            variant.unlink(missing_ok=True)
    pipeline = Pipeline(dict[str, StageRunner](runners))
    for title, views in cases.items():
        if progress is not None:
            progress(title)
        pipeline.forward(prepare_views(views, data_norm_type=data_norm_type))
    return {name: runner.largest for name, runner in runners.items()}


class _Measuring:
    """A stage that keeps the largest magnitudes of its calls and returns the outputs that the pipeline knows."""

    def __init__(self, runner: StageRunner) -> None:
        self._runner = runner
        self.largest: dict[str, float] = {}

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        outputs = self._runner.run(inputs)
        for name in [name for name in outputs if name.startswith(_PREFIX)]:
            tensor, found = name.removeprefix(_PREFIX), float(outputs.pop(name))
            self.largest[tensor] = max(self.largest.get(tensor, 0.0), found)
        return outputs


def add_maxima(source: Path, target: Path, stage: str) -> Path:
    """Write ``source``, a float32 stage, with the largest magnitude of every floating tensor as further outputs."""
    model = load_float32_graph(source, stage)
    graph = model.graph
    nodes = list(graph)
    infinity = constant(graph, f"{_PREFIX}infinity", np.float32(math.inf))
    for value in (*graph.inputs, *(output for node in nodes for output in node.outputs)):
        if is_floating(value):
            # Where, because a maximum may hide NaN.
            clean = add_node(
                graph,
                "Where",
                [add_node(graph, "IsNaN", [value], dtype=ir.DataType.BOOL), infinity, add_node(graph, "Abs", [value])],
            )
            _add_output(graph, value.name or "", add_node(graph, "ReduceMax", [clean], {"keepdims": 0}))
    for node in nodes:
        if node.op_type in ATTENTION:
            _add_output(graph, scores_of(node), _scores_bound(graph, node))
    return save_variant(model, source, target)


def _scores_bound(graph: ir.Graph, node: ir.Node) -> ir.Value:
    """Add the largest product, over the heads, of the longest query and the longest key."""
    heads = node.attributes.get("num_heads")
    longest = []
    for value in node.inputs[:2]:
        assert value is not None
        axis = 2  # of the tokens, in (N, heads, L, channels)
        if heads is not None:  # (N, L, heads * channels)
            shape = constant(graph, f"{_PREFIX}{value.name}.shape", np.array([0, 0, heads.as_int(), -1], np.int64))
            value, axis = add_node(graph, "Reshape", [value, shape]), 1
        axes = [constant(graph, f"{_PREFIX}{value.name}.{i}", np.array([i], np.int64)) for i in (-1, axis)]
        lengths = add_node(graph, "ReduceL2", [value, axes[0]], {"keepdims": 0})  # without the last axis
        longest.append(add_node(graph, "ReduceMax", [lengths, axes[1]], {"keepdims": 0}))  # (N, heads)
    return add_node(graph, "ReduceMax", [add_node(graph, "Mul", longest)], {"keepdims": 0})


def _add_output(graph: ir.Graph, name: str, value: ir.Value) -> None:
    value.name, value.shape = f"{_PREFIX}{name}", ir.Shape(())
    graph.outputs.append(value)
