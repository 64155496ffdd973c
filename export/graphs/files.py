"""Reading stages, adding nodes to them, and writing variants that share the weights of the original."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from mapengine.runtime.errors import ExportError

FLOAT32 = ir.DataType.FLOAT
_SIXTEEN_BIT = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def load_graph(path: Path, stage: str) -> ir.Model:
    """Read a stage with its weights mapped.

    Raises:
        ExportError: it is missing or is no ONNX file.
    """
    try:
        return ir.load(path)
    except Exception as error:  # a protobuf error, or whatever a damaged file provokes
        reason = "is not a readable ONNX file" if path.exists() else "is missing"
        raise ExportError(f"{stage}: {path} {reason}; export the stage again") from error


def load_float32_graph(path: Path, stage: str) -> ir.Model:
    """Read a stage whose floating tensors are all float32.

    Raises:
        ExportError: as :func:`load_graph`, or a tensor has another type.
    """
    model = load_graph(path, stage)
    values = [*model.graph.inputs, *model.graph.initializers.values(), *(v for n in model.graph for v in n.outputs)]
    for value in values:
        if is_floating(value) and value.dtype != FLOAT32:
            raise ExportError(f"{stage}: tensor {value.name} of {path} is not float32; give the stage as exported")
    return model


def is_floating(value: ir.Value) -> bool:
    """Return whether a value is of one of the types that precision is about.

    Raises:
        ExportError: the graph does not tell the type.
    """
    if value.dtype is None:
        raise ExportError(f"tensor {value.name} has no type in the graph; export the stage again")
    return value.dtype == FLOAT32 or is_sixteen_bit(value)


def is_sixteen_bit(value: ir.Value) -> bool:
    """Return whether a value is float16 or bfloat16."""
    return value.dtype in _SIXTEEN_BIT


def module_of(node: ir.Node) -> str:
    """Return the layer that a node belongs to: what stands before the slash in its name."""
    return (node.name or "").rpartition("/")[0]


def constant(graph: ir.Graph, name: str, value: Any) -> ir.Value:
    """Add a new constant to a graph; ``value`` is a NumPy array or scalar."""
    tensor = ir.tensor(value, name=name)
    shape = ir.Shape(tensor.numpy().shape)
    made = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(made)
    return made


def add_node(
    graph: ir.Graph,
    operator: str,
    inputs: Sequence[ir.Value],
    attributes: Mapping[str, Any] | None = None,
    dtype: ir.DataType = FLOAT32,
) -> ir.Value:
    """Append a node without a name and return its output, of the given type and unknown shape."""
    node = ir.node(operator, inputs, dict(attributes or {}))
    graph.append(node)
    node.outputs[0].type = ir.TensorType(dtype)
    return node.outputs[0]


def save_variant(model: ir.Model, source: Path, target: Path) -> Path:
    """Write a graph that was loaded from ``source`` and keeps its weights.

    In the folder of ``source`` it shares the file of the weights, elsewhere that file is copied: ONNX Runtime reads no
    weights from outside a model's folder and through no link.
    """
    data = source.with_name(f"{source.name}.data")
    if data.exists() and target.parent.resolve() != source.parent.resolve():
        shutil.copyfile(data, target.parent / data.name)
    ir.save(model, target)
    return target
