"""The first layer that differs from float32 is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from mapengine.export.bundles.onnx import Graphs, write_graphs
from mapengine.export.diagnosis import layer_comparison
from mapengine.export.diagnosis.layer_comparison import LayerComparison, LayerDifference, compare_layers
from mapengine.export.model.reference import MapAnything
from mapengine.runtime.bundle.manifest import STAGES, Manifest
from mapengine.runtime.bundle.store import Bundle
from mapengine.runtime.errors import BackendUnavailableError

DAMAGED = "info_sharing.self_attention_blocks.3.mlp.w3"


@pytest.fixture(scope="module")
def tiny(reference: Any) -> MapAnything:
    return reference("preset:tiny")


@pytest.fixture
def half(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """The shared bundle, as if it had been built in FP16."""
    bundle = Bundle.open(tiny_bundle)
    changed: dict[str, Any] = {**bundle.manifest.to_json(), "precision": "fp16"}
    changed["reduced_precision"] = {"kept_layers": [], "headroom": []}
    return Bundle(bundle.folder, Manifest.from_json(changed), bundle.digest, bundle.files)


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_sixteen_bit_rounding_is_no_divergence(half: Bundle, tiny: MapAnything) -> None:
    lines: list[str] = []
    comparison = compare_layers(half, tiny, lines.append)
    assert comparison.compared == "onnxruntime, fp16 emulated"
    assert {layer.stage for layer in comparison.layers} == set(STAGES)
    assert "info_sharing.self_attention_blocks.3.attn.qkv" in {layer.layer for layer in comparison.layers}
    assert comparison.first is None
    assert 1e-4 < comparison.worst(1)[0].max_rel < 1e-2
    assert "comparing the layers of aggregator" in lines


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_the_layer_that_is_wrong_is_named(half: Bundle, tiny: MapAnything, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(model: MapAnything, folder: Path, *, precision: str, **options: Any) -> Graphs:
        graphs = write_graphs(model, folder, precision=precision, **options)
        if precision == "fp16":
            path = folder / "aggregator.onnx"
            stage = ir.load(path)
            node = next(node for node in stage.graph if node.name == f"{DAMAGED}/Add")
            bias = next(value for value in node.inputs if value is not None and value.const_value is not None)
            bias.const_value = ir.Tensor((bias.const_value.numpy() + 1).astype(np.float16), name=bias.name)  # type: ignore[union-attr]
            ir.save(stage, path)
        return graphs

    monkeypatch.setattr(layer_comparison, "write_graphs", damaged)
    comparison = compare_layers(half, tiny)
    assert comparison.first is not None
    assert (comparison.first.stage, comparison.first.layer) == ("aggregator", DAMAGED)
    assert comparison.first.max_rel > 0.1
    # Each stage gets float32's inputs, so the next one is not blamed.
    assert all(layer.max_rel < comparison.tolerance for layer in comparison.layers if layer.stage == "dense_head")


def test_values_that_are_not_finite_come_first() -> None:
    layers = [LayerDifference("s", name, 0.0, value) for name, value in (("a", 0.5), ("b", float("nan")), ("c", 0.7))]
    comparison = LayerComparison("x", 0.6, tuple(layers))
    assert comparison.first == layers[1]
    assert [layer.layer for layer in comparison.worst(2)] == ["b", "c"]


def test_polygraphy_missing(half: Bundle, tiny: MapAnything, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "polygraphy.comparator", None)
    with pytest.raises(BackendUnavailableError, match=r"needs polygraphy.*pip install 'mapengine\[export\]'"):
        compare_layers(half, tiny)
