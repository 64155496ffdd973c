"""Networks that compute the same with magnitudes far outside of float16's range, to prove that ranges are kept.

Trained transformers have such activations in a few channels and tokens; random weights do not. A layer is multiplied
by a power of two and the linear layer behind it is divided by it, so that the float32 stage returns the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mapengine.export.graphs.files import load_float32_graph
from mapengine.export.graphs.weights import save_model

FACTOR = np.float32(2.0**17)
"""Carries numbers near 1 beyond float16's 65504."""

Place = Literal["mlp", "attention", "queries", "dense head", "geometry encoder"]
PLACES: tuple[Place, ...] = ("mlp", "attention", "queries", "dense head", "geometry encoder")

Weights = Mapping[str, NDArray[np.float32]]
Part = NDArray[np.float32]


def write_stressed(source: Path, target: Path, place: Place) -> None:
    """Write a float32 stage with other weights.

    Args:
        source: a stage of :func:`mapengine.export.graphs.tracing.export_stages`, whatever its attention form. It is
            read into memory.
        target: another file.
        place: ``mlp``: the product of gate and value in the blocks with a gated MLP. ``attention``: the values, and so
            what attention returns. ``queries``: large queries and tiny keys. ``dense head``: the last map before the
            regressor. ``geometry encoder``: what the first convolutions of rays and depth return. A stage without
            such a layer is written as it is.

    Raises:
        ExportError: the file is not a float32 stage.
    """
    model = load_float32_graph(source, source.stem)
    weights = {}
    for name, value in model.graph.initializers.items():
        if value.const_value is not None and value.dtype == ir.DataType.FLOAT:
            weights[name] = np.array(value.const_value.numpy())
            value.const_value = ir.tensor(weights[name], name=name)
    for grown, shrunk in _pairs(weights, place):
        for part in grown:
            part *= FACTOR
        for part in shrunk:
            part /= FACTOR
    save_model(model, target)


def _pairs(weights: Weights, place: Place) -> Iterator[tuple[list[Part], list[Part]]]:
    """Yield parts of the weights to multiply and to divide. A linear layer's weight is (inputs, outputs)."""
    if place == "mlp":
        for layer in _layers(weights, ".mlp.w12"):
            half = len(weights[f"{layer}.bias"]) // 2
            value = [weights[f"{layer}.weight"][:, half:], weights[f"{layer}.bias"][half:]]
            yield value, [weights[f"{layer.removesuffix('w12')}w3.weight"]]
    elif place in ("attention", "queries"):
        for layer in _layers(weights, ".attn.qkv"):
            query, key, value = (
                list(parts)
                for parts in zip(
                    np.split(weights[f"{layer}.weight"], 3, axis=1), np.split(weights[f"{layer}.bias"], 3), strict=True
                )
            )
            yield (query, key) if place == "queries" else (value, [weights[f"{layer.removesuffix('qkv')}proj.weight"]])
    elif place == "dense head":
        for layer in _layers(weights, ".scratch.refinenet1.out_conv"):
            yield _both(weights, layer), [weights["dense_head.1.conv1.weight"]]
    else:
        for encoder in ("ray_dirs_encoder", "depth_encoder"):
            for layer in _layers(weights, f"{encoder}.conv_in"):
                behind = [weights[f"{encoder}.encoder.0.{name}.weight"] for name in ("conv1", "shortcut")]
                yield _both(weights, layer), behind


def _both(weights: Weights, layer: str) -> list[Part]:
    return [weights[f"{layer}.weight"], weights[f"{layer}.bias"]]


def _layers(weights: Weights, suffix: str) -> list[str]:
    ends = f"{suffix}.weight"
    return [name.removesuffix(".weight") for name in weights if name.endswith(ends)]
