"""Magnitudes beyond float16's range, as trained transformers have them: never NaN or infinity."""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mapengine.export.precision import LoweredStage, lower_precision, measure_magnitudes, runnable
from mapengine.export.precision.assign import FP16_MAX, MARGIN
from mapengine.export.precision.policy import Precision
from mapengine.runtime.backends.contract import StageRunner
from mapengine.runtime.backends.host_pipeline import Pipeline
from mapengine.runtime.backends.onnxruntime import OnnxRuntimeBackend
from mapengine.runtime.bundle.manifest import STAGES
from mapengine.runtime.checks.parity import measure_parity
from mapengine.runtime.inputs.prepared import prepare_views

from .conftest import PRECISIONS, Magnitudes, emulated, lower, pipeline, small_cases, stage_paths
from .stressed import PLACES, Place, write_stressed
from .test_accuracy import DEPTH

KEPT: dict[str, tuple[str, ...]] = {
    "mlp": ("*blocks.*.mlp.w12", "*blocks.*.mlp", "*blocks.*.mlp.w3"),
    "attention": ("*blocks.*.attn.qkv", "*blocks.*.attn", "*blocks.*.attn.proj"),
    "queries": ("*blocks.*.attn.qkv", "*blocks.*.attn"),
    "dense head": ("dense_head.0.scratch.refinenet1.out_conv", "dense_head.0.scratch.refinenet1", "dense_head.1.conv1"),
    "geometry encoder": (
        "*_encoder.conv_in",
        "*_encoder.encoder.0.conv1",
        "*_encoder.encoder.0.shortcut",
    ),
}
"""What must stay in float32."""
TRUNK = ("mlp", "attention", "queries")

Predictions = dict[str, Any]
Found = tuple[dict[str, LoweredStage], Pipeline]
Low = Callable[[Path, Precision, Magnitudes | None], Found]


@dataclass(frozen=True)
class Stressed:
    folder: Path
    magnitudes: Magnitudes
    predictions: Predictions


def predict(run: Any) -> Predictions:
    return {name: run.forward(prepare_views(views)) for name, views in small_cases().items()}


def finite(predictions: Predictions) -> bool:
    views = [view for case in predictions.values() for view in case]
    return all(np.isfinite(value).all() for view in views for value in view.values())


@pytest.fixture(scope="module")
def stressed(tmp_path_factory: pytest.TempPathFactory, exported: Callable[..., Path]) -> Callable[[Place], Stressed]:
    @functools.cache
    def make(place: Place) -> Stressed:
        folder = tmp_path_factory.mktemp("stressed")
        stages = stage_paths(folder)
        for name, path in stage_paths(exported("mha")).items():
            write_stressed(path, stages[name], place)
        return Stressed(folder, measure_magnitudes(stages, small_cases()), predict(pipeline(stages)))

    return make


@pytest.fixture(scope="module")
def plain(exported: Callable[..., Path]) -> Predictions:
    return predict(pipeline(stage_paths(exported("mha"))))


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_the_float32_network_computes_the_same(
    place: Place, stressed: Callable[[Place], Stressed], plain: Predictions
) -> None:
    found = stressed(place)
    for case, views in plain.items():
        for one, other in zip(views, found.predictions[case], strict=True):
            assert all(np.array_equal(one[key], other[key]) for key in one)
    assert max(max(largest.values()) for largest in found.magnitudes.values()) > 2 * FP16_MAX


@pytest.fixture(scope="module")
def low(tmp_path_factory: pytest.TempPathFactory) -> Low:
    """Stages of a folder in 16 bit, and what computes them. A stage that a place leaves as it was is written once."""

    @functools.cache
    def make(
        stage: str, graph: bytes, precision: Precision, magnitudes: tuple[tuple[str, float], ...] | None
    ) -> tuple[LoweredStage, StageRunner]:
        folder = tmp_path_factory.mktemp("low")
        (folder / f"{stage}.onnx").write_bytes(graph)  # weights included: these networks are small
        (folder / "16").mkdir()
        written = lower_precision(
            folder / f"{stage}.onnx",
            folder / "16" / f"{stage}.onnx",
            stage=stage,
            precision=precision,
            magnitudes=None if magnitudes is None else dict(magnitudes),
        )
        return written, OnnxRuntimeBackend(1).load_stage(stage, runnable(written.path, written.path.parent))

    def find(folder: Path, precision: Precision, magnitudes: Magnitudes | None) -> Found:
        made = {
            name: make(
                name, path.read_bytes(), precision, None if magnitudes is None else tuple(magnitudes[name].items())
            )
            for name, path in stage_paths(folder).items()
        }
        return {name: stage for name, (stage, _) in made.items()}, Pipeline(
            {name: run for name, (_, run) in made.items()}
        )

    return find


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("place", PLACES)
def test_without_magnitudes_float16_overflows(
    place: Place, precision: Precision, stressed: Callable[[Place], Stressed], low: Low
) -> None:
    """The cases would show a failure; the trunk of a bfloat16 build has float32's range."""
    _, found = low(stressed(place).folder, precision, None)
    assert finite(predict(found)) == (precision == "bf16" and place in TRUNK)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("place", PLACES)
def test_with_magnitudes_results_are_finite_and_accurate(
    place: Place, precision: Precision, stressed: Callable[[Place], Stressed], low: Low
) -> None:
    network = stressed(place)
    stages, run = low(network.folder, precision, network.magnitudes)
    found = predict(run)
    assert finite(found)
    geometry = measure_parity(found, network.predictions, "").geometry
    assert geometry.depth_abs_rel <= DEPTH[precision]
    assert geometry.ray_degrees <= 0.25
    kept = [module for stage in STAGES for module in stages[stage].kept_layers]
    if precision == "bf16" and place in TRUNK:
        assert kept == []
        return
    patterns = KEPT[place]
    assert [module for module in kept if not any(fnmatch.fnmatchcase(module, p) for p in patterns)] == []
    assert [pattern for pattern in patterns if not fnmatch.filter(kept, pattern)] == []
    assert len(set(kept)) == len(kept)
    for stage in stages.values():
        assert all(entry.factor >= MARGIN for entry in stage.headroom)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_massive_residual_stream_needs_no_magnitudes(
    precision: str, exported: Callable[..., Path], tmp_path: Path
) -> None:
    """The policy has it in float32: a channel far beyond 65504 changes nothing but its own block's neighbours."""
    folder = tmp_path / "full"
    folder.mkdir()
    stages = stage_paths(folder)
    for name, path in stage_paths(exported("mha")).items():
        model = onnx.load(path)
        for tensor in model.graph.initializer:
            if tensor.name.endswith("blocks.0.ls2.gamma"):
                gains = numpy_helper.to_array(tensor).copy()
                gains[5] = 3e5
                tensor.CopyFrom(numpy_helper.from_array(gains, tensor.name))
        onnx.save(model, stages[name])
    magnitudes = measure_magnitudes(stages, small_cases())
    assert max(magnitudes["image_encoder"].values()) > FP16_MAX
    assert max(magnitudes["aggregator"].values()) > FP16_MAX
    wanted = predict(pipeline(stages))
    found = predict(emulated(lower(folder, tmp_path / "low", precision, None)))
    assert finite(found)
    assert measure_parity(found, wanted, "").geometry.depth_abs_rel <= DEPTH[precision]
