"""What each layer of an 8-bit bundle loses is measured, whatever was folded into it."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mapengine.calibration.ranges import Calibration
from mapengine.cli.program import main
from mapengine.export.diagnosis.layer_comparison import compare_layers
from mapengine.export.diagnosis.layer_noise import (
    LEAST_SNR,
    LayerNoise,
    NoiseComparison,
    check_comparable,
    compare_noise,
)
from mapengine.export.graphs.processors import rewrite_for_processors
from mapengine.export.model.reference import MapAnything
from mapengine.export.quantization.layers import find_layers
from mapengine.export.quantization.qdq import quantize_stage
from mapengine.runtime.backends.openvino import OpenVinoBackend
from mapengine.runtime.bundle.bundle_files import BundleFiles
from mapengine.runtime.bundle.manifest import Manifest
from mapengine.runtime.bundle.store import Bundle
from mapengine.runtime.errors import ExportError, InputError

from ...processors import needs_vnni

BLOCK = "info_sharing.self_attention_blocks.3"
QUANTISED = ("image_encoder", "aggregator")


@pytest.fixture(scope="module")
def built(folded_build: tuple[Bundle, Counter[str]]) -> Bundle:
    """INT8 with smoothing, rotation and bias correction. Copy it before changing it."""
    return folded_build[0]


@pytest.fixture(scope="module")
def sound(built: Bundle, network: MapAnything) -> dict[str, LayerNoise]:
    """Of the bundle as it was built."""
    return by_name(compare_noise(built, network))


@pytest.fixture
def copied(built: Bundle, tmp_path: Path) -> Bundle:
    return replaced(built, Path(shutil.copytree(built.folder, tmp_path / "bundle")))


def replaced(bundle: Bundle, folder: Path, change: Callable[[dict[str, Any]], None] = lambda _: None) -> Bundle:
    """A bundle in another folder and with another manifest, whose files may have changed."""
    document: dict[str, Any] = bundle.manifest.to_json()
    change(document)
    return Bundle(folder, Manifest.from_json(document), bundle.digest, BundleFiles(folder))


def by_name(comparison: NoiseComparison) -> dict[str, LayerNoise]:
    return {layer.layer: layer for layer in comparison.layers}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_folding_is_no_noise(backend: str, built: Bundle, network: MapAnything) -> None:
    files = {path: path.stat().st_mtime_ns for path in built.folder.iterdir()}
    lines: list[str] = []
    comparison = compare_noise(built, network, backend, 2, lines.append)
    assert comparison.compared == backend
    assert [layer.layer for layer in comparison.layers] == list(find_layers(network))
    assert {layer.stage for layer in comparison.layers} == set(QUANTISED)
    assert {layer.precision for layer in comparison.layers} == {"int8"}
    assert comparison.first is None
    assert LEAST_SNR < comparison.worst(1)[0].snr < 60  # INT8 it is, not float32
    for layer in comparison.layers:
        if layer.layer.endswith((".qkv", ".w12")):
            assert layer.stream_snr is None
        else:
            assert layer.stream_snr is not None
            assert layer.stream_snr > LEAST_SNR
    assert "comparing the layers of aggregator" in lines
    assert {path: path.stat().st_mtime_ns for path in built.folder.iterdir()} == files


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["attn.qkv", "attn.proj", "mlp.w12", "mlp.w3"])
def test_the_layer_with_a_wrong_scale_is_first_and_worst(
    layer: str, copied: Bundle, network: MapAnything, sound: dict[str, LayerNoise]
) -> None:
    path = copied.stage_path("aggregator")
    stage = onnx.load(path)
    (scale,) = (t for t in stage.graph.initializer if t.name == f"{BLOCK}.{layer}.weight_scale")
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(3), scale.name))
    onnx.save(stage, path)
    comparison = compare_noise(copied, network)
    assert comparison.first is not None
    assert comparison.first.layer == f"{BLOCK}.{layer}"
    assert comparison.first.snr < 0
    # qkv and w12 spoil what reads them, in the same half of the block and no further.
    half = f"{BLOCK}.{layer.partition('.')[0]}."
    assert comparison.worst(1)[0].layer.startswith(half)
    for name, noise in by_name(comparison).items():
        if not name.startswith(half):
            assert noise.snr == pytest.approx(sound[name].snr, abs=0.1)


@pytest.mark.slow
@needs_vnni
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_separate_products(backend: str, copied: Bundle, network: MapAnything, sound: dict[str, LayerNoise]) -> None:
    for stage in QUANTISED:
        assert rewrite_for_processors(copied.stage_path(stage), stage) > 0
    apart = by_name(compare_noise(copied, network, backend))
    assert list(apart) == list(sound)
    for name, noise in apart.items():
        assert noise.snr == pytest.approx(sound[name].snr, abs=0.5)


@pytest.mark.slow
@pytest.mark.skipif(not OpenVinoBackend(1).has_bf16(), reason="the processor has no bfloat16")
def test_bfloat16_around_it(copied: Bundle, network: MapAnything) -> None:
    def loosen(document: dict[str, Any]) -> None:
        document["quantization"]["rest"] = "bf16"
        document["backends"] = [entry for entry in document["backends"] if entry["name"] == "openvino"]

    plain = by_name(compare_noise(copied, network, "openvino"))
    for stage in QUANTISED:
        rewrite_for_processors(copied.stage_path(stage), stage)
    comparison = compare_noise(replaced(copied, copied.folder, loosen), network)
    assert comparison.compared == "openvino"
    assert comparison.first is None
    # Its rounding is there, and is less than what INT8 loses.
    assert all(abs(noise.snr - plain[name].snr) < 6 for name, noise in by_name(comparison).items())
    assert any(abs(noise.snr - plain[name].snr) > 1e-3 for name, noise in by_name(comparison).items())


@pytest.mark.slow
def test_fp8_is_emulated(
    copied: Bundle, network: MapAnything, mixed_calibration: Calibration, folded_stages: Path
) -> None:
    for stage in QUANTISED:
        layers = [layer for layer in mixed_calibration.quantized if layer.stage == stage]
        source, target = folded_stages / f"{stage}.onnx", copied.stage_path(stage)
        quantize_stage(source, target, stage=stage, layers=layers, precision="fp8")
    fp8 = replaced(copied, copied.folder, lambda document: document.update(precision="fp8"))
    comparison = compare_noise(fp8, network, "openvino")
    assert comparison.compared == "onnxruntime, fp8 emulated"
    assert {layer.precision for layer in comparison.layers} == {"fp8"}
    assert comparison.first is None
    assert comparison.worst(1)[0].snr < 40


@pytest.mark.slow
def test_layers_that_were_kept(
    copied: Bundle, network: MapAnything, mixed_calibration: Calibration, folded_stages: Path
) -> None:
    kept = f"{BLOCK}.attn.qkv"
    layers = [entry for entry in mixed_calibration.quantized if entry.stage == "aggregator" and entry.name != kept]
    target = copied.stage_path("aggregator")
    quantize_stage(folded_stages / "aggregator.onnx", target, stage="aggregator", layers=layers, precision="int8")
    noise = by_name(compare_noise(copied, network))[kept]
    assert noise.precision == "fp32"
    assert noise.snr > 30  # its corrected bias is all that differs


@pytest.mark.slow
@needs_vnni
def test_command(
    built: Bundle, network: MapAnything, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mapengine.export.model.reference.load_model", lambda name, revision: network)
    with pytest.raises(SystemExit) as leave:
        main(["verify", str(built.folder), "--model", "preset:tiny", "--layers", "--backend", "openvino"])
    shown = capsys.readouterr()
    assert leave.value.code == 0, shown.err
    assert "36 linear layers of openvino against float32, the 10 with the lowest signal-to-noise ratios:" in shown.out
    assert "dB in the stream" in shown.out
    assert "No layer is below 10 dB." in shown.out


def test_values_that_are_not_finite_come_first() -> None:
    layers = [LayerNoise("s", name, "int8", snr, None) for name, snr in (("a", 30.0), ("b", float("-inf")), ("c", 9.0))]
    comparison = NoiseComparison("x", 10.0, tuple(layers))
    assert comparison.first == layers[1]
    assert [layer.layer for layer in comparison.worst(2)] == ["b", "c"]


@pytest.mark.slow
def test_refusals(built: Bundle, network: MapAnything, copied: Bundle) -> None:
    with pytest.raises(InputError, match="this bundle is fp32; use compare_layers"):
        check_comparable(replace(built.manifest, precision="fp32", quantization=None))
    with pytest.raises(InputError, match="this bundle is int8; use compare_noise"):
        compare_layers(built, network)
    with pytest.raises(InputError, match=r"int8 plans cannot be compared.*build int8 for onnxruntime or openvino"):
        check_comparable(replace(built.manifest, format="plan"))
    with pytest.raises(InputError, match="tensorrt does not serve this bundle; use onnxruntime or openvino"):
        compare_noise(built, network, "tensorrt")
    path = copied.stage_path("image_encoder")
    shutil.copy(copied.stage_path("aggregator"), path)
    with pytest.raises(ExportError, match=r"image_encoder: the bundle has no operation .*; build it again"):
        compare_noise(copied, network)
