"""A 16-bit stage as a float32 graph that rounds where the 16-bit graph stores, for backends without 16-bit kernels.

On x86 ONNX Runtime has no bfloat16 kernels and hardly any for float16: it puts a float16 graph between casts to
float32 and then removes the casts that meet, so that most of the graph runs in float32 without a single rounding. That
does not show what a 16-bit engine computes. Here every operator that the graph runs in 16 bit takes float32 inputs that
hold 16-bit numbers, computes in float32 as tensor cores accumulate, and rounds what it returns. ONNX Runtime keeps a
cast that loses digits and was in the model from the start. FP8 has no kernels there either: QuantizeLinear and
DequantizeLinear become a division, a cast to FP8 and back, and a multiplication. INT8 needs nothing of the kind.

Fused kernels round less often (a bias is added before the product is stored), so the error found here is an upper
estimate of theirs, but for one thing: attention as one operator also rounds its probabilities inside.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from mapengine.runtime.backends.contract import StageRunner
from mapengine.runtime.backends.host_pipeline import HostBackend

from ..graphs.files import FLOAT32, is_sixteen_bit, load_graph, save_variant
from .policy import LAYOUT

FP8 = ir.DataType.FLOAT8E4M3FN


def runnable(path: Path, scratch: Path, *, rounding: bool = True) -> Path:
    """Write a file that ONNX Runtime runs on the CPU and that computes what the stage ``path`` says, rounding included.

    Inputs and outputs keep their names and types.

    Args:
        path: a stage in any precision.
        scratch: folder for the emulating graph, which is needed until it is loaded. In the folder of ``path`` it
            shares the file of the weights, in another one it gets a copy.
        rounding: whether to round. Without it a graph that has 16 bits or FP8 in it has the same weights, and is
            float32 throughout, inputs and outputs too.

    Returns:
        ``path`` itself if nothing in it is 16 bit or FP8, otherwise ``<scratch>/<stage>.emulated.onnx``.

    Raises:
        ExportError: the file is missing or is no ONNX file.
    """
    model = load_graph(path, path.stem)
    values = [*model.graph.inputs, *model.graph.initializers.values(), *(v for n in model.graph for v in n.outputs)]
    has_fp8 = any(value.dtype == FP8 for value in values)
    if not has_fp8 and not any(is_sixteen_bit(value) for value in values):
        return path
    if not rounding:
        _drop_quantized_activations(model.graph)
    if has_fp8:
        _write_out_fp8(model.graph)
    _Emulation(model.graph, rounding).run()
    return save_variant(model, path, scratch / f"{path.stem}.emulated.onnx")


def load_runnable(library: HostBackend, name: str, path: Path, scratch: Path, *, rounding: bool = True) -> StageRunner:
    """Load what :func:`runnable` makes of the stage ``path``; its graph does not stay in ``scratch``."""
    emulating = runnable(path, scratch, rounding=rounding)
    try:
        return library.load_stage(name, emulating)
    finally:
        if emulating != path:
            emulating.unlink()


def _drop_quantized_activations(graph: ir.Graph) -> None:
    """Read what was quantised and dequantised as it was before, in place."""
    for node in list(graph):
        source = node.inputs[0].producer() if node.op_type == "DequantizeLinear" and node.inputs[0] else None
        if source is not None and source.op_type == "QuantizeLinear" and source.inputs[0] is not None:
            ir.convenience.replace_all_uses_with(node.outputs[0], source.inputs[0])
            graph.remove(node, safe=True)
            if not source.outputs[0].uses():
                graph.remove(source, safe=True)


def _write_out_fp8(graph: ir.Graph) -> None:
    """Replace FP8's QuantizeLinear and DequantizeLinear, in place, by float32 arithmetic around casts."""
    for node in list(graph):
        values, scale = node.inputs[0], node.inputs[1] if len(node.inputs) > 1 else None
        assert values is not None
        is_fp8 = FP8 in (values.dtype, node.outputs[0].dtype)
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or not is_fp8 or scale is None:
            continue
        result = node.outputs[0]
        wide, factor = (_before(graph, node, "Cast", [value], {"to": int(FLOAT32)}) for value in (values, scale))
        if node.op_type == "QuantizeLinear":
            source = _before(graph, node, "Div", [wide, factor])
        else:  # a scale per output channel is one per column, the last axis
            source = _before(graph, node, "Mul", [wide, factor])
        assert result.dtype is not None
        cast = ir.node("Cast", [source], {"to": int(result.dtype)}, name=node.name)
        graph.insert_before(node, cast)
        ir.convenience.replace_all_uses_with(result, cast.outputs[0])
        cast.outputs[0].type, cast.outputs[0].shape = result.type, result.shape
        graph.remove(node, safe=True)
        cast.outputs[0].name = result.name


def _before(
    graph: ir.Graph, node: ir.Node, operator: str, inputs: list[ir.Value], attributes: dict[str, int] | None = None
) -> ir.Value:
    """Insert a node before another one; return its float32 result."""
    new = ir.node(operator, inputs, attributes or {})
    graph.insert_before(node, new)
    new.outputs[0].type, new.outputs[0].shape = ir.TensorType(FLOAT32), inputs[0].shape
    return new.outputs[0]


class _Emulation:
    """Replaces every 16-bit value by a float32 one that holds the same numbers."""

    def __init__(self, graph: ir.Graph, rounding: bool) -> None:
        self._graph = graph
        self._rounding = rounding
        self._wide: dict[ir.Value, ir.Value] = {}

    def run(self) -> None:
        """Change the graph in place."""
        nodes = list(self._graph)
        if not self._rounding:
            for value in self._graph.inputs:
                if is_sixteen_bit(value):
                    value.dtype = FLOAT32
        stored = {value: value.dtype for value in self._graph.outputs}
        for value in (*self._graph.inputs, *self._graph.initializers.values()):
            if is_sixteen_bit(value):
                self._wide[value] = self._cast(value, FLOAT32, "wide")
                self._graph.insert_before(nodes[0], _producer(self._wide[value]))
        for node in nodes:
            for index, read in enumerate(node.inputs):
                if read in self._wide:
                    node.replace_input_with(index, self._wide[read])
            for value in node.outputs:
                if is_sixteen_bit(value):
                    self._widen(node, value)
        for index, value in enumerate(self._graph.outputs):
            dtype = stored[value]
            if self._rounding and dtype is not None and dtype != value.dtype:
                name, value.name = value.name, f"{value.name}.wide"
                self._graph.outputs[index] = self._cast(value, dtype, "stored")
                self._graph.outputs[index].name = name
                self._graph.append(_producer(self._graph.outputs[index]))

    def _widen(self, node: ir.Node, value: ir.Value) -> None:
        """Round what a node returns, unless it is a cast, which rounds by itself, or moves rounded numbers."""
        dtype = value.dtype
        assert dtype is not None
        if not self._rounding:
            value.dtype = FLOAT32
            if node.op_type == "Cast":
                node.attributes["to"] = ir.AttrInt64("to", int(FLOAT32))
            self._wide[value] = value
            return
        rounded = value
        if node.op_type != "Cast":
            value.dtype = FLOAT32
            if node.op_type in LAYOUT:
                self._wide[value] = value
                return
            rounded = self._cast(value, dtype, "rounded")
            self._graph.insert_after(node, _producer(rounded))
        self._wide[value] = self._cast(rounded, FLOAT32, "wide")
        self._graph.insert_after(_producer(rounded), _producer(self._wide[value]))

    def _cast(self, value: ir.Value, dtype: ir.DataType, suffix: str) -> ir.Value:
        output = ir.Value(name=f"{value.name}.{suffix}", shape=value.shape, type=ir.TensorType(dtype))
        ir.node("Cast", [value], {"to": int(dtype)}, outputs=[output])
        return output


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node
