"""A small network with outlier channels, cases, and one calibration of it per worker of a test run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mapengine.calibration.data.cases import Cases, make_cases
from mapengine.calibration.ranges import Calibration
from mapengine.export.bundles.parity_cases import parity_cases
from mapengine.export.graphs.tracing import export_stages
from mapengine.export.model.reference import MapAnything
from mapengine.export.quantization import CalibrationOptions, calibrate, fold_calibration
from mapengine.export.quantization.fold import correct_biases

from .outlier_channels import with_outlier_channels


@pytest.fixture(scope="session")
def cases() -> Cases:
    """Three cases that use every modality, one and more views."""
    known = parity_cases("dinov2", (56, 42))
    return make_cases({name: known[name] for name in ("image, 1 view", "mixed", "depth")}, "small cases")


@pytest.fixture(scope="session")
def network(reference: Callable[..., MapAnything]) -> MapAnything:
    """``preset:tiny`` with outliers as trained transformers have them, computing the same."""
    return with_outlier_channels(reference("preset:tiny"))


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
    return correct_biases(fold_calibration(network, mixed_calibration.layers), mixed_calibration)


@pytest.fixture(scope="session")
def folded_stages(folded_network: MapAnything, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the traced stages of ``folded_network``, in float32."""
    folder = tmp_path_factory.mktemp("folded")
    export_stages(folded_network, folder)
    return folder
