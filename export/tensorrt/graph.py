"""What an ONNX stage says of its attention blocks and matrix products, to compare a plan with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mapengine.runtime.errors import ExportError

if TYPE_CHECKING:
    import onnx_ir as ir

PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"})
_WHOLE = frozenset({"MultiHeadAttention", "Attention"})
_BETWEEN = frozenset({"Cast", "Mul", "Div", "Add"})
"""What may stand between the products and the softmax of an attention that is written out."""
_MAX_STEPS = 4
_DTYPES = {"FLOAT": "float32", "FLOAT16": "float16", "BFLOAT16": "bfloat16"}


@dataclass(frozen=True)
class AttentionBlock:
    """One attention of the graph.

    Attributes:
        module: the layer of the network, such as ``info_sharing.self_attention_blocks.3.attn``.
        operator: ``MultiHeadAttention``, ``Attention``, or ``Softmax`` where it is written out.
        nodes: the names of the nodes that a fused kernel replaces.
        dtype: of queries and keys, such as ``float16``. heads: their number. None where the graph does not say.
    """

    module: str
    operator: str
    nodes: tuple[str, ...]
    dtype: str | None
    heads: int | None


class GraphProduct(NamedTuple):
    """One product of the graph that is not inside an attention.

    Attributes:
        operator: one of :data:`PRODUCTS`. dtype: of its input, None where the graph does not say.
        macs: multiplications per row of the output, which is a token or a pixel; 0 where nothing of it is a weight, or
            where the number of rows does not depend on the input.
    """

    operator: str
    dtype: str | None
    macs: int = 0


@dataclass(frozen=True)
class StageGraph:
    """Attention blocks in running order, and the other products by the node's name."""

    attention: tuple[AttentionBlock, ...]
    products: Mapping[str, GraphProduct]


def read_graph(path: Path) -> StageGraph:
    """Read a stage's structure; weights in external files are not loaded.

    Raises:
        ExportError: the file cannot be read as ONNX.
    """
    # Here, because the process that compiles imports this package and needs no graph.
    import onnx_ir as ir

    try:
        graph = ir.load(path).graph
    except Exception as error:  # a missing file, or what protobuf and onnx_ir make of a wrong one
        raise ExportError(f"{path}: cannot be read as an ONNX graph; export the stage again") from error
    blocks = tuple(_attention(graph))
    inside = {name for block in blocks for name in block.nodes}
    products = {
        _name(node): GraphProduct(node.op_type, _dtype(node), _macs(node))
        for node in graph
        if node.op_type in PRODUCTS and _name(node) not in inside
    }
    return StageGraph(blocks, products)


def _attention(graph: ir.Graph) -> Iterator[AttentionBlock]:
    for node in graph:
        if node.op_type in _WHOLE:
            yield AttentionBlock(_module(node), node.op_type, (_name(node),), _dtype(node), _heads(node))
        elif node.op_type == "Softmax":
            scores, values = _nearest_product(node, _before), _nearest_product(node, _after)
            if scores is not None and values is not None:
                nodes = (_name(scores), _name(node), _name(values))
                yield AttentionBlock(_module(node), node.op_type, nodes, _dtype(scores), _heads(node))


def _nearest_product(node: ir.Node, neighbours: Callable[[ir.Node], list[ir.Node]]) -> ir.Node | None:
    """Return the matrix product that feeds a softmax or that it feeds, through what may stand between."""
    for _ in range(_MAX_STEPS):
        near = neighbours(node)
        products = [other for other in near if other.op_type == "MatMul"]
        if products:
            return products[0]
        passed = [other for other in near if other.op_type in _BETWEEN]
        if not passed:
            return None
        node = passed[0]
    return None


def _before(node: ir.Node) -> list[ir.Node]:
    producers = (value.producer() for value in node.inputs if value is not None)
    return [producer for producer in producers if producer is not None]


def _after(node: ir.Node) -> list[ir.Node]:
    return [user for user, _ in node.outputs[0].uses()]


def _heads(node: ir.Node) -> int | None:
    """Return the number of heads: from the attribute of the operators that have one, else from queries or scores of
    (batch, heads, ...)."""
    for name in ("num_heads", "q_num_heads"):
        if name in node.attributes:
            return int(node.attributes[name].as_int())
    shape = node.inputs[0].shape if node.inputs and node.inputs[0] is not None else None
    heads = shape[1] if shape is not None and len(shape) == 4 else None
    return heads if isinstance(heads, int) else None


def _dtype(node: ir.Node) -> str | None:
    dtype = node.inputs[0].dtype if node.inputs and node.inputs[0] is not None else None
    return None if dtype is None else _DTYPES.get(dtype.name)


def _macs(node: ir.Node) -> int:
    weight, made = _weight(node), node.outputs[0].shape
    if weight is None or weight.shape is None or made is None:
        return 0
    sides, known = weight.shape.numpy(), [side for side in made if isinstance(side, int)]
    if len(known) == len(made):
        return 0
    if node.op_type != "MatMul":
        return math.prod(sides)
    # What lies between rows and channels, as the blocks of a rotation, is the same for every row.
    return math.prod(known) * sides[-2]


def _weight(node: ir.Node) -> ir.Value | None:
    """Return the second factor of a product, perhaps behind what widens it, if it is a constant."""
    value = node.inputs[1]
    while value is not None and (producer := value.producer()) is not None:
        if producer.op_type not in ("DequantizeLinear", "Cast"):
            return None
        value = producer.inputs[0]
    return value if value is not None and value.is_initializer() else None


def _name(node: ir.Node) -> str:
    return node.name or ""


def _module(node: ir.Node) -> str:
    return _name(node).rpartition("/")[0] or _name(node)
