"""Which layers are quantised, where a change of their input folds into the layer before, and whether a calibration
has an entry for each.

Quantised are the linear layers of the blocks of the image encoder and of the aggregator: nearly all of the work. Never
quantised: the products inside attention (QK and PV), patch embedding and positional grid, geometry encoders, the dense
head, and the pose and scale heads, which a whole view or scene depends on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NoReturn

import numpy as np
from torch import nn

from mapengine.calibration.ranges import FORMATS, Calibration, LayerCalibration
from mapengine.runtime.errors import CalibrationError

from ..model.network import MapAnythingNetwork
from ..model.network.transformer import Block, SwiGlu

Kind = Literal["qkv", "proj", "w12", "w3", "fc1", "fc2"]


@dataclass(frozen=True)
class LinearLayer:
    """A linear layer that may be quantised.

    Attributes:
        name: module. stage: that it is exported in.
        block: name of its block. index: of the block in its stack.
        kind: what it is in the block. qkv and w12 (or fc1) read a LayerNorm, proj the result of attention, w3 the
            product of gate and value, fc2 a GELU.
        rotation: channels of the layer's input that a Hadamard matrix can rotate together: those of a head for proj, a
            block of them for w3 and fc2; None for the other layers, and where the number is no power of two.
    """

    name: str
    stage: str
    block: str
    index: int
    kind: Kind
    rotation: int | None


_LARGEST_BLOCK, _SMALLEST_BLOCK = 64, 8
"""Channels of a block in front of w3 and fc2. At full size 64 are 4 % of the multiplications of w3; there 512 gain half
a decibel more, and 16 one less."""

Roundable = LayerCalibration | LinearLayer
"""A calibrated layer rounds its input and its weight; one without a calibration its weight alone."""


def find_layers(network: MapAnythingNetwork) -> dict[str, LinearLayer]:
    """Return the layers by name, in running order."""
    layers = {}
    for stage, prefix, blocks in (
        ("image_encoder", "encoder.model.blocks", network.encoder.model.blocks),
        ("aggregator", "info_sharing.self_attention_blocks", network.info_sharing.self_attention_blocks),
    ):
        for index, block in enumerate(blocks):
            assert isinstance(block, Block)
            name = f"{prefix}.{index}"
            for kind, path in _linears(block):
                size = _rotation(block, kind)
                layers[f"{name}.{path}"] = LinearLayer(f"{name}.{path}", stage, name, index, kind, size)
    return layers


def linear(network: nn.Module, name: str) -> nn.Linear:
    """Return the module of that name."""
    module = network.get_submodule(name)
    assert isinstance(module, nn.Linear)
    return module


def _rotation(block: Block, kind: Kind) -> int | None:
    if kind == "proj":
        size = block.attn.proj.in_features // block.attn.num_heads
        return size if size & (size - 1) == 0 else None
    if kind not in ("w3", "fc2"):
        return None
    hidden = (block.mlp.w3 if isinstance(block.mlp, SwiGlu) else block.mlp.fc2).in_features
    size = min(_LARGEST_BLOCK, hidden & -hidden)  # the largest power of two that divides it
    return size if size >= _SMALLEST_BLOCK else None


def _linears(block: Block) -> Iterator[tuple[Kind, str]]:
    yield "qkv", "attn.qkv"
    yield "proj", "attn.proj"
    if isinstance(block.mlp, SwiGlu):
        yield "w12", "mlp.w12"
        yield "w3", "mlp.w3"
    else:
        yield "fc1", "mlp.fc1"
        yield "fc2", "mlp.fc2"


def check_layers(network: MapAnythingNetwork, calibration: Calibration) -> None:
    """Refuse a calibration that is not one of this network's layers.

    Args:
        network: that the calibration is going to be folded into.
        calibration: read from a file, or made by somebody.

    Raises:
        CalibrationError: a layer is missing or unknown, or an entry does not fit its layer; the message names it.
    """
    wanted = find_layers(network)
    found = {layer.name: layer for layer in calibration.layers}
    for problem, names in (("lacks", wanted.keys() - found.keys()), ("has", found.keys() - wanted.keys())):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            what = "of the network's layers" if problem == "lacks" else "that the network has not"
            _refuse(f"{problem} {min(names)}{more} {what}")
    if len(found) != len(calibration.layers):
        _refuse("has two entries of one layer")
    for name, layer in wanted.items():
        module = linear(network, name)
        _check_entry(layer, found[name], module.in_features, module.out_features)
        if found[name].largest > 0 and not np.float32(found[name].largest / FORMATS[calibration.precision].largest) > 0:
            _refuse(f"has a range of {found[name].largest:g} for {name}, which no scale resolves")


def _check_entry(layer: LinearLayer, entry: LayerCalibration, inputs: int, outputs: int) -> None:
    if entry.stage != layer.stage:
        _refuse(f"has {layer.name} in the stage {entry.stage}, and it is in {layer.stage}")
    for values, wanted, what in ((entry.exponents, inputs, "exponents"), (entry.bias, outputs, "numbers of bias")):
        if values is not None and len(values) != wanted:
            _refuse(f"has {len(values)} {what} for {layer.name}, which has {wanted} channels there")
    if entry.exponents is not None and layer.kind == "fc2":
        _refuse(f"smooths {layer.name}, which has nothing linear before it")


def _refuse(problem: str) -> NoReturn:
    raise CalibrationError(f"the calibration {problem}; calibrate this model")
