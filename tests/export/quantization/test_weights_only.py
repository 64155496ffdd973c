"""INT8 in the weights alone: what is in the graphs, what the backends compute, and what is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from mapengine.calibration.data.cases import Cases
from mapengine.calibration.ranges import Calibration
from mapengine.export import build, build_engine, compile_engine
from mapengine.export.diagnosis.layer_noise import compare_noise
from mapengine.export.model.reference import MapAnything
from mapengine.export.precision import lower_precision, runnable
from mapengine.export.quantization import WeightsOnly, quantize_stage, simulate_rounding
from mapengine.export.quantization.layers import LinearLayer, linear
from mapengine.export.quantization.observe import run_trunk
from mapengine.export.tensorrt.limits import check_limits
from mapengine.runtime import Engine
from mapengine.runtime.backends.onnxruntime import OnnxRuntimeBackend
from mapengine.runtime.backends.registry import available_backends
from mapengine.runtime.backends.tensorrt.flavour import Flavour
from mapengine.runtime.bundle.requests import AnySize, Range, ServedRequests
from mapengine.runtime.bundle.store import Bundle
from mapengine.runtime.checks.product_precision import check_product_precision, stage_products
from mapengine.runtime.errors import InputError

from ..conftest import copied_stages

PRODUCTS = {"image_encoder": 12, "aggregator": 24}
STEPS = 127
"""Of INT8, on each side of zero."""


@pytest.fixture(scope="module")
def model(reference: Callable[..., MapAnything]) -> MapAnything:
    return reference("preset:tiny")


@pytest.fixture(scope="module")
def layers(model: MapAnything) -> tuple[LinearLayer, ...]:
    return tuple(layer for layer in WeightsOnly.of(model).layers if layer.stage == "image_encoder")


@pytest.fixture(scope="module")
def bundle(model: MapAnything, exported: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("weights-only") / "bundle"

    def never(*given: Any, **options: Any) -> None:
        raise AssertionError("nothing is calibrated")

    with copied_stages(exported), pytest.MonkeyPatch.context() as patch:
        for name in ("Calibrator", "rendered_cases", "load_calibration"):
            patch.setattr(build, name, never)
        build_engine(model, folder, precision="int8", weights_only=True)
    return Bundle.open(folder)


def most_error(weight: np.ndarray) -> np.ndarray:
    """Largest error of rounding each row (an output channel) to INT8, as a vector's length: half a step of the whole
    range per number. The range with the least squared error loses no more."""
    return np.sqrt(weight.shape[1]) * np.abs(weight).max(axis=1) / STEPS / 2


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    """Length of the difference over the length of what is wanted."""
    return float(np.linalg.norm(found.astype(np.float64) - wanted) / np.linalg.norm(wanted.astype(np.float64)))


@pytest.mark.slow
@pytest.mark.parametrize("rest", ["fp32", "fp16"])
def test_a_stage(
    rest: str,
    model: MapAnything,
    layers: tuple[LinearLayer, ...],
    exported: Callable[..., Path],
    cases: Cases,
    tmp_path: Path,
) -> None:
    full = source = exported("mha") / "image_encoder.onnx"
    if rest == "fp16":
        source = tmp_path / "low" / "image_encoder.onnx"
        source.parent.mkdir()
        lower_precision(full, source, stage="image_encoder", precision="fp16", magnitudes=None)
    target = tmp_path / "image_encoder.onnx"
    written = quantize_stage(
        source, target, stage="image_encoder", layers=layers, precision="int8", weights=full if source != full else None
    )
    assert written.quantized == tuple(layer.name for layer in layers)
    assert len(layers) == PRODUCTS["image_encoder"]

    graph = onnx.load(target).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    kinds = [node.op_type for node in graph.node]
    assert "QuantizeLinear" not in kinds
    wide = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    assert [node.input[0] for node in wide] == [f"{layer.name}.weight" for layer in layers]
    lost = 0.0
    for layer in layers:
        whole = linear(model, layer.name).weight.numpy()
        assert stored[f"{layer.name}.weight"].data_type == TensorProto.INT8
        scales = numpy_helper.to_array(stored[f"{layer.name}.weight_scale"]).astype(np.float32)
        assert scales.shape == (len(whole),)
        read = (numpy_helper.to_array(stored[f"{layer.name}.weight"]).astype(np.float32) * scales).T
        assert (np.linalg.norm(read - whole, axis=1) <= most_error(whole) * 1.001).all()
        lost += float(np.linalg.norm(most_error(whole)) / np.linalg.norm(whole))
    # No other copy of a weight: each number went from the carrier's bytes to one, but for scales and nodes.
    numbers = sum(linear(model, layer.name).weight.numel() for layer in layers)
    saved = source.stat().st_size - target.stat().st_size
    assert 0.9 * numbers < saved / (3 if rest == "fp32" else 1) < numbers

    views = cases.views["mixed"]
    exact = run_trunk(model, views)["patch_features"]
    with simulate_rounding(model, layers, "int8"):
        wanted = run_trunk(model, views)["patch_features"]
    stage = OnnxRuntimeBackend(1).load_stage("image_encoder", runnable(target, tmp_path))
    found = np.concatenate([stage.run({"images": view["img"]})["patch_features"] for view in views])
    # Every layer moves the result by no more than the relative error of its weight, all in one direction at most.
    assert 0 < distance(wanted, exact) < lost
    # Float32 rounds 2**-24 of a number, float16 2**-11: had activations been rounded too, it would be far more.
    assert distance(found, wanted) < (1e-5 if rest == "fp32" else 5e-3)


@pytest.mark.slow
def test_a_bundle(bundle: Bundle, model: MapAnything, cases: Cases, exported: Callable[..., Path]) -> None:
    manifest = bundle.manifest
    record = manifest.quantization
    assert record is not None
    assert record.weights_only
    assert (record.method, record.data_hash, record.products) == ("weights only, mse per channel", None, {})
    assert (manifest.precision, record.rest, record.kept_layers) == ("int8", "fp32", ())
    assert manifest.parity is not None
    for output, tolerance in manifest.golden.tolerance.items():
        # The tolerance is twice what rounding costs over all cases, and that of float32.
        assert manifest.parity.outputs[output].max_rel < 0.6 * tolerance.rtol
    for stage in ("geometry_encoder", "dense_head"):
        assert (bundle.folder / f"{stage}.onnx").read_bytes() == (exported("mha") / f"{stage}.onnx").read_bytes()

    views = cases.views["mixed"]
    with simulate_rounding(model, WeightsOnly.of(model).layers, "int8"):
        wanted = model.predict(views, use_amp=False)
    for backend in ("onnxruntime", "openvino"):
        if backend not in available_backends():
            continue
        engine = Engine.load(bundle.folder, backend)
        engine.verify()
        # Both libraries would round activations by themselves.
        for found, expected in zip(engine.predict(views), wanted, strict=True):
            assert distance(np.asarray(found["pts3d"]), np.asarray(expected["pts3d"])) < 1e-5
        products = stage_products(bundle, backend, 1)
        check_product_precision(manifest, products, backend)
        assert all(set(entry.counts()) == {"float32"} for entry in products)


@pytest.mark.slow
def test_what_each_layer_loses(bundle: Bundle, model: MapAnything) -> None:
    noise = compare_noise(bundle, model, "onnxruntime", 1)
    assert {layer.precision for layer in noise.layers} == {"int8"}
    assert len(noise.layers) == sum(PRODUCTS.values())
    assert all(20 < layer.snr < 80 for layer in noise.layers)


@pytest.mark.slow
def test_openvino_keeps_weights_in_8_bits_between_bfloat16(
    model: MapAnything, traced: list[dict[str, Any]], tmp_path: Path
) -> None:
    """The products that are cut apart for OpenVINO are in 8 bits no more than before."""
    openvino = pytest.importorskip("mapengine.runtime.backends.openvino")
    if not openvino.OpenVinoBackend(1).has_bf16():
        pytest.skip("this processor has no bfloat16")
    manifest = build_engine(
        model, tmp_path / "bundle", precision="int8", weights_only=True, backend="openvino", rest="bf16"
    )
    assert manifest.quantization is not None
    assert (manifest.quantization.products, manifest.quantization.rest) == ({}, "bf16")


@pytest.mark.slow
@pytest.mark.usefixtures("shared_plans")
def test_a_plan_keeps_weights_in_8_bits(bundle: Bundle, tmp_path: Path) -> None:
    """qkv is three products there: as one, its weight would be in the type of the activations."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        manifest = compile_engine(bundle.folder, tmp_path / "plans", backend="tensorrt-rtx")
    assert not any("INT8" in str(entry.message) for entry in said)
    assert manifest.quantization == bundle.manifest.quantization
    for stage, wanted in {"image_encoder": 12 + 2 * 3, "aggregator": 24 + 2 * 6}.items():
        layers = manifest.stages[stage].layers
        assert layers is not None
        assert layers.gemms["Float x Int8 -> Float"] == wanted


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "fp16"}, "weights_only is for int8; leave it out for fp16"),
        ({"precision": "fp8", "backend": "tensorrt-rtx"}, "weights_only is for int8; leave it out for fp8"),
        ({}, "weights_only is for int8; leave it out for fp32"),
        ({"precision": "int8", "calibration": "a.json"}, "a calibration is for; leave out one of the two"),
    ],
)
def test_refusals(options: dict[str, Any], words: str, model: MapAnything, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        build_engine(model, tmp_path / "bundle", weights_only=True, **options)
    assert list(tmp_path.iterdir()) == []


def test_tensorrt_rtx_is_said_to_have_no_int8_products() -> None:
    flavour = Flavour("tensorrt-rtx", SimpleNamespace(), "1.7.1")
    requests = ServedRequests(Range(1, 2, 4), AnySize(14, 518), {"image_encoder": 4})
    options: dict[str, Any] = {"precision": "int8", "attention": "mha", "requests": requests, "heads": {}}
    (warning,) = check_limits(flavour, **options)
    for word in ("tensorrt-rtx documents INT8 for weights only", "--precision fp8", "--precision int8 --weights-only"):
        assert word in warning
    assert check_limits(flavour, **options, weights_only=True) == ()


@pytest.mark.slow
def test_the_emulation_leaves_the_network_as_it_was(model: MapAnything, calibration: Calibration, cases: Cases) -> None:
    """One block of both kinds of layers, and nothing stays behind."""
    views = cases.views["depth"]
    before = run_trunk(model, views)
    with simulate_rounding(model, [*WeightsOnly.of(model).layers[:2], *calibration.layers[2:4]], "int8"):
        assert any(distance(value, before[name]) > 0 for name, value in run_trunk(model, views).items())
    for name, value in run_trunk(model, views).items():
        np.testing.assert_array_equal(value, before[name])
