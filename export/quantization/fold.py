"""Write smoothing, rotation and bias correction into the weights of a network.

Smoothing and rotation change what a layer reads and compensate for it in the layer's weight. What is before has to be
linear in the changed channels: a LayerNorm's gain and bias (for qkv, w12 and fc1), the rows of qkv that make the values
(for proj, as attention is linear in its values), the rows of w12 that make the value path of SwiGLU (for w3, which its
gate multiplies). There is nothing linear before fc2, so it is not smoothed. No rotation passes GELU or the product of
SwiGLU: what w3 and fc2 read is rotated by a small product of its own. A rotation of the residual stream itself would
have to pass each LayerNorm's mean and gain and every LayerScale, and the stages exchange that stream: it is not done.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn

from mapengine.calibration.ranges import Calibration, LayerCalibration
from mapengine.calibration.ranges.smoothing import hadamard
from mapengine.runtime.errors import CalibrationError

from ..model.network.model import Network, shared_copy
from ..model.network.transformer import BlockRotation
from .layers import LinearLayer, find_layers, linear


def fold_calibration(network: Network, layers: Iterable[LayerCalibration], kept: Collection[str] = ()) -> Network:
    """Return a network that computes the same, with smoothing and rotation in its weights.

    Powers of two change no bit of a product; a rotation rounds. The given network stays as it is.

    Args:
        network: that was calibrated.
        layers: of its calibration.
        kept: names of layers that are not going to be rounded: w3 and fc2 are not rotated then, which costs a product.
    """
    result = shared_copy(network)
    known = find_layers(result)
    with torch.no_grad():
        for layer in layers:
            if layer.rotated and known[layer.name].kind == "proj":
                _rotate_heads(result, known[layer.name])
            elif layer.rotated and layer.name not in kept:
                _rotate_activation(result, known[layer.name])
            elif not layer.rotated and layer.exponents is not None:
                _smooth(result, known[layer.name], torch.exp2(torch.tensor(layer.exponents, dtype=torch.float32)))
    return result


def correct_biases(network: Network, calibration: Calibration) -> Network:
    """Return the network with the corrections of the layers that are quantised added to their biases."""
    result = shared_copy(network)
    with torch.no_grad():
        for layer in calibration.quantized:
            if layer.bias is not None:
                module = linear(result, layer.name)
                _set(module, "bias", module.bias + torch.tensor(layer.bias, dtype=module.bias.dtype))
    return result


def _smooth(network: nn.Module, layer: LinearLayer, factors: Tensor) -> None:
    module, block = linear(network, layer.name), network.get_submodule(layer.block)
    if layer.kind in ("qkv", "w12", "fc1"):
        norm = block.get_submodule("norm1" if layer.kind == "qkv" else "norm2")
        assert isinstance(norm, nn.LayerNorm)
        _set(norm, "weight", norm.weight / factors)
        _set(norm, "bias", norm.bias / factors)
    elif layer.kind in ("proj", "w3"):
        before = linear(network, f"{layer.block}.{'attn.qkv' if layer.kind == 'proj' else 'mlp.w12'}")
        rows = slice(-len(factors), None)  # values come last in both
        weight, bias = before.weight.clone(), before.bias.clone()
        weight[rows] /= factors[:, None]
        bias[rows] /= factors
        _set(before, "weight", weight)
        _set(before, "bias", bias)
    else:
        raise AssertionError(f"{layer.name}: nothing linear is before it")
    _set(module, "weight", module.weight * factors)


def _rotate_activation(network: nn.Module, layer: LinearLayer) -> None:
    """Rotate behind the activation of the MLP, and the weight that reads it."""
    rotation = _matrix(layer)
    module = linear(network, layer.name)
    network.get_submodule(f"{layer.block}.mlp").rotation = BlockRotation(rotation)
    _set(module, "weight", _by_block(module.weight, rotation))


def _rotate_heads(network: nn.Module, layer: LinearLayer) -> None:
    rotation = _matrix(layer)
    module, before = linear(network, layer.name), linear(network, f"{layer.block}.attn.qkv")
    weight, bias = before.weight.clone(), before.bias.clone()
    rows = slice(-module.in_features, None)
    weight[rows] = _by_block(weight[rows].T, rotation).T
    bias[rows] = _by_block(bias[rows], rotation)
    _set(before, "weight", weight)
    _set(before, "bias", bias)
    _set(module, "weight", _by_block(module.weight, rotation))


def _matrix(layer: LinearLayer) -> Tensor:
    if layer.rotation is None:
        raise CalibrationError(
            f"the calibration rotates {layer.name}, which this version cannot rotate; calibrate again"
        )
    matrix = hadamard(layer.rotation)
    assert matrix is not None
    return torch.from_numpy(matrix)


def _by_block(values: Tensor, rotation: Tensor) -> Tensor:
    """Rotate the last axis, in blocks of the matrix's size; in float64, so that only the result is rounded."""
    parts = values.double().reshape(*values.shape[:-1], -1, len(rotation))
    return (parts @ rotation.double()).reshape(values.shape).to(values.dtype).contiguous()


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    setattr(module, name, nn.Parameter(value, requires_grad=False))
