"""Graphs in 8 bits: what is in them, what they compute, and how much of them backends run in INT8."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from mapengine.calibration.data.cases import Cases
from mapengine.calibration.ranges import Calibration, LayerCalibration
from mapengine.export.model.reference import MapAnything
from mapengine.export.precision import lower_precision, runnable
from mapengine.export.quantization import quantize_stage, simulate_rounding
from mapengine.export.quantization.observe import run_trunk
from mapengine.runtime.backends.onnxruntime import OnnxRuntimeBackend
from mapengine.runtime.errors import ExportError

pytestmark = pytest.mark.slow  # its fixtures take seconds

TYPES = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}


def encoder_layers(calibration: Calibration) -> list[LayerCalibration]:
    """Without corrections of biases, which ``folded_stages`` has already."""
    return [replace(layer, bias=None) for layer in calibration.layers if layer.stage == "image_encoder"]


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found.astype(np.float64) - wanted) / np.linalg.norm(wanted.astype(np.float64)))


@pytest.mark.parametrize("rest", ["fp32", "fp16"])
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_encoder_computes_what_the_emulation_does(
    precision: str,
    rest: str,
    folded_network: MapAnything,
    mixed_calibration: Calibration,
    folded_stages: Path,
    cases: Cases,
    tmp_path: Path,
) -> None:
    layers = encoder_layers(mixed_calibration)
    source = folded_stages / "image_encoder.onnx"
    if rest == "fp16":
        source = tmp_path / "low" / "image_encoder.onnx"
        source.parent.mkdir()
        lower_precision(
            folded_stages / "image_encoder.onnx", source, stage="image_encoder", precision="fp16", magnitudes=None
        )
    result = quantize_stage(
        source,
        tmp_path / "image_encoder.onnx",
        stage="image_encoder",
        layers=layers,
        precision=precision,
        weights=None if rest == "fp32" else folded_stages / "image_encoder.onnx",
    )
    assert result.quantized == tuple(layer.name for layer in layers)
    graph = onnx.load(result.path).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    carrier = TensorProto.FLOAT if rest == "fp32" else TensorProto.FLOAT16
    for layer in layers:
        stored = weights[f"{layer.name}.weight"]
        assert stored.data_type == TYPES[precision]
        assert weights[f"{layer.name}.weight_scale"].data_type == carrier
        assert list(weights[f"{layer.name}.weight_scale"].dims) == [stored.dims[1]]
        assert not numpy_helper.to_array(weights[f"{layer.name}.input_scale"]).shape
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("QuantizeLinear") == len(layers)
    assert kinds.count("DequantizeLinear") == 2 * len(layers)

    views = cases.views["mixed"]
    exact = run_trunk(folded_network, views)["patch_features"]
    with simulate_rounding(folded_network, layers, precision):
        wanted = run_trunk(folded_network, views)["patch_features"]
    stage = OnnxRuntimeBackend(1).load_stage("image_encoder", runnable(result.path, tmp_path))
    found = np.concatenate([stage.run({"images": view["img"]})["patch_features"] for view in views])
    loss = relative(wanted, exact)
    assert 1e-4 < loss < 0.1
    # Numbers near the middle of a step round either way, so that two runs differ by less than either from float32: in
    # INT8 by 0.28 of that in float32. In FP16 so many do that behind a few layers the two round independently, by up to
    # sqrt(2) times as much: noise of FP16's size in every module moves the emulation itself by 0.97 of the loss.
    assert relative(found, exact) < 1.5 * loss
    assert relative(found, wanted) < (loss if rest == "fp32" else 1.5 * loss)
    if rest == "fp16":  # without rounding what is left is that of the weights
        plain = runnable(result.path, tmp_path, rounding=False)
        assert "QuantizeLinear" not in [node.op_type for node in onnx.load(plain).graph.node]
        stage = OnnxRuntimeBackend(1).load_stage("image_encoder", plain)
        unrounded = np.concatenate([stage.run({"images": view["img"]})["patch_features"] for view in views])
        assert unrounded.dtype == np.float32
        assert 0 < relative(unrounded, exact) < loss


def test_writing_is_deterministic_and_small(calibration: Calibration, folded_stages: Path, tmp_path: Path) -> None:
    paths = [tmp_path / name / "image_encoder.onnx" for name in "ab"]
    for path in paths:
        path.parent.mkdir()
        quantize_stage(
            folded_stages / "image_encoder.onnx",
            path,
            stage="image_encoder",
            layers=encoder_layers(calibration),
            precision="int8",
        )
    assert paths[0].read_bytes() == paths[1].read_bytes()
    before = onnx.load(folded_stages / "image_encoder.onnx").graph.initializer
    weights = sum(
        4 * int(np.prod(tensor.dims)) for tensor in before if ".attn." in tensor.name or ".mlp." in tensor.name
    )
    saved = (folded_stages / "image_encoder.onnx").stat().st_size - paths[0].stat().st_size
    assert saved > 0.6 * weights


def test_errors_leave_nothing(calibration: Calibration, folded_stages: Path, tmp_path: Path) -> None:
    layers = encoder_layers(calibration)
    source, target = folded_stages / "image_encoder.onnx", tmp_path / "image_encoder.onnx"
    options = {"stage": "image_encoder", "layers": layers, "precision": "int8"}
    with pytest.raises(ExportError, match="is the source itself"):
        quantize_stage(source, source, **options)  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="use int8 or fp8"):
        quantize_stage(source, target, **{**options, "precision": "int4"})  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="no product x/MatMul with a weight"):
        quantize_stage(source, target, **{**options, "layers": [replace(layers[0], name="x")]})  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="is missing"):
        quantize_stage(tmp_path / "none.onnx", target, **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_range_of_zero_is_skipped(calibration: Calibration, folded_stages: Path, tmp_path: Path) -> None:
    layers = encoder_layers(calibration)
    layers[1] = replace(layers[1], largest=0.0)
    result = quantize_stage(
        folded_stages / "image_encoder.onnx",
        tmp_path / "image_encoder.onnx",
        stage="image_encoder",
        layers=layers,
        precision="int8",
    )
    assert result.skipped == (layers[1].name,)
    assert layers[1].name not in result.quantized


@pytest.mark.slow
def test_attention_forms(calibration: Calibration, exported: Callable[..., Path], tmp_path: Path) -> None:
    """Every form has the same products; the oldest opset is raised to the first whose QuantizeLinear takes float16."""
    for form, opset in (("matmul", 19), ("attention", 23)):
        folder = tmp_path / form
        folder.mkdir()
        result = quantize_stage(
            exported(form) / "aggregator.onnx",
            folder / "aggregator.onnx",
            stage="aggregator",
            layers=[layer for layer in calibration.layers if layer.stage == "aggregator"],
            precision="int8",
        )
        assert result.opset == opset
        assert len(result.quantized) == 24
        OnnxRuntimeBackend(1).load_stage("aggregator", result.path)
