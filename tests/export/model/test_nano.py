"""The trained preset: its files, and that it still reconstructs."""

from __future__ import annotations

import json

import pytest
from safetensors import safe_open

from mapengine.calibration.evaluation import Evaluation, evaluate
from mapengine.export import MapAnything, load_model
from mapengine.export.model.checkpoint import expected_tensors, parameter_count
from mapengine.export.model.presets import TRAINED, native_sizes
from mapengine.export.training.config import TrainingConfig

FOLDER = TRAINED["nano"]
SCENES = 8


@pytest.fixture(scope="module")
def nano() -> MapAnything:
    return load_model("preset:nano")


@pytest.fixture(scope="module")
def evaluation(nano: MapAnything) -> Evaluation:
    return evaluate(nano, SCENES, tasks=["image-only-4", "posed", "depth", "all"])


def metric(evaluation: Evaluation, task: str, name: str) -> float:
    value = next(result for result in evaluation.tasks if result.name == task).metrics[name]
    assert value is not None
    return value


@pytest.mark.slow
def test_the_files_are_small_and_in_upstreams_format(nano: MapAnything) -> None:
    assert (FOLDER / "model.safetensors").stat().st_size <= 12_000_000
    with safe_open(FOLDER / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}  # noqa: SIM118
        assert {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()} == expected_tensors(nano.config)  # noqa: SIM118
    assert load_model(FOLDER).weights_hash() == nano.weights_hash()


def test_it_is_a_v11_network_with_heads_of_64(nano: MapAnything) -> None:
    config = nano.config
    assert config.use_class_token
    assert config.aggregator.reference_view_embedding
    assert config.image_encoder.block.mlp == config.aggregator.block.mlp == "swiglu"
    assert config.aggregator.block.dim // config.aggregator.block.num_heads == 64
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"{parameter_count(config):,}".replace(",", " ") in card


def test_the_training_configuration_is_of_this_network() -> None:
    config = TrainingConfig.read(FOLDER.parents[1] / "training" / "nano.json")
    assert json.loads(json.dumps(config.model)) == json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    assert native_sizes("preset:nano") == [(config.width, config.height)]
    assert native_sizes("preset:tiny") == "all"


@pytest.mark.slow
def test_geometry_helps(evaluation: Evaluation) -> None:
    assert metric(evaluation, "depth", "depth_abs_rel") < 0.5 * metric(evaluation, "image-only-4", "depth_abs_rel")
    assert metric(evaluation, "posed", "rotation_degrees") < 0.5 * metric(
        evaluation, "image-only-4", "rotation_degrees"
    )
    assert metric(evaluation, "all", "points_abs_rel") < metric(evaluation, "image-only-4", "points_abs_rel")
