"""The one code path with libraries that have exactly the names of TensorRT 10.3 and 11.4, where no GPU can run them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mapengine.export.tensorrt.compile import MESSAGE, Compiled, PlanRequest, compile_plan
from mapengine.export.tensorrt.timing_cache import read_timings, timings_path, write_timings
from mapengine.runtime.backends.cuda import driver
from mapengine.runtime.backends.tensorrt.flavour import Flavour
from mapengine.runtime.bundle.manifest import TensorSpec
from mapengine.runtime.bundle.requests import Range
from mapengine.runtime.errors import BackendUnavailableError, ExportError
from mapengine.runtime.typed_json.codec import encode, read_json

from ...refusals import refused
from ...tensorrt_api import RELEASES, RTX
from .fake_library import Pretence

GPU = SimpleNamespace(name="GPU A", compute_capability="8.7", driver_version="12.6")
DEVICE = "GPU A, 8.7, driver for CUDA 12.6"
TENSORRT = [release for release in RELEASES if release != RTX]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAPENGINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(driver, "open_device", lambda: GPU)


def request(folder: Path, **changes: Any) -> PlanRequest:
    values: dict[str, Any] = {
        "backend": "tensorrt",
        "name": "image_encoder",
        "onnx": "graph.onnx",
        "plan": str(folder / "a.plan"),
        "inputs": (TensorSpec("images", "float16", ("views_in_chunk", 3, "14*patch_rows", "14*patch_columns")),),
        "outputs": (TensorSpec("features", "float16", ("views_in_chunk", "patch_rows", "patch_columns", 8)),),
        "profiles": (
            {"views_in_chunk": Range(1, 2, 8), "patch_rows": Range(1, 2, 3), "patch_columns": Range(1, 3, 5)},
        ),
    }
    return PlanRequest(**{**values, **changes})


def flavour(release: str, pretence: Pretence) -> Flavour:
    return Flavour("tensorrt", pretence.library(release), release.rpartition("-")[2])


@pytest.mark.parametrize("release", TENSORRT)
def test_a_build(release: str, tmp_path: Path) -> None:
    pretence, seen = Pretence(), []
    asked = request(tmp_path, memory_limit=2**30, optimization_level=5)
    made = compile_plan(flavour(release, pretence), asked, lambda fraction, phase: seen.append((fraction, phase)))
    assert (tmp_path / "a.plan").read_bytes() == pretence.plan
    assert (made.bytes, made.activation_memory, made.listing, made.inspection) == (
        400,
        12345,
        None,
        pretence.inspection,
    )
    images, features = made.ports
    assert (images.name, images.is_input, images.dtype) == ("images", True, "float16")
    assert images.profiles == (((1, 3, 14, 14), (2, 3, 28, 42), (8, 3, 42, 70)),)
    assert (features.is_input, features.profiles) == (False, ())
    assert read_json(Compiled, json.dumps(encode(made)), MESSAGE) == made
    assert pretence.calls["flags"] == 2  # strongly typed
    assert pretence.calls["verbosity"] == "detailed"
    assert pretence.calls["memory"] == ("workspace", 2**30)
    assert pretence.calls["level"] == 5
    assert pretence.calls["profiles"] == [{"images": ((1, 3, 14, 14), (2, 3, 28, 42), (8, 3, 42, 70))}]
    fractions = [fraction for fraction, _ in seen]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0, 1)


@pytest.mark.parametrize("release", TENSORRT)
def test_timings_are_kept_per_device_and_version(release: str, tmp_path: Path) -> None:
    version = release.rpartition("-")[2]
    first = Pretence()
    compile_plan(flavour(release, first), request(tmp_path), lambda *_: None)
    assert first.calls["timings_used"] == b""
    assert read_timings("tensorrt", version, DEVICE) == b"+new"
    second = Pretence(accepts=(b"", b"+new"))
    compile_plan(flavour(release, second), request(tmp_path), lambda *_: None)
    assert second.calls["timings_used"] == b"+new"
    assert read_timings("tensorrt", version, DEVICE) == b"+new+new"


def test_timings_that_the_library_does_not_take_are_replaced(tmp_path: Path) -> None:
    write_timings("tensorrt", "10.3.0", DEVICE, b"of some other GPU")
    pretence = Pretence()
    compile_plan(flavour("tensorrt-10.3.0", pretence), request(tmp_path), lambda *_: None)
    assert pretence.calls["timings_used"] == b""
    assert read_timings("tensorrt", "10.3.0", DEVICE) == b"+new"


@pytest.mark.parametrize("content", [b"", b"rubbish", b"mapengine timing cache 1\n{}\nrubbish"])
def test_a_foreign_file_never_reaches_the_library(content: bytes, tmp_path: Path) -> None:
    path = timings_path("tensorrt", "10.3.0", DEVICE)
    assert path is not None
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    pretence = Pretence()
    compile_plan(flavour("tensorrt-10.3.0", pretence), request(tmp_path), lambda *_: None)
    assert pretence.calls["timings_used"] == b""


def test_without_cuda_python_there_is_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise BackendUnavailableError("cuda-bindings is not installed")

    monkeypatch.setattr(driver, "open_device", fail)
    pretence = Pretence()
    compile_plan(flavour("tensorrt-10.3.0", pretence), request(tmp_path), lambda *_: None)
    assert pretence.calls["timings_used"] is None
    assert not (tmp_path / "cache").exists()


def test_a_listener_that_fails_ends_the_build(tmp_path: Path) -> None:
    pretence = Pretence()

    def report(fraction: float, phase: str) -> None:
        if phase == "timing":
            raise KeyboardInterrupt

    with pytest.raises(ExportError, match="could not build"):
        compile_plan(flavour("tensorrt-10.3.0", pretence), request(tmp_path), report)
    assert pretence.cancelled
    assert not (tmp_path / "a.plan").exists()


def test_failures(tmp_path: Path) -> None:
    def run(pretence: Pretence, **changes: Any) -> None:
        compile_plan(flavour("tensorrt-11.4.0", pretence), request(tmp_path, **changes), lambda *_: None)

    failing = Pretence(plan=None, errors=("IBuilder::build: Error Code 2: OutOfMemory (Requested size was 99 bytes.)",))
    refused(ExportError, "image_encoder|1 MiB of workspace|--memory-limit", lambda: run(failing))
    refused(ExportError, "image_encoder|cannot load|free memory", lambda: run(Pretence(loads=False)))
    wrong = (TensorSpec("images", "float32", ("views_in_chunk", 3, "14*patch_rows", "14*patch_columns")),)
    refused(ExportError, "images is float16|should be float32|export it again", lambda: run(Pretence(), inputs=wrong))
    wrong = (TensorSpec("features", "float16", ("views_in_chunk", "patch_rows", "patch_columns", 9)),)
    refused(ExportError, "features is float16|, 8]|9]", lambda: run(Pretence(), outputs=wrong))
    other = (TensorSpec("other", "float16", ("views_in_chunk",)),)
    refused(ExportError, "the graph has the outputs features and not other", lambda: run(Pretence(), outputs=other))


def test_a_request_survives_the_way_to_another_process(tmp_path: Path) -> None:
    asked = request(tmp_path, targets=("8.9",), memory_limit=5)
    assert read_json(PlanRequest, json.dumps(encode(asked)), MESSAGE) == asked
