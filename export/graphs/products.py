"""One product as several, each with a part of the columns of its weight: two libraries run that faster.

The network has one product for queries, keys and values, and one for gate and value of an MLP. OpenVINO copies to cut
their results, and runs the activation of the gate as a pass of its own; behind a product of its own the activation is
part of the product. At full size that is a seventh of the encoder's time in BF16 and INT8. ONNX Runtime copies to cut
as well, 7 % of a small network's time in float32. But it takes products in 8 bits apart again if several share an
input, so :func:`separate_products` is for float32, and for bundles that only OpenVINO runs.

TensorRT-RTX 1.7.1 cuts the product of queries, keys and values into three for attention by itself, and its dequantised
weight with it: the product then runs in 16 bit. Given as three products it merges them into one again, in 8 bits. The
same holds where only the weight is in 8 bits: the plan keeps it so for three products, and in 16 bit for one. That is
what :func:`separate_quantized_qkv` is for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

_QKV = ".attn.qkv/MatMul"
_QKV_PARTS = 3


def separate_products(model: ir.Model) -> tuple[int, int]:
    """Write products whose results are cut into equal parts as one product for each part, in memory.

    Returns:
        How many products became several, and how many products in 8 bits there are more.
    """
    splits = [node for node in model.graph if node.op_type == "Split"]
    found = [(split, before) for split in splits if (before := _product_before(split)) is not None]
    more = sum(len(split.outputs) - 1 for split, (_, product) in found if _dequantizer(product) is not None)
    for split, (bias, product) in found:
        _separate(model.graph, split, bias, product)
    return len(found), more


def separate_quantized_qkv(model: ir.Model) -> int:
    """Write every product of ``qkv`` with a weight in 8 bits as three that are joined, in memory.

    Returns:
        How many products became three.
    """
    found = [node for node in model.graph if (node.name or "").endswith(_QKV) and _dequantizer(node) is not None]
    for product in found:
        _join(model.graph, product)
    return len(found)


def _product_before(split: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """Return the bias and the product whose result is cut into equal parts, if it is used for nothing else."""
    bias = split.inputs[0].producer() if split.inputs[0] is not None else None
    if bias is None or bias.op_type != "Add" or len(bias.outputs[0].uses()) != 1:
        return None
    product = bias.inputs[0].producer() if bias.inputs[0] is not None else None
    if product is None or product.op_type != "MatMul" or len(product.outputs[0].uses()) != 1:
        return None
    constant = bias.inputs[1]
    equal = constant is not None and constant.const_value is not None and len(split.inputs) == 1
    return (bias, product) if equal else None


def _separate(graph: ir.Graph, split: ir.Node, bias: ir.Node, product: ir.Node) -> None:
    added = bias.inputs[1]
    assert added is not None
    replaced = [split, bias, *_with_dequantizer(product)]
    parts = _parts(graph, product, len(split.outputs), before=split)
    for index, (part, output) in enumerate(zip(parts, split.outputs, strict=True)):
        result = _copy(graph, bias, index, [part, _columns(graph, added, index, len(split.outputs))], before=split)
        result.shape = output.shape
        ir.convenience.replace_all_uses_with(output, result, replace_graph_outputs=True)
    _remove(graph, replaced)


def _join(graph: ir.Graph, product: ir.Node) -> None:
    result, replaced = product.outputs[0], _with_dequantizer(product)
    parts = list(_parts(graph, product, _QKV_PARTS, before=product))
    joined = ir.node("Concat", parts, {"axis": -1}, name=f"{product.name}.joined")
    graph.insert_before(product, joined)
    output = joined.outputs[0]
    output.type, output.shape = result.type, result.shape
    ir.convenience.replace_all_uses_with(result, output, replace_graph_outputs=True)
    _remove(graph, replaced)
    output.name = result.name


def _parts(graph: ir.Graph, product: ir.Node, count: int, before: ir.Node) -> Iterator[ir.Value]:
    """Insert a product for each of ``count`` equal parts of the weight before a node; yield its result."""
    dequantizer = _dequantizer(product)
    stored = [product.inputs[1]] if dequantizer is None else dequantizer.inputs[:2]
    for index in range(count):
        weight = [_columns(graph, value, index, count) for value in stored if value is not None]
        if dequantizer is not None:  # weight and scales
            weight = [_copy(graph, dequantizer, index, weight, before, {"axis": 1})]
        yield _copy(graph, product, index, [product.inputs[0], *weight], before)


def _dequantizer(product: ir.Node) -> ir.Node | None:
    """Return the DequantizeLinear of a product's weight; None if the weight is not in 8 bits."""
    source = None if product.inputs[1] is None else product.inputs[1].producer()
    return source if source is not None and source.op_type == "DequantizeLinear" else None


def _with_dequantizer(product: ir.Node) -> list[ir.Node]:
    dequantizer = _dequantizer(product)
    return [product] if dequantizer is None else [product, dequantizer]


def _columns(graph: ir.Graph, whole: ir.Value, index: int, parts: int) -> ir.Value:
    """Add a constant: one of ``parts`` equal parts of the last axis of another, read when the graph is written."""
    tensor, name = whole.const_value, f"{whole.name}.{index}"
    assert tensor is not None
    width = tensor.shape.numpy()[-1] // parts
    shape = ir.Shape([*tensor.shape.numpy()[:-1], width])

    def cut() -> ir.Tensor:
        values = np.ascontiguousarray(tensor.numpy()[..., index * width : (index + 1) * width])
        return ir.Tensor(values, dtype=tensor.dtype, name=name)

    lazy = ir.LazyTensor(cut, dtype=tensor.dtype, shape=shape, name=name)
    value = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=lazy)
    graph.register_initializer(value)
    return value


def _copy(
    graph: ir.Graph,
    node: ir.Node,
    index: int,
    inputs: Sequence[ir.Value | None],
    before: ir.Node,
    attributes: dict[str, int] | None = None,
) -> ir.Value:
    """Insert a node like ``node`` for one of the parts before another node; return its output."""
    made = ir.node(node.op_type, inputs, attributes or {}, name=f"{node.name}.{index}")
    made.outputs[0].name = made.name
    made.outputs[0].type = node.outputs[0].type
    graph.insert_before(before, made)
    return made.outputs[0]


def _remove(graph: ir.Graph, nodes: Sequence[ir.Node]) -> None:
    """Remove nodes that nothing reads any more, and the constants that they alone read."""
    constants = {value for node in nodes for value in node.inputs if value is not None and value.is_initializer()}
    graph.remove(nodes, safe=True)
    for value in constants:
        if not value.uses() and value.name is not None:
            del graph.initializers[value.name]
