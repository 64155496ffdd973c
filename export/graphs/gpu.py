"""Graphs in the form that engines on a GPU are made from. They compute the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from mapengine.runtime.bundle.stages import StageSpec, TensorSpec

from .products import separate_quantized_qkv
from .weights import save_model


def separate_products_for_gpu(graph: Path, scratch: Path) -> tuple[Path, int]:
    """Write a stage with every product of ``qkv`` that has a weight in 8 bits as three.

    Args:
        graph: of a stage, in any precision, with its weights beside it.
        scratch: folder for the changed graph.

    Returns:
        The changed graph, or ``graph`` itself where there is no such product, and how many became three.
    """
    model = ir.load(graph)
    count = separate_quantized_qkv(model)
    if not count:
        return graph, 0
    target = scratch / graph.name
    save_model(model, target)
    return target, count


def add_patch_features(graph: Path, scratch: Path, spec: StageSpec) -> tuple[Path, StageSpec]:
    """Write the geometry encoder with the sum inside: ``features = patch_features + geometry_features``.

    On the host NumPy adds what the encoder returns; on a GPU that would take a kernel of our own, so the plan does it.

    Args:
        graph: the stage as exported, with its weights beside it.
        scratch: folder for the changed graph.
        spec: of the stage.

    Returns:
        The changed graph, and the stage's description with the input ``patch_features`` and the output ``features``.
    """
    model = ir.load(graph)
    (old,) = model.graph.outputs
    patches = ir.val("patch_features", ir.DataType.FLOAT, old.shape)
    model.graph.inputs.append(patches)
    node = ir.node("Add", [patches, old], name="geometry_encoder/Add:patch_features")
    total = node.outputs[0]
    total.name, total.shape, total.dtype = "features", old.shape, ir.DataType.FLOAT
    model.graph.append(node)
    model.graph.outputs[0] = total
    target = scratch / graph.name
    save_model(model, target)
    shape = spec.outputs[0].shape
    return target, replace(
        spec,
        inputs=(*spec.inputs, TensorSpec("patch_features", "float32", shape)),
        outputs=(TensorSpec("features", "float32", shape),),
    )
