"""Graphs in a form that the libraries on processors run faster. They compute the same.

For float32 in both libraries, and for what OpenVINO alone runs: ONNX Runtime takes products in 8 bits apart again if
several share an input.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import onnx_ir as ir

from .files import load_graph
from .products import separate_products
from .weights import save_model


def rewrite_for_processors(path: Path, stage: str) -> int:
    """Rewrite a stage in place: a product for each part of a result, and rounding next to its product.

    Args:
        path: of the stage, in float32 or with products in 8 bits, with its weights beside it.
        stage: its name, for messages.

    Returns:
        How many products in 8 bits there are more than before.

    Raises:
        ExportError: the file is no stage.
    """
    model = load_graph(path, stage)
    places, more = separate_products(model)
    if not places + round_before_reshaping(model):
        return 0
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        data = save_model(model, Path(scratch) / path.name)
        # The weights first: read from the old file until here, and found by the new graph from here on.
        for written in (data, Path(scratch) / path.name):
            if written is not None:
                os.replace(written, path.with_name(written.name))
    return more


def round_before_reshaping(model: ir.Model) -> int:
    """Let the result of a product, which is reshaped and then rounded to 8 bits, be rounded first.

    OpenVINO rounds as part of the product then. Behind a reshape, as rotations have it, it writes the result in 16 bit,
    widens it and rounds it, in passes of their own: a twentieth of the encoder's time at full size in INT8.

    Returns:
        How many places were changed.
    """
    reshapes = [node for node in model.graph if node.op_type == "Reshape"]
    found = [(reshape, behind) for reshape in reshapes if (behind := _rounding_behind(reshape)) is not None]
    for reshape, (rounding, widening) in found:
        product, wide = reshape.inputs[0], widening.outputs[0]
        assert product is not None
        rounding.replace_input_with(0, product)
        # The reshape behind the two takes the place of what they gave.
        ir.convenience.replace_all_uses_with(wide, reshape.outputs[0])
        reshape.replace_input_with(0, wide)
        for value in (rounding.outputs[0], wide):
            value.shape = product.shape
        model.graph.remove(reshape)
        model.graph.insert_after(widening, reshape)
    return len(found)


def _rounding_behind(reshape: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """Return the rounding and the widening that a product is reshaped for, and for nothing else, if both have one
    scale."""
    product = reshape.inputs[0].producer() if reshape.inputs[0] is not None else None
    rounding = _only_user(reshape, "QuantizeLinear")
    widening = _only_user(rounding, "DequantizeLinear") if rounding is not None else None
    if product is None or product.op_type != "MatMul" or rounding is None or widening is None:
        return None
    scales = [node.inputs[1] for node in (rounding, widening)]
    single = all(scale is not None and scale.shape is not None and not len(scale.shape) for scale in scales)
    return (rounding, widening) if single else None


def _only_user(node: ir.Node, operator: str) -> ir.Node | None:
    users = [user for user, _ in node.outputs[0].uses()]
    return users[0] if len(users) == 1 and users[0].op_type == operator else None
