"""The custom operator ``mapengine::Attention``: attention that is left to our own kernels.

It takes what ``com.microsoft::MultiHeadAttention`` takes and computes the same, softmax(Q K^T / sqrt(D)) V per head,
exactly (``flash``), with scores in INT8 (``int8``), with values in FP8 too (``int8-fp8``), or any of these over a
choice of keys (``sparse``, ``sparse-int8``, ``sparse-int8-fp8``). ``docs/contributing/kernels.md`` has its schema.
No runtime knows it: a stage that has it is cut there (``segments.py``).
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from mapengine.kernels.tuning import HEAD_DIMS
from mapengine.runtime.bundle.kernel_attention import KernelAttention
from mapengine.runtime.errors import ExportError

from .choice import LAYER, KernelChoice

DOMAIN = "mapengine"
OPERATOR = "Attention"
VERSION = 1


def mark_attention(
    graph: ir.Graph, layers: Mapping[str, KernelChoice], extra_tokens: int, shares: Mapping[int, float] = {}
) -> None:
    """Replace ``MultiHeadAttention`` of the named layers by ``mapengine::Attention``, in place.

    Args:
        layers: names of attention modules, such as ``info_sharing.self_attention_blocks.0.attn``, with what computes
            them.
        extra_tokens: class tokens at the end of each view's tokens.
        shares: share of the tokens that are keys in the graph, by block of the aggregator; all in the others.

    Raises:
        ExportError: a layer has no such attention, or one of a type or with heads that no kernel is compiled for.
    """
    found = {
        layer: node
        for node in graph
        if node.op_type == "MultiHeadAttention" and (layer := str(node.name).rpartition("/")[0]) in layers
    }
    by_layer = {LAYER.format(block): share for block, share in shares.items()}
    for layer, choice in layers.items():
        if layer not in found:
            raise ExportError(f"{layer}: there is no attention that {choice} could compute; export the stage again")
        _mark(graph, found[layer], layer, choice, extra_tokens, by_layer.get(layer))


def _mark(
    graph: ir.Graph, node: ir.Node, layer: str, choice: KernelChoice, extra_tokens: int, share: float | None
) -> None:
    inputs = [value for value in node.inputs if value is not None]
    channels = _channels(inputs[0])
    heads = node.attributes["num_heads"].as_int()
    if channels % heads or channels // heads not in HEAD_DIMS:
        raise ExportError(
            f"{layer}: {channels} channels in {heads} heads; kernels have heads of {', '.join(map(str, HEAD_DIMS))} "
            f"channels; use --attention native"
        )
    dtype = inputs[0].dtype
    if dtype not in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        kind = "an unknown type" if dtype is None else dtype.numpy().name
        raise ExportError(f"{layer}: attention is in {kind}, and kernels are in 16 bits; use --attention native")
    attributes: dict[str, int | float | str] = {
        "num_heads": heads,
        "head_dim": channels // heads,
        "kernel": choice.kernel,
        "extra_tokens": extra_tokens,
    }
    if choice.threshold is not None:
        attributes["threshold"] = choice.threshold
    if share is not None:
        attributes["key_share"] = repr(share)  # text, because a number would be rounded to float32
    made = ir.node(OPERATOR, _packed(inputs) or inputs, attributes, domain=DOMAIN, name=f"{layer}/{OPERATOR}")
    old, new = node.outputs[0], made.outputs[0]
    name = old.name
    new.dtype, new.shape = dtype, old.shape
    graph.insert_before(node, made)
    ir.convenience.replace_all_uses_with(old, new)
    graph.remove(node, safe=True)
    new.name = name
    graph.opset_imports[DOMAIN] = VERSION


def _packed(inputs: list[ir.Value]) -> list[ir.Value] | None:
    """Return the one tensor that queries, keys and values are thirds of: kernels read it in place."""
    split = inputs[0].producer()
    if split is None or split.op_type != "Split" or list(split.outputs) != inputs:
        return None
    source = split.inputs[0]
    return None if source is None else [source]


def _channels(value: ir.Value) -> int:
    last = None if value.shape is None else value.shape[-1]
    if not isinstance(last, int):
        raise ExportError(f"{value.name}: the number of channels is not known; export the stage again")
    return last


def is_kernel_attention(node: ir.Node) -> bool:
    """Return whether a node is ``mapengine::Attention``."""
    return node.domain == DOMAIN and node.op_type == OPERATOR


def read_attention(node: ir.Node) -> KernelAttention:
    """Return what a node says, with the names of its tensors."""
    names = [str(value.name) for value in node.inputs if value is not None]
    query, key, value = names * 3 if len(names) == 1 else names
    threshold, share = node.attributes.get("threshold"), node.attributes.get("key_share")
    dtype = node.outputs[0].dtype
    assert dtype is not None
    return KernelAttention(
        layer=str(node.name).rpartition("/")[0],
        kernel=node.attributes["kernel"].as_string(),
        threshold=None if threshold is None else round(threshold.as_float(), 6),
        num_heads=node.attributes["num_heads"].as_int(),
        head_dim=node.attributes["head_dim"].as_int(),
        dtype=dtype.numpy().name,
        query=query,
        key=key,
        value=value,
        out=str(node.outputs[0].name),
        extra_tokens=node.attributes["extra_tokens"].as_int(),
        key_share=None if share is None else float(share.as_string()),
    )
