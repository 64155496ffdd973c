"""The PyTorch network with the rounding of INT8 or FP8, to measure what it costs without an engine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from mapengine.calibration.ranges import FORMATS, LayerCalibration, NumberFormat, weight_scales

from .layers import Roundable, linear

_scales = WeakTensorKeyDictionary()  # by weight: (its version, {format: scales})


@contextlib.contextmanager
def simulate_rounding(network: nn.Module, layers: Iterable[Roundable], precision: str) -> Iterator[None]:
    """Let the given layers round their inputs and weights, and add the corrections of their biases, inside the block.

    A layer without a calibration rounds its weight alone.

    Weights are rounded at each call and not kept, so that a full-size network needs no second copy.

    Args:
        network: with the smoothing and rotation folded (:func:`.fold.fold_calibration`).
        layers: those that are quantised. A layer of range 0 is left as it is.
        precision: ``int8`` or ``fp8``.
    """
    form = FORMATS[precision]
    changed = []
    try:
        for layer in layers:
            if isinstance(layer, LayerCalibration) and layer.largest <= 0:
                continue
            module = linear(network, layer.name)
            module.forward = _rounding(module, layer, form)  # type: ignore[method-assign, assignment]
            changed.append(module)
        yield
    finally:
        for module in changed:
            del module.forward


def _rounding(module: nn.Linear, layer: Roundable, form: NumberFormat) -> Callable[[Tensor], Tensor]:
    scales = torch.from_numpy(scales_of(module.weight, form))[:, None]
    if not isinstance(layer, LayerCalibration):
        return lambda x: F.linear(x, fake_quantize(module.weight, scales, form), module.bias)
    scale = float(np.float32(layer.largest / form.largest))
    bias = module.bias if layer.bias is None else module.bias + torch.tensor(layer.bias, dtype=torch.float32)

    def forward(x: Tensor) -> Tensor:
        return F.linear(fake_quantize(x, scale, form), fake_quantize(module.weight, scales, form), bias)

    return forward


def scales_of(weight: Tensor, form: NumberFormat) -> NDArray[np.float32]:
    """Scale per output channel of a weight (outputs, inputs), searched once for as long as the weight lives.

    A budget rounds the same layers dozens of times, and at full size the search takes minutes for all of them.
    """
    version, known = _scales.get(weight, (None, {}))
    if version != weight._version:  # it was changed in place since
        known = {}
        _scales[weight] = (weight._version, known)
    if form.name not in known:
        known[form.name] = weight_scales(weight.detach().numpy().T, form)
    return known[form.name]


def fake_quantize(x: Tensor, scale: float | Tensor, form: NumberFormat) -> Tensor:
    """Quantize and dequantize as :func:`mapengine.calibration.ranges.rounding.quantize` does, in PyTorch."""
    scaled = (x / scale).clamp(-form.largest, form.largest)
    if form.name == "int8":
        return scaled.round_() * scale
    return scaled.to(torch.float8_e4m3fn).to(x.dtype) * scale
