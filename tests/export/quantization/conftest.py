"""A small network with outlier channels, cases, and one calibration of it per worker of a test run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mapengine.calibration.quantization import Calibration
from mapengine.calibration.quantization.cases import Cases, make_cases
from mapengine.export.onnx_export import export_stages
from mapengine.export.parity_cases import parity_cases
from mapengine.export.quantization import CalibrationOptions, calibrate, folded
from mapengine.export.quantization.fold import shared_copy, with_corrected_biases
from mapengine.export.reference import MapAnything


@pytest.fixture(scope="session")
def cases() -> Cases:
    """Three cases that use every modality, one and more views."""
    known = parity_cases("dinov2", (56, 42))
    return make_cases({name: known[name] for name in ("image, 1 view", "mixed", "depth")}, "small cases")


@pytest.fixture(scope="session")
def network(reference: Callable[..., MapAnything]) -> MapAnything:
    """``preset:tiny`` with outliers as trained transformers have them, computing the same: two channels 80 times larger
    behind every LayerNorm, one 30 times larger among the values of every attention, and what reads them smaller."""
    model = shared_copy(reference("preset:tiny"))
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith(("norm1", "norm2")) and "blocks" in name:
                gains = module.weight.clone()
                gains[[3, 17]] *= 80
                module.weight = torch.nn.Parameter(gains, requires_grad=False)
                owner = name.rpartition(".")[0]
                reader = model.get_submodule(f"{owner}.attn.qkv" if name.endswith("1") else f"{owner}.mlp")
                if not isinstance(reader, torch.nn.Linear):
                    reader = reader.w12 if hasattr(reader, "w12") else reader.fc1
                weight = reader.weight.clone()
                weight[:, [3, 17]] /= 80
                reader.weight = torch.nn.Parameter(weight, requires_grad=False)
        for name, module in model.named_modules():
            if name.endswith(".attn") and "blocks" in name:
                value = 2 * module.proj.in_features + 5  # qkv makes the values last
                weight, bias, reading = (p.clone() for p in (module.qkv.weight, module.qkv.bias, module.proj.weight))
                weight[value] *= 30
                bias[value] *= 30
                reading[:, 5] /= 30
                module.qkv.weight = torch.nn.Parameter(weight, requires_grad=False)
                module.qkv.bias = torch.nn.Parameter(bias, requires_grad=False)
                module.proj.weight = torch.nn.Parameter(reading, requires_grad=False)
    return model


@pytest.fixture(scope="session")
def calibration(network: MapAnything, cases: Cases) -> Calibration:
    return calibrate(network, cases, CalibrationOptions())


@pytest.fixture(scope="session")
def mixed_calibration(network: MapAnything, cases: Cases, calibration: Calibration) -> Calibration:
    """With rotations in the aggregator beside the smoothing of everything else. As nothing that is folded changes what
    other layers read, layers of two calibrations go together."""
    other = {layer.name: layer for layer in calibrate(network, cases, CalibrationOptions(smooth=False)).layers}
    layers = (
        other[layer.name] if layer.stage == "aggregator" and other[layer.name].rotated else layer
        for layer in calibration.layers
    )
    return replace(calibration, layers=tuple(layers))


@pytest.fixture(scope="session")
def folded_network(network: MapAnything, mixed_calibration: Calibration) -> MapAnything:
    """What is exported of ``mixed_calibration``: smoothing, rotation and corrected biases in the weights."""
    return with_corrected_biases(folded(network, mixed_calibration.layers), mixed_calibration)


@pytest.fixture(scope="session")
def folded_stages(folded_network: MapAnything, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the traced stages of ``folded_network``, in float32."""
    folder = tmp_path_factory.mktemp("folded")
    export_stages(folded_network, folder)
    return folder
