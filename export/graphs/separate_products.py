"""A product whose result is cut into parts, as one product for each part.

The network has one product for queries, keys and values, and one for gate and value of an MLP. OpenVINO copies to cut
their results, and runs the activation of the gate as a pass of its own; behind a product of its own the activation is
part of the product. At full size that is a seventh of the encoder's time in BF16 and INT8. ONNX Runtime takes products
in 8 bits apart again if several share an input, so this is for bundles that only OpenVINO runs.
"""

from __future__ import annotations

import onnx_ir as ir

from .files import columns, dequantised


def cut_apart(model: ir.Model) -> tuple[int, int]:
    """Change a graph in memory.

    Returns:
        How many products became several, and how many products in 8 bits there are more.
    """
    splits = [node for node in model.graph if node.op_type == "Split"]
    found = [(split, before) for split in splits if (before := _product_before(split)) is not None]
    more = sum(len(split.outputs) - 1 for split, (_, product) in found if dequantised(product) is not None)
    for split, before in found:
        _separate(model.graph, split, *before)
    return len(found), more


def _product_before(split: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """The bias and the product whose result is cut into equal parts, if it is used for nothing else."""
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
    wide, parts = dequantised(product), len(split.outputs)
    weights = [product.inputs[1]] if wide is None else list(wide.inputs[:2])
    whole = [value for value in (*weights, bias.inputs[1]) if value is not None]
    for index, output in enumerate(split.outputs):
        *weight, added = (columns(graph, value, index, parts) for value in whole)
        operand = weight[0]
        if wide is not None:
            operand = _insert(graph, split, wide, index, weight, {"axis": 1})
        partial = _insert(graph, split, product, index, [product.inputs[0], operand])
        result = _insert(graph, split, bias, index, [partial, added])
        result.shape = output.shape
        ir.convenience.replace_all_uses_with(output, result, replace_graph_outputs=True)
    for node in (split, bias, product, *([wide] if wide is not None else [])):
        graph.remove(node, safe=True)
    for value in whole:
        if not value.uses() and value.name is not None:
            del graph.initializers[value.name]


def _insert(
    graph: ir.Graph,
    before: ir.Node,
    like: ir.Node,
    index: int,
    inputs: list[ir.Value | None] | list[ir.Value],
    attributes: dict[str, int] | None = None,
) -> ir.Value:
    """A node as ``like`` for one of the parts, and its output."""
    node = ir.node(like.op_type, inputs, attributes or {}, name=f"{like.name}.{index}")
    node.outputs[0].name = node.name
    node.outputs[0].type = like.outputs[0].type
    graph.insert_before(before, node)
    return node.outputs[0]
