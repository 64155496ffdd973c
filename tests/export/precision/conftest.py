"""Stages in 16 bit, each written once per worker of a test run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mapengine.export.bundles.parity_cases import parity_cases
from mapengine.export.precision import LoweredStage, lower_precision, measure_magnitudes, runnable
from mapengine.runtime.backends.contract import StageRunner
from mapengine.runtime.backends.host_pipeline import Pipeline
from mapengine.runtime.backends.onnxruntime import OnnxRuntimeBackend
from mapengine.runtime.bundle.manifest import STAGES
from mapengine.runtime.inputs.prepared import prepare_views

FORMS = ("mha", "attention", "matmul")
PRECISIONS = ("fp16", "bf16")
NETWORKS = ("preset:tiny", "v1_tiny")
"""The v1.1 and the v1 architecture."""
GRAPHS = [*(("preset:tiny", form) for form in FORMS), ("v1_tiny", "mha"), ("v1_tiny", "matmul")]
"""Networks and attention forms: v1 differs in its GELU, which has two forms."""

Magnitudes = dict[str, dict[str, float]]


def stage_paths(folder: Path) -> dict[str, Path]:
    return {name: folder / f"{name}.onnx" for name in STAGES}


def small_cases() -> Mapping[str, Any]:
    """Cases that use every stage and modality."""
    cases = parity_cases("dinov2", (42, 28))
    return {name: cases[name] for name in ("image, 1 view", "mixed", "all inputs")}


def lower(folder: Path, target: Path, precision: str, magnitudes: Magnitudes | None) -> dict[str, LoweredStage]:
    """All stages of ``folder`` in 16 bit."""
    target.mkdir(parents=True, exist_ok=True)
    return {
        name: lower_precision(
            path,
            target / path.name,
            stage=name,
            precision=precision,  # type: ignore[arg-type]
            magnitudes=None if magnitudes is None else magnitudes[name],
        )
        for name, path in stage_paths(folder).items()
    }


def pipeline(stages: Mapping[str, Path]) -> Pipeline:
    backend = OnnxRuntimeBackend(1)
    return Pipeline({name: backend.load_stage(name, path) for name, path in stages.items()})


def emulated(stages: Mapping[str, LoweredStage]) -> Pipeline:
    """Computes what the 16-bit graphs say."""
    return pipeline({name: runnable(stage.path, stage.path.parent) for name, stage in stages.items()})


class Recorder:
    """A stage that remembers its calls."""

    def __init__(self, runner: StageRunner) -> None:
        self._runner = runner
        self.calls: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        outputs = self._runner.run(inputs)
        self.calls.append((dict(inputs), dict(outputs)))
        return outputs


@pytest.fixture(scope="session")
def calls(exported: Callable[..., Path]) -> Callable[..., dict[str, Any]]:
    """Inputs and outputs of every call of every float32 stage over the cases, by stage."""

    @functools.cache
    def record(form: str, network: str) -> dict[str, Any]:
        backend = OnnxRuntimeBackend(1)
        paths = stage_paths(exported(form, network))
        stages = {name: Recorder(backend.load_stage(name, path)) for name, path in paths.items()}
        for views in small_cases().values():
            Pipeline(dict[str, StageRunner](stages)).forward(prepare_views(views))
        return {name: stage.calls for name, stage in stages.items()}

    return record


@pytest.fixture(scope="session")
def magnitudes(exported: Callable[..., Path]) -> Callable[..., Magnitudes]:
    @functools.cache
    def measure(form: str, network: str = "preset:tiny") -> Magnitudes:
        return measure_magnitudes(stage_paths(exported(form, network)), small_cases())

    return measure


@pytest.fixture(scope="session")
def lowered(
    exported: Callable[..., Path], magnitudes: Callable[..., Magnitudes], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., dict[str, LoweredStage]]:
    """Stages of (attention form, network, precision), with the measured magnitudes."""

    @functools.cache
    def make(form: str, network: str, precision: str) -> dict[str, LoweredStage]:
        return lower(exported(form, network), tmp_path_factory.mktemp("lowered"), precision, magnitudes(form, network))

    return make
