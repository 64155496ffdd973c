"""Bundles in INT8: what the manifest says, what the backends run, and what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mapengine.calibration.data.cases import Cases
from mapengine.calibration.ranges import Calibration, save_calibration
from mapengine.calibration.ranges.smoothing import rotate
from mapengine.export import build, build_engine, compile_engine
from mapengine.export.bundles import onnx as onnx_bundle
from mapengine.export.bundles.parity_cases import parity_cases
from mapengine.export.bundles.tolerances import MARGIN, rounding_tolerance
from mapengine.export.diagnosis.layer_comparison import compare_layers
from mapengine.export.model.reference import MapAnything
from mapengine.export.quantization import CalibrationOptions, QuantizedNetwork, calibrate
from mapengine.export.quantization.layers import find_layers
from mapengine.runtime import Engine
from mapengine.runtime.bundle.stages import LayerRecord
from mapengine.runtime.bundle.store import Bundle
from mapengine.runtime.checks.parity import measure_parity
from mapengine.runtime.checks.product_precision import (
    LOW,
    Product,
    StageProducts,
    check_product_precision,
    listed_products,
    stage_products,
)
from mapengine.runtime.errors import CalibrationError, InputError, ParityError

from ...processors import needs_vnni
from .conftest import count_calls

pytestmark = pytest.mark.slow  # its fixtures take seconds

PRODUCTS = {"image_encoder": 12, "aggregator": 24}


@pytest.fixture(scope="module")
def plain(reference: Callable[..., MapAnything], cases: Cases) -> Calibration:
    """Of ``preset:tiny``, with nothing to fold, so that its stages need not be traced again."""
    return calibrate(
        reference("preset:tiny"), cases, CalibrationOptions(smooth=False, rotate=False, correct_bias=False)
    )


@pytest.fixture(scope="module")
def bundle(
    plain: Calibration, reference: Callable[..., MapAnything], tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    folder = tmp_path_factory.mktemp("int8")
    save_calibration(plain, folder / "calibration.json")
    build_engine(reference("preset:tiny"), folder / "bundle", precision="int8", calibration=folder / "calibration.json")
    return Bundle.open(folder / "bundle")


@pytest.mark.slow
@needs_vnni
def test_bundle(bundle: Bundle, plain: Calibration, reference: Callable[..., MapAnything], tiny_bundle: Path) -> None:
    model = reference("preset:tiny")
    manifest = bundle.manifest
    assert manifest.precision == "int8"
    assert manifest.quantization is not None
    assert manifest.quantization.products == PRODUCTS
    assert manifest.quantization.data_hash == plain.data_sha256
    assert manifest.quantization.method == "mse ranges"
    assert manifest.parity is not None
    # The tolerance is twice what the rounded PyTorch network shows, and the engine shows as much.
    for output, tolerance in manifest.golden.tolerance.items():
        assert 0.1 * tolerance.rtol < manifest.parity.outputs[output].max_rel < tolerance.rtol
    for stage in ("geometry_encoder", "dense_head"):
        assert manifest.stages[stage].file == Bundle.open(tiny_bundle).manifest.stages[stage].file
    for stage in PRODUCTS:
        # Three of four bytes of every quantised weight; scales and nodes are new.
        numbers = sum(model.get_submodule(e.name).weight.numel() for e in plain.layers if e.stage == stage)
        saved = (tiny_bundle / f"{stage}.onnx").stat().st_size - bundle.stage_path(stage).stat().st_size
        assert 0.9 * 3 * numbers < saved < 3 * numbers
    Engine.load(bundle.folder, "openvino").verify()
    with pytest.raises(InputError, match="int8"):
        compare_layers(bundle, None)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_backends_run_integer_products(backend: str, bundle: Bundle, tiny_bundle: Path) -> None:
    products = stage_products(bundle, backend, 1)
    check_product_precision(bundle.manifest, products, backend)
    found = {entry.stage: entry for entry in products}
    for stage, wanted in PRODUCTS.items():
        assert sum(found[stage].counts().get(dtype, 0) for dtype in LOW["int8"]) == wanted
    share = found["aggregator"].share(LOW["int8"])
    assert share is not None
    assert share > 0.99
    assert found["dense_head"].share(LOW["int8"]) == 0
    # The same question about the float32 bundle: nothing is INT8, and an INT8 manifest would not accept it.
    full = stage_products(Bundle.open(tiny_bundle), backend, 1)
    assert all(set(entry.counts()) == {"float32"} for entry in full)
    with pytest.raises(ParityError, match=f"{backend} ran 0 of the 12 products of image_encoder in int8"):
        check_product_precision(bundle.manifest, full, backend)
    macs = [sum(p.macs for p in next(e for e in side if e.stage == "aggregator").products) for side in (products, full)]
    assert macs[0] == macs[1] > 0


@pytest.mark.slow
def test_nothing_is_computed_twice(
    network: MapAnything, cases: Cases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that calibrates by itself folds once, hashes the weights once, and predicts every case once."""

    class Traced(Exception):
        pass

    def stop(given: MapAnything, folder: Path, **options: Any) -> None:
        raise Traced

    monkeypatch.setattr(build, "rendered_cases", lambda data_norm_type: cases)
    monkeypatch.setattr(onnx_bundle, "export_stages", stop)
    # Everything is decided before the first stage is written.
    with count_calls() as counts, pytest.raises(Traced):
        build_engine(network, tmp_path / "bundle", precision="int8")
    assert (counts.pop("hash"), counts.pop("fold")) == (1, 1)
    reference = [count for call, count in counts.items() if call.startswith(f"{id(network)} ")]
    assert reference == [1] * (1 + len(parity_cases("dinov2")))
    assert set(counts.values()) == {1}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_folded_bundle(
    network: MapAnything, mixed_calibration: Calibration, cases: Cases, folded_build: tuple[Bundle, Counter[str]]
) -> None:
    """Smoothing, rotation and bias correction reach the files, and the engine keeps what they buy."""
    layers = {layer.name: layer for layer in mixed_calibration.layers}
    smoothed = [layer for layer in layers.values() if layer.exponents is not None]
    rotated = [layer for layer in layers.values() if layer.rotated]
    assert {layer.stage for layer in smoothed} == set(PRODUCTS)
    assert {layer.name.rpartition(".")[2] for layer in rotated} == {"proj", "w3"}
    assert {layer.stage for layer in rotated if layer.name.endswith("proj")} == {"aggregator"}

    bundle, counts = folded_build
    assert set(counts.values()) == {1}  # also of what is checked behind the written files
    record = bundle.manifest.quantization
    assert record is not None
    assert record.products == PRODUCTS
    assert record.method == "mse ranges, smoothing, rotation, bias correction"

    stored = {
        tensor.name: numpy_helper.to_array(tensor)
        for stage in PRODUCTS
        for tensor in onnx.load(bundle.stage_path(stage)).graph.initializer
    }
    for layer in smoothed:
        if layer.name.endswith("attn.qkv"):
            norm = layer.name.replace("attn.qkv", "norm1")
            wanted = network.get_submodule(norm).weight.numpy() / np.exp2(layer.exponents).astype(np.float32)
            np.testing.assert_array_equal(stored[f"{norm}.weight"], wanted)
    for layer in rotated:
        weight = network.get_submodule(layer.name).weight.numpy()
        size = find_layers(network)[layer.name].rotation
        assert size is not None
        read = stored[f"{layer.name}.weight"].astype(np.float32) * stored[f"{layer.name}.weight_scale"]
        np.testing.assert_allclose(read.T, rotate(weight, size), atol=stored[f"{layer.name}.weight_scale"].max())
    for layer in layers.values():
        assert layer.bias is not None
        bias = network.get_submodule(layer.name).bias.numpy()
        if layer.name.endswith((".proj", ".w3")):  # no other layer folds anything into these
            np.testing.assert_allclose(stored[f"{layer.name}.bias"], bias + np.float32(layer.bias), atol=1e-6)

    naive = calibrate(network, cases, CalibrationOptions("int8", "max", False, False, False))
    views = {"mixed": cases.views["mixed"]}
    wanted = {"mixed": network.predict(views["mixed"], use_amp=False)}
    lost, kept = (
        rounding_tolerance({"mixed": QuantizedNetwork.of(network, given).predict(views["mixed"])}, wanted, "PyTorch")
        for given in (naive, mixed_calibration)
    )
    for backend in ("onnxruntime", "openvino"):
        engine = Engine.load(bundle.folder, backend)
        engine.verify()
        check_product_precision(bundle.manifest, stage_products(bundle, backend, 1), backend)
        parity = measure_parity({"mixed": engine.predict(views["mixed"])}, wanted, backend)
        for output in ("depth_along_ray", "pts3d"):
            assert kept[output] < lost[output] / 2
            # Processors sum differently: ONNX Runtime was seen at twice the emulated error, which the golden check
            # above allows. Naive rounding loses six times that.
            assert parity.outputs[output].max_rel < lost[output] / MARGIN / 3


@pytest.mark.slow
@pytest.mark.usefixtures("shared_plans")
@pytest.mark.filterwarnings("ignore")  # of what INT8 and float32 attention cost on this library
def test_plans_multiply_in_int8(bundle: Bundle, tmp_path: Path) -> None:
    """A build fails if the library's own list of layers has fewer; qkv is three products there."""
    manifest = compile_engine(bundle.folder, tmp_path / "plans", backend="tensorrt-rtx")
    assert manifest.quantization is not None
    assert manifest.quantization.products == {"image_encoder": 12 + 2 * 3, "aggregator": 24 + 2 * 6}
    listed = {entry.stage: entry for entry in listed_products(manifest)}
    counts = {stage: entry.counts() for stage, entry in listed.items()}
    assert {stage: counts[stage]["int8"] for stage in PRODUCTS} == manifest.quantization.products
    assert "int8" not in counts["dense_head"]
    assert listed["dense_head"].share(LOW["int8"]) is None
    ran = {entry.stage: entry for entry in stage_products(bundle, "onnxruntime", 1)}
    for stage in PRODUCTS:  # where the position embedding and the scale head count as well
        share, measured = listed[stage].share(LOW["int8"]), ran[stage].share(LOW["int8"])
        assert share is not None
        assert measured is not None
        assert 0.5 < measured <= share < measured + 0.05


def test_weights_alone_are_no_product_in_int8(bundle: Bundle) -> None:
    manifest = bundle.manifest
    stages = {
        name: replace(stage, layers=LayerRecord(0, 0, (), {"Half x Int8 -> Half": 40}, {"Half x Int8 -> Half": 4000}))
        for name, stage in manifest.stages.items()
    }
    listed = listed_products(replace(manifest, stages=stages))
    assert all(entry.counts() == {"float16": 40} for entry in listed)
    with pytest.raises(ParityError, match="tensorrt ran 0 of the 12 products of image_encoder in int8"):
        check_product_precision(manifest, listed, "tensorrt")


def test_share_of_what_is_not_known() -> None:
    assert StageProducts("x", (Product("a", "int8", 0),)).share(LOW["int8"]) is None
    assert StageProducts("x", (Product("a", "int8", 3), Product("b", "float32", 1))).share(LOW["int8"]) == 0.75


def test_refusals(plain: Calibration, reference: Callable[..., MapAnything], tmp_path: Path) -> None:
    model, out = reference("preset:tiny"), tmp_path / "bundle"
    other = replace(plain, weights_sha256="0" * 64)
    for options, error, said in (
        ({"precision": "int8", "calibration": other}, CalibrationError, "calibrate this model"),
        ({"precision": "int8", "calibration": replace(plain, precision="fp8")}, CalibrationError, "calibrate for int8"),
        ({"precision": "int8", "calibration": tmp_path / "none.json"}, CalibrationError, "check the path"),
        ({"precision": "int8", "calibration": 3}, InputError, "is a int"),
        ({"precision": "fp32", "calibration": plain}, InputError, "for int8 and fp8; leave it out for fp32"),
        ({"precision": "fp8", "calibration": plain}, InputError, "tensorrt-rtx or tensorrt|tensorrt or tensorrt-rtx"),
    ):
        with pytest.raises(error, match=said):
            build_engine(model, out, **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
