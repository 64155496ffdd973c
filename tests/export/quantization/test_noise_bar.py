"""A calibration whose ranges mean nothing is refused before anything is written.

The golden tolerance is measured with the same ranges, so the finished bundle would pass its own check.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mapengine.calibration.ranges import Calibration
from mapengine.export import build_engine
from mapengine.export.bundles.tolerances import check_rounding, signal_to_noise
from mapengine.export.model.reference import MapAnything
from mapengine.runtime.checks.parity import Predictions
from mapengine.runtime.errors import CalibrationError

OUTPUTS = (
    "ray_directions",
    "depth_along_ray",
    "cam_quats",
    "metric_scaling_factor",
    "conf",
    "non_ambiguous_mask_logits",
)


def scaled(calibration: Calibration, factor: float) -> Calibration:
    return replace(
        calibration, layers=tuple(replace(layer, largest=layer.largest * factor) for layer in calibration.layers)
    )


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_ranges_that_mean_nothing_are_refused_at_the_build(
    factor: float, network: MapAnything, calibration: Calibration, tmp_path: Path
) -> None:
    with pytest.raises(CalibrationError, match=r"int8 keeps -?\d+ dB of \w+ against float32, .* calibrate this model"):
        build_engine(network, tmp_path / "bundle", precision="int8", calibration=scaled(calibration, factor))
    assert list(tmp_path.iterdir()) == []


def predictions(noise: float, output: str = "conf", seed: int = 1) -> dict[str, Predictions]:
    """Two views whose ``output`` is off by ``noise`` times its size."""
    draws = np.random.default_rng(0)
    views = [{name: draws.standard_normal((1, 6, 8)).astype(np.float32) for name in OUTPUTS} for _ in range(2)]
    other = np.random.default_rng(seed)
    for view in views:
        view[output] = view[output] + np.float32(noise) * other.standard_normal((1, 6, 8)).astype(np.float32)
    return {"case": views}


@pytest.mark.parametrize("output", OUTPUTS)
def test_the_worst_output_decides(output: str) -> None:
    wanted = predictions(0)
    ratios = signal_to_noise(predictions(0.1, output), wanted)
    assert ratios.keys() == set(OUTPUTS)
    assert ratios[output] == pytest.approx(20, abs=2)
    assert min(value for name, value in ratios.items() if name != output) > 100
    with pytest.raises(CalibrationError, match=f"fp8 keeps [5-7] dB of {output} against float32, and"):
        check_rounding(predictions(0.5, output, seed=2), wanted, "fp8")


def test_between_the_bars_is_a_warning_and_above_both_nothing() -> None:
    wanted = predictions(0)
    with pytest.warns(UserWarning, match=r"int8 keeps 1[3-7] dB of conf .*; calibrate with more data"):
        check_rounding(predictions(0.2), wanted, "int8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_rounding(predictions(0.01), wanted, "int8")
        check_rounding(predictions(0), wanted, "int8")


@pytest.mark.slow
def test_a_good_calibration_is_far_above_both_bars(
    reference: Callable[..., MapAnything], network: MapAnything, calibration: Calibration
) -> None:
    from mapengine.export.bundles.parity_cases import parity_cases
    from mapengine.export.quantization import QuantizedNetwork

    views = {"mixed": parity_cases("dinov2", (56, 42))["mixed"]}
    found = {"mixed": QuantizedNetwork.of(network, calibration).predict(views["mixed"])}
    wanted = {"mixed": network.predict(views["mixed"], use_amp=False)}
    assert min(signal_to_noise(found, wanted).values()) > 25
