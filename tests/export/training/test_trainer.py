"""Runs can be interrupted, continued, shared out and exported."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mapengine.export import load_model
from mapengine.export.model.presets import preset_config
from mapengine.export.training.config import InputMix, Phase, TrainingConfig
from mapengine.export.training.optimizer import learning_rate_at
from mapengine.export.training.trainer import Clock, Trainer
from mapengine.runtime.errors import CheckpointError, ConfigError

pytestmark = pytest.mark.slow  # its fixtures take seconds

NANO = Path(__file__).parents[3] / "export" / "training" / "nano.json"


@pytest.fixture
def run_folder(scene_folder: Path, tmp_path: Path) -> Path:
    """A folder for runs, beside the scenes that they use."""
    (tmp_path / "scenes").symlink_to(scene_folder)
    return tmp_path


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.network.state_dict().items()}


def quiet(text: str) -> None:
    pass


def test_an_interrupted_run_ends_as_if_it_had_not_been(config: TrainingConfig, run_folder: Path) -> None:
    whole = Trainer(config, run_folder / "whole", report=quiet)
    pieces = Trainer(config, run_folder / "pieces", report=quiet)
    start = weights(whole)
    for trainer in (whole, pieces):
        assert all(torch.equal(value, start[name]) for name, value in weights(trainer).items())
    whole.evaluate = pieces.evaluate = lambda: {}  # type: ignore[method-assign]
    assert whole.run()
    assert not pieces.run(Clock(0.0))  # stops after one step
    assert pieces.step == 1
    again = Trainer(config, run_folder / "pieces", report=quiet)
    assert again.step == 1
    again.evaluate = lambda: {}  # type: ignore[method-assign]
    assert again.run()
    assert again.step == whole.step == 4
    moved = 0.0
    for name, value in weights(whole).items():
        torch.testing.assert_close(value, weights(again)[name], rtol=0, atol=1e-6, msg=name)
        moved += (value - start[name]).abs().sum().item()
    assert moved > 1


def test_training_lowers_the_loss(config: TrainingConfig, run_folder: Path) -> None:
    model = preset_config("tiny")  # with half of its blocks: most of a step is the optimiser's, block by block
    model["encoder_config"]["keep_first_n_layers"] = 1
    model["info_sharing_config"]["module_args"] |= {"depth": 3, "indices": [0, 1]}
    changes = {"phases": (Phase(50, 4),), "view_counts": (1, 2), "warmup": 5, "mix": InputMix(geometry=0.5)}
    config = dataclasses.replace(config, model=model, learning_rate=3e-3, **changes)  # type: ignore[arg-type]
    trainer = Trainer(config, run_folder / "run", report=quiet)
    trainer.evaluate = lambda: {}  # type: ignore[method-assign]
    trainer.run()
    records = [json.loads(line) for line in (run_folder / "run" / "log.jsonl").read_text().splitlines()]
    losses = [record["train"]["loss"] for record in records if "train" in record]
    assert len(losses) == 2
    assert losses[-1] < 0.75 * losses[0]


def test_a_run_that_goes_on_within_an_interval_logs_the_mean_of_its_own_steps(
    config: TrainingConfig, run_folder: Path
) -> None:
    trainer = Trainer(dataclasses.replace(config, phases=(Phase(25, 8),)), run_folder / "run", report=quiet)
    trainer.evaluate = lambda: {}  # type: ignore[method-assign]
    trainer.train_step = lambda *_: ({"loss": torch.tensor(2.0)}, False)  # type: ignore[method-assign]
    trainer.step = 18
    trainer.run()
    records = [json.loads(line) for line in (run_folder / "run" / "log.jsonl").read_text().splitlines()]
    assert [record["train"]["loss"] for record in records if "train" in record] == [2.0]


def test_an_exported_network_is_a_model(config: TrainingConfig, run_folder: Path) -> None:
    trainer = Trainer(config, run_folder / "run", report=quiet)
    folder = trainer.export(run_folder / "model")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    model = load_model(folder)
    for name, value in trainer.network.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value.half().float(), rtol=0, atol=0)
    image = np.zeros((1, 3, 28, 28), np.float32)
    prediction = model.infer([{"img": image, "data_norm_type": ["dinov2"]}])[0]
    assert bool(prediction["pts3d"].isfinite().all())


def test_a_run_begins_with_the_weights_of_a_model(config: TrainingConfig, run_folder: Path) -> None:
    first = Trainer(config, run_folder / "first", report=quiet)
    folder = first.export(run_folder / "model")
    second = Trainer(dataclasses.replace(config, seed=1), run_folder / "second", report=quiet, start=folder)
    for name, value in weights(first).items():
        torch.testing.assert_close(weights(second)[name], value.half().float(), rtol=0, atol=0, msg=name)
    with pytest.raises(CheckpointError, match="not the network"):
        Trainer(config, run_folder / "third", report=quiet, start=_other(run_folder))


def _other(folder: Path) -> Path:
    """A model of another shape."""
    other = preset_config("tiny")
    other["info_sharing_config"]["module_args"]["depth"] = 5
    config = TrainingConfig(model=other, width=28, height=28, phases=(Phase(1, 8),), view_counts=(1,))
    return Trainer(config, folder / "other", report=quiet).export(folder / "other-model")


def test_validation_is_logged(config: TrainingConfig, run_folder: Path) -> None:
    config = dataclasses.replace(config, evaluation_scenes=1, phases=(Phase(1, 8),), evaluate_every=1)
    shown: list[str] = []
    Trainer(config, run_folder / "run", report=shown.append).run()
    records = [json.loads(line) for line in (run_folder / "run" / "log.jsonl").read_text().splitlines()]
    assert [list(record)[-1] for record in records] == ["run", "validation"]
    assert {"device", "torch"} <= set(records[0]["run"])
    assert set(records[1]["validation"]) == {"image-only-4", "posed", "depth", "depth-completion"}
    assert any("image-only-4" in line for line in shown)


def test_the_command_trains_in_two_processes(config: TrainingConfig, run_folder: Path) -> None:
    config = dataclasses.replace(config, phases=(Phase(2, 8),), evaluation_scenes=1)
    (run_folder / "config.json").write_text(json.dumps(config.to_json()))
    command = [sys.executable, "-m", "mapengine.export.training", str(run_folder / "config.json")]
    options = ["--out", str(run_folder / "run"), "--processes", "2", "--export", str(run_folder / "model")]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "step 2 image-only-4" in done.stdout
    assert load_model(run_folder / "model").config.aggregator.depth == 6


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (None, "cannot read"),
        ("{", "not valid JSON"),
        ('{"model": {}, "stepps": 3}', "stepps"),
        ('{"width": 140}', "model"),
        ('{"model": {}, "width": 100}', "multiples of"),
        ('{"model": {}, "phases": [{"steps": 1, "views_per_step": 32, "shrink": 3}]}', "multiples of 42"),
        ('{"model": {}, "view_counts": [9]}', "1 to 8 views"),
        ('{"model": {}, "phases": [{"steps": 1, "views_per_step": 4}]}', "views_per_step"),
        ('{"model": {}, "mix": {"geometri": 1}}', "geometri"),
    ],
)
def test_bad_configurations(tmp_path: Path, text: str | None, what: str) -> None:
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=what):
        TrainingConfig.read(path)


def test_a_damaged_checkpoint_is_named(config: TrainingConfig, run_folder: Path) -> None:
    (run_folder / "run").mkdir()
    (run_folder / "run" / "config.json").write_text(json.dumps(config.to_json()), encoding="utf-8")
    (run_folder / "run" / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: cannot resume"):
        Trainer(config, run_folder / "run", report=quiet)


def test_the_configuration_of_nano_is_read_and_written() -> None:
    config = TrainingConfig.read(NANO)
    assert TrainingConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert config.phase_at(0) == config.phases[0]
    assert config.phase_at(config.steps - 1) == config.phases[-1]


def test_learning_rate() -> None:
    rates = [learning_rate_at(step, step / 100, 2.0, 10, 0.3) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9:70] == pytest.approx([2.0] * 61)
    assert rates[85] == pytest.approx(1.0)
    assert 0 < rates[-1] < 0.1
