"""Queries, keys and values as three products, where they are in 8 bits.

TensorRT-RTX 1.7.1 cuts the one product of ``qkv`` into three for attention, and its dequantised weight with it: the
product then runs in 16 bit. Given as three products it merges them into one again, in 8 bits. The same holds where only
the weight is in 8 bits: the plan keeps it so for three products, and in 16 bit for one.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from .files import columns, dequantised
from .weights import save_model

_PRODUCT = ".attn.qkv/MatMul"
_PARTS = 3


def split_quantised_products(graph: Path, scratch: Path) -> tuple[Path, int]:
    """Write a stage with every quantised product of ``qkv`` as three that are joined.

    Args:
        graph: of a stage, in any precision, with its weights beside it.
        scratch: folder for the changed graph.

    Returns:
        The changed graph, or ``graph`` where nothing is quantised, and how many products were split.
    """
    model = ir.load(graph)
    found = [node for node in model.graph if (node.name or "").endswith(_PRODUCT) and dequantised(node) is not None]
    if not found:
        return graph, 0
    for node in found:
        _split(model.graph, node)
    target = scratch / graph.name
    save_model(model, target)
    return target, len(found)


def _split(graph: ir.Graph, product: ir.Node) -> None:
    wide = dequantised(product)
    assert wide is not None
    data, result = product.inputs[0], product.outputs[0]
    weight, scale = wide.inputs[0], wide.inputs[1]
    assert weight is not None
    assert scale is not None
    parts = []
    for index in range(_PARTS):
        inputs = [columns(graph, value, index, _PARTS) for value in (weight, scale)]
        read = ir.node("DequantizeLinear", inputs, {"axis": 1}, name=f"{wide.name}.{index}")
        part = ir.node("MatMul", [data, read.outputs[0]], name=f"{product.name}.{index}")
        for node, dtype in ((read, wide.outputs[0].dtype), (part, result.dtype)):
            node.outputs[0].name = node.name
            if dtype is not None:
                node.outputs[0].dtype = dtype
            graph.insert_before(product, node)
        parts.append(part.outputs[0])
    joined = ir.node("Concat", parts, {"axis": -1}, name=f"{product.name}.joined")
    graph.insert_before(product, joined)
    output = joined.outputs[0]
    output.type, output.shape = result.type, result.shape
    ir.convenience.replace_all_uses_with(result, output, replace_graph_outputs=True)
    graph.remove(product, safe=True)
    graph.remove(wide, safe=True)
    output.name = result.name
    for value in (weight, scale):
        if not value.uses() and value.name is not None:
            del graph.initializers[value.name]
