"""A calibration has an entry for every layer of the network that it is used with, of the layer's sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from mapengine.calibration.ranges import Calibration, LayerCalibration
from mapengine.export import build_engine
from mapengine.export.model.reference import MapAnything
from mapengine.export.quantization import QuantizedNetwork
from mapengine.export.quantization.layers import find_layers, linear
from mapengine.runtime.errors import CalibrationError

QKV = "encoder.model.blocks.0.attn.qkv"
FC2 = "info_sharing.self_attention_blocks.0.mlp.fc2"


def entries(model: MapAnything) -> Calibration:
    """An entry per layer, of any range."""
    layers = []
    for name, layer in find_layers(model).items():
        module = linear(model, name)
        smooth = None if layer.kind == "fc2" else (0,) * module.in_features
        entry = LayerCalibration(name, layer.stage, 1.0, {}, exponents=smooth, bias=(0.0,) * module.out_features)
        layers.append(entry)
    return Calibration(
        model.model_id, model.weights_hash(), "none", "0" * 64, "int8", "mse", True, True, True, tuple(layers)
    )


def changed(calibration: Calibration, name: str, **values: object) -> Calibration:
    layers = (replace(layer, **values) if layer.name == name else layer for layer in calibration.layers)
    return replace(calibration, layers=tuple(layers))


CASES: list[tuple[str, Callable[[Calibration], Calibration], str]] = [
    ("a missing layer", lambda c: replace(c, layers=c.layers[1:]), f"lacks {QKV} of the network's layers"),
    ("no layers", lambda c: replace(c, layers=()), "lacks .* and [0-9]+ more of the network's layers"),
    (
        "an unknown layer",
        lambda c: replace(c, layers=(*c.layers, replace(c.layers[0], name="x.y"))),
        "has x.y that the network has not",
    ),
    ("a layer twice", lambda c: replace(c, layers=(*c.layers, c.layers[0])), "has two entries"),
    (
        "another stage",
        lambda c: changed(c, QKV, stage="aggregator"),
        ".* in the stage aggregator, and it is in ima",
    ),
    ("few exponents", lambda c: changed(c, QKV, exponents=(0, 1)), f"has 2 exponents for {QKV}, which has [0-9]+ chan"),
    ("no exponents", lambda c: changed(c, QKV, exponents=()), "has 0 exponents"),
    ("a short bias", lambda c: changed(c, QKV, bias=(0.5,)), "has 1 numbers of bias"),
    ("a range without a scale", lambda c: changed(c, QKV, largest=1e-45), ".* which no scale resolves"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("change", "said"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_what_does_not_fit_the_network_is_a_sentence(
    change: Callable[[Calibration], Calibration], said: str, reference: Callable[..., MapAnything]
) -> None:
    model = reference("preset:tiny")
    QuantizedNetwork.of(model, entries(model))
    with pytest.raises(CalibrationError, match=rf"^the calibration {said}.*; calibrate this model$"):
        QuantizedNetwork.of(model, change(entries(model)))


def test_smoothing_where_nothing_linear_is_before_is_refused(reference: Callable[..., MapAnything]) -> None:
    model = reference("v1_tiny")
    smoothed = (0,) * linear(model, FC2).in_features
    with pytest.raises(CalibrationError, match=r"smooths .*fc2, which has nothing linear before it"):
        QuantizedNetwork.of(model, changed(entries(model), FC2, exponents=smoothed))


def test_a_build_refuses_before_it_computes(reference: Callable[..., MapAnything], tmp_path: object) -> None:
    model = reference("preset:tiny")
    short = replace(entries(model), layers=entries(model).layers[:-1])
    with pytest.raises(CalibrationError, match=r"lacks"):
        build_engine(model, f"{tmp_path}/bundle", precision="int8", calibration=short)
