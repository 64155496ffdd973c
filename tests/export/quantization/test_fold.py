"""Smoothing and rotation change nothing before rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from mapengine.calibration.data.cases import Cases
from mapengine.calibration.ranges import Calibration, LayerCalibration
from mapengine.export.model.network.transformer import BlockRotation
from mapengine.export.model.reference import MapAnything
from mapengine.export.quantization import fold_calibration
from mapengine.export.quantization.fold import correct_biases
from mapengine.export.quantization.layers import find_layers, linear
from mapengine.export.quantization.observe import run_trunk
from mapengine.runtime.errors import CalibrationError

KINDS = ("qkv", "proj", "w12", "w3", "fc1")


def changes(model: MapAnything, kinds: tuple[str, ...], rotated: bool = False) -> list[LayerCalibration]:
    rng = np.random.default_rng(0)
    result = []
    for name, layer in find_layers(model).items():
        if layer.kind in kinds:
            exponents = tuple(int(e) for e in rng.integers(-4, 5, linear(model, name).in_features))
            result.append(
                LayerCalibration(name, layer.stage, 1.0, {}, exponents=None if rotated else exponents, rotated=rotated)
            )
    return result


def difference(a: MapAnything, b: MapAnything, cases: Cases) -> float:
    worst = 0.0
    for views in cases.views.values():
        one, other = run_trunk(a, views), run_trunk(b, views)
        worst = max(worst, *(float(np.abs(one[k] - other[k]).max() / np.abs(other[k]).max()) for k in other))
    return worst


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["preset:tiny", "v1_tiny"])
def test_smoothing_is_exact(name: str, kind: str, reference: Callable[..., MapAnything], cases: Cases) -> None:
    model = reference(name)
    layers = changes(model, (kind,))
    if not layers:  # the v1 network has no gated MLP in its encoder, the v1.1 network no plain one
        assert (name, kind) in {("preset:tiny", "fc1"), ("v1_tiny", "w12"), ("v1_tiny", "w3")}
        return
    before = {key: value.clone() for key, value in model.state_dict().items()}
    network = fold_calibration(model, layers)
    assert any(not torch.equal(before[key], value) for key, value in network.state_dict().items())
    # Powers of two: the same but for the order in which a library adds, and softmax has no change before it.
    assert difference(network, model, cases) <= 1e-6
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("name", "kind"), [("preset:tiny", "proj"), ("preset:tiny", "w3"), ("v1_tiny", "fc2")])
def test_rotation_is_exact_to_rounding(
    name: str, kind: str, reference: Callable[..., MapAnything], cases: Cases
) -> None:
    model = reference(name)
    layers = changes(model, (kind,), rotated=True)
    network = fold_calibration(model, layers)
    assert difference(network, model, cases) <= 2e-5
    first = layers[0].name
    assert not torch.allclose(linear(network, first).weight, linear(model, first).weight, rtol=0.1)
    assert network.state_dict().keys() == model.state_dict().keys()


def test_a_kept_layer_has_no_product_for_its_rotation(reference: Callable[..., MapAnything], cases: Cases) -> None:
    model = reference("preset:tiny")
    layers = changes(model, ("w3", "proj"), rotated=True)
    kept = next(layer.name for layer in layers if layer.name.endswith("w3"))
    network = fold_calibration(model, layers, [kept])
    blocks = [name for name, module in network.named_modules() if isinstance(module, BlockRotation)]
    assert len(blocks) == sum(layer.name.endswith("w3") for layer in layers) - 1
    assert linear(network, kept).weight is linear(model, kept).weight
    assert difference(network, model, cases) <= 2e-5


def test_a_rotation_that_does_not_fit_is_refused(reference: Callable[..., MapAnything]) -> None:
    model = reference("preset:tiny")
    layers = [replace(layer, name=layer.name.replace("w3", "w12")) for layer in changes(model, ("w3",), rotated=True)]
    with pytest.raises(CalibrationError, match=r"mlp.w12, which this version cannot rotate; calibrate again"):
        fold_calibration(model, layers)


@pytest.mark.slow
def test_a_calibration_folds_exactly(network: MapAnything, calibration: Calibration, cases: Cases) -> None:
    assert any(layer.exponents is not None for layer in calibration.layers)
    assert difference(fold_calibration(network, calibration.layers), network, cases) <= 2e-5


@pytest.mark.slow
def test_unchanged_parameters_are_shared(network: MapAnything, calibration: Calibration) -> None:
    copy = fold_calibration(network, calibration.layers)
    assert copy.dense_head is not network.dense_head
    pairs = zip(copy.dense_head.parameters(), network.dense_head.parameters(), strict=True)
    assert all(one is other for one, other in pairs)


@pytest.mark.slow
def test_biases_change_where_layers_are_quantised(network: MapAnything, calibration: Calibration) -> None:
    first, second = calibration.layers[:2]
    changed = correct_biases(network, replace(calibration, kept_layers=(second.name,)))
    assert not torch.equal(linear(changed, first.name).bias, linear(network, first.name).bias)
    assert torch.equal(linear(changed, second.name).bias, linear(network, second.name).bias)
