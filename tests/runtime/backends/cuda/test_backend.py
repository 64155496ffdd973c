"""The two backends as ``Engine`` and the registry see them, with and without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mapengine.runtime import Engine
from mapengine.runtime.backends.cuda import driver as driver_module
from mapengine.runtime.backends.registry import available_backends, make_backend
from mapengine.runtime.backends.tensorrt import backend
from mapengine.runtime.errors import BackendUnavailableError, InputError

from ....random_views import assert_close, mixed_views
from .stand_in_driver import StandInDriver
from .stand_in_status import DEVICE_UNAVAILABLE
from .stand_in_tensorrt import StandInTensorRt
from .test_plans import change_manifest, change_tensors

pytestmark = pytest.mark.slow  # its fixtures take seconds


@pytest.mark.slow
def test_without_a_gpu_the_error_says_what_is_missing_and_what_would_work(plan_bundles: dict[str, Path]) -> None:
    """In a process of its own, with the real driver, if there is one, told that there is no GPU."""
    program = """
import sys
from mapengine.runtime import Engine
from mapengine.runtime.backends.registry import available_backends
assert not {"tensorrt", "tensorrt-rtx"} & set(available_backends())
for path, name in zip(sys.argv[1::2], sys.argv[2::2]):
    for backend in ("auto", name):
        try:
            Engine.load(path, backend)
        except Exception as error:
            print(type(error).__name__, error, sep=": ")
assert not {"tensorrt", "tensorrt_rtx", "cuda"} & set(sys.modules)
"""
    arguments = [text for name, path in plan_bundles.items() for text in (str(path), name)]
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        check=True,
    )
    lines = result.stdout.splitlines()
    assert len(lines) == 4
    for line, name in zip(lines, ("tensorrt", "tensorrt", "tensorrt-rtx", "tensorrt-rtx"), strict=True):
        assert line.startswith(f"BackendUnavailableError: the backend {name} needs an NVIDIA GPU, and ")
        assert ("this machine has no NVIDIA driver (" in line) or ("the NVIDIA driver finds no GPU" in line)
        assert line.endswith("build the bundle with --backend onnxruntime or openvino to run it here")


def test_the_driver_is_asked_before_the_library_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "driver_problem", lambda: "the NVIDIA driver finds no GPU")
    monkeypatch.setattr(backend, "load_flavour", lambda name: pytest.fail("the library is imported"))
    with pytest.raises(BackendUnavailableError, match="needs an NVIDIA GPU, and the NVIDIA driver finds no GPU"):
        make_backend("tensorrt", ["tensorrt"])


def test_with_a_gpu_but_no_library(driver: StandInDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "driver_problem", lambda: None)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(
        BackendUnavailableError, match=r"tensorrt is not installed; run: pip install .mapengine\[tensorrt\]"
    ):
        make_backend("tensorrt", ["tensorrt"])


def test_it_is_there_where_its_library_and_a_gpu_are(library: StandInTensorRt, monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_backends()[0] == library.name
    monkeypatch.setattr(driver_module, "driver_problem", lambda: "the NVIDIA driver finds no GPU")
    assert library.name not in available_backends()


def test_what_an_engine_says_of_itself(library: StandInTensorRt, plan_bundle: Path) -> None:
    engine = Engine.load(plan_bundle, verify=False)
    assert engine.backend == library.name
    assert engine.device == "NVIDIA Stand-in 4000 (compute capability 8.9, CUDA driver 13.0)"
    assert engine.where == f"{library.name} {library.__version__} on {engine.device}"


def test_the_golden_check_and_verify(library: StandInTensorRt, plan_bundle: Path) -> None:
    engine = Engine.load(plan_bundle)
    parity = engine.verify()
    assert parity.measured_with == engine.where
    assert max(output.max_rel for output in parity.outputs.values()) < 1e-4


def test_threads_of_the_processor_are_still_checked(library: StandInTensorRt, plan_bundle: Path) -> None:
    with pytest.raises(InputError, match="threads is 0"):
        Engine.load(plan_bundle, threads=0)
    Engine.load(plan_bundle, threads=2, verify=False)


def test_features_between_stages_may_be_half_precision(
    library: StandInTensorRt, plan_bundle: Path, small: Engine
) -> None:
    def halve(tensors: list[dict[str, str]]) -> None:
        for tensor in tensors:
            if tensor["name"].startswith("view_features_"):
                tensor["dtype"] = "float16"

    for stage, side in (("aggregator", "outputs"), ("dense_head", "inputs")):
        change_tensors(plan_bundle, stage, lambda spec, side=side: halve(spec[side]))  # type: ignore[misc]
        change_manifest(plan_bundle, lambda manifest, stage=stage, side=side: halve(manifest["stages"][stage][side]))  # type: ignore[misc]
    engine = Engine.load(plan_bundle, verify=False)
    for _ in range(3):
        found, expected = engine.predict(mixed_views(5)), small.predict(mixed_views(5))
        assert_close(found, expected, 2e-2)
        assert all(value.dtype in (np.float32, bool) for view in found for value in view.values())
        assert any(not np.array_equal(view["conf"], other["conf"]) for view, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_a_gpu_in_use_by_somebody_else(
    name: str, driver: StandInDriver, make_library: Callable[[str, StandInDriver], StandInTensorRt]
) -> None:
    """Exclusive mode: the next attempt may succeed."""
    make_library(name, driver)
    driver.faults["cuDevicePrimaryCtxRetain"] = DEVICE_UNAVAILABLE
    with pytest.raises(BackendUnavailableError, match=r"failed to be opened \(CUDA_ERROR_DEVICE_UNAVAILABLE\)"):
        make_backend(name, [name])
    assert make_backend(name, [name]).compute_capability == "8.9"
