"""A small network with outlier channels, cases, and one calibration of it per worker of a test run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mapengine.calibration.quantization import Calibration
from mapengine.calibration.quantization.cases import Cases, make_cases
from mapengine.export.parity_cases import parity_cases
from mapengine.export.quantization import CalibrationOptions, calibrate
from mapengine.export.quantization.fold import shared_copy
from mapengine.export.reference import MapAnything


@pytest.fixture(scope="session")
def cases() -> Cases:
    """Three cases that use every modality, one and more views."""
    known = parity_cases("dinov2", (56, 42))
    return make_cases({name: known[name] for name in ("image, 1 view", "mixed", "depth")}, "small cases")


@pytest.fixture(scope="session")
def network(reference: Callable[..., MapAnything]) -> MapAnything:
    """``preset:tiny`` with a few channels 80 times larger behind every LayerNorm, as trained transformers have them."""
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
    return model


@pytest.fixture(scope="session")
def calibration(network: MapAnything, cases: Cases) -> Calibration:
    return calibrate(network, cases, CalibrationOptions())


@pytest.fixture(scope="session")
def fp8_calibration(network: MapAnything, cases: Cases) -> Calibration:
    return calibrate(network, cases, CalibrationOptions("fp8"))
