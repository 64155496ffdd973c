"""Which library there is, and what is missing to use it."""

from __future__ import annotations

import ctypes
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mapengine.runtime.backends.cuda.driver import driver_problem
from mapengine.runtime.backends.libraries import is_installed
from mapengine.runtime.backends.tensorrt.flavour import load_flavour
from mapengine.runtime.backends.tensorrt.plans import make_logger
from mapengine.runtime.errors import BackendUnavailableError, InputError


def _driver(init: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def set_count(pointer: Any) -> int:
        pointer._obj.value = count
        return 0

    library = SimpleNamespace(cuInit=lambda flags: init, cuDeviceGetCount=set_count)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    driver_problem.cache_clear()


@pytest.fixture(autouse=True)
def _uncached() -> Any:
    yield
    driver_problem.cache_clear()


@pytest.mark.parametrize(
    ("init", "count", "problem"),
    [
        (0, 1, None),
        (0, 0, "the NVIDIA driver finds no GPU"),
        (100, 0, "the NVIDIA driver finds no GPU"),
        (803, 1, "the NVIDIA driver cannot be used (CUDA error 803)"),
    ],
)
def test_what_is_missing(init: int, count: int, problem: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    _driver(init, count, monkeypatch)
    assert driver_problem() == problem


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    driver_problem.cache_clear()
    problem = driver_problem()
    assert problem is not None
    assert problem.startswith("this machine has no NVIDIA driver (")


def test_unknown_flavour() -> None:
    with pytest.raises(InputError, match=r"unknown TensorRT flavour 'cuda'; use tensorrt or tensorrt-rtx"):
        load_flavour("cuda")


@pytest.mark.parametrize(("name", "extra"), [("tensorrt", "tensorrt"), ("tensorrt-rtx", "rtx")])
def test_missing_and_broken_packages(name: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = name.replace("-", "_")
    monkeypatch.delitem(sys.modules, module, raising=False)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, module, None)
        with pytest.raises(
            BackendUnavailableError, match=rf"{name} is not installed; run: pip install .mapengine\[{extra}\]"
        ):
            load_flavour(name)
    (tmp_path / f"{module}.py").write_text("raise OSError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    assert is_installed(name)
    with pytest.raises(BackendUnavailableError, match=r"cannot be imported \(libnvinfer.so.10.*--force-reinstall"):
        load_flavour(name)


def test_tensorrt_rtx_itself_refuses_what_is_no_plan(caplog: pytest.LogCaptureFixture) -> None:
    """The real library reads a plan's header without a GPU, and its words reach Python's logging."""
    library = load_flavour("tensorrt-rtx")
    assert library.is_rtx
    assert library.captures_graphs
    with caplog.at_level(logging.DEBUG, "mapengine"):
        runtime = library.library.Runtime(make_logger(library))
        problem = library.plan_problem(runtime, b"no plan at all" * 10)
    assert problem is not None
    assert "malformed engine" in problem
    assert any("tensorrt-rtx: " in record.message for record in caplog.records)
