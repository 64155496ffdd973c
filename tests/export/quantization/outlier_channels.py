"""Networks with outlier channels, as trained vision transformers have them and random weights have not."""

from __future__ import annotations

import torch
from torch import nn

from mapengine.export.model.network.model import shared_copy
from mapengine.export.model.reference import MapAnything

CHANNELS = (3, 17)
"""Behind every LayerNorm of a block."""
FACTOR = 80.0
"""A few channels of ViT-g are 50 to 100 times larger than the others."""
VALUE_CHANNEL = 5
VALUE_FACTOR = 30.0


def with_outlier_channels(model: MapAnything) -> MapAnything:
    """Return a network that computes the same, up to rounding, with a few channels of every layer's input far larger.

    Two channels behind each LayerNorm are 80 times larger, and one among the values of every attention 30 times; what
    reads them is smaller by as much. The given network stays as it is, and the copy shares its other weights.
    """
    result = shared_copy(model)
    with torch.no_grad():
        for name, module in result.named_modules():
            if name.endswith(("norm1", "norm2")) and "blocks" in name:
                owner = name.rpartition(".")[0]
                _grow(module, list(CHANNELS), FACTOR)
                reader = result.get_submodule(f"{owner}.attn.qkv" if name.endswith("1") else f"{owner}.mlp")
                if not isinstance(reader, nn.Linear):
                    reader = reader.get_submodule("w12" if hasattr(reader, "w12") else "fc1")
                _shrink(reader, list(CHANNELS), FACTOR)
            elif name.endswith(".attn") and "blocks" in name:
                projection = module.get_submodule("proj")
                assert isinstance(projection, nn.Linear)
                values = 2 * projection.in_features  # qkv makes them last
                _grow(module.get_submodule("qkv"), [values + VALUE_CHANNEL], VALUE_FACTOR)
                _shrink(projection, [VALUE_CHANNEL], VALUE_FACTOR)
    return result


def _grow(module: nn.Module, channels: list[int], factor: float) -> None:
    """Multiply outputs of a layer."""
    for name in ("weight", "bias"):
        value = module.get_parameter(name).clone()
        value[channels] *= factor
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))


def _shrink(module: nn.Module, channels: list[int], factor: float) -> None:
    """Divide what a layer multiplies its inputs with."""
    weight = module.get_parameter("weight").clone()
    weight[:, channels] /= factor
    module.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
