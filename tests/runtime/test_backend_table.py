"""The table of backends, and everything that repeats a part of it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mapengine.export import build_engine, compile_engine
from mapengine.runtime import Engine, Manifest
from mapengine.runtime.backend_table import (
    BACKENDS,
    BACKENDS_BY_FORMAT,
    CPU_BACKENDS,
    GPU_BACKENDS,
    NAMES,
    PRECISIONS,
    SMALL_PARAMETERS,
    TENSORRT_BACKENDS,
    BackendSpec,
    fastest_first,
)
from mapengine.runtime.backends.onnxruntime import OnnxRuntimeBackend
from mapengine.runtime.backends.onnxruntime_cuda import OnnxRuntimeCudaBackend
from mapengine.runtime.backends.openvino import OpenVinoBackend
from mapengine.runtime.backends.registry import available_backends, make_backend
from mapengine.runtime.errors import BackendUnavailableError, InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]


def test_names_and_groups() -> None:
    assert len(set(NAMES)) == len(NAMES) == 5
    assert {*CPU_BACKENDS, *GPU_BACKENDS} == set(NAMES)
    assert CPU_BACKENDS == BACKENDS_BY_FORMAT["onnx"] == (OnnxRuntimeBackend.name, OpenVinoBackend.name)
    assert BACKENDS_BY_FORMAT["onnx-cuda"] == (OnnxRuntimeCudaBackend.name,)
    assert BACKENDS_BY_FORMAT["plan"] == TENSORRT_BACKENDS == ("tensorrt", "tensorrt-rtx")
    for spec in BACKENDS:
        assert set(spec.precisions) <= set(PRECISIONS)
        assert spec.precisions == tuple(precision for precision in PRECISIONS if precision in spec.precisions)


def test_onnx_runtime_comes_before_openvino_for_small_networks_in_float32() -> None:
    on_processors = {"onnxruntime", "openvino"}
    assert fastest_first(on_processors, "fp32", SMALL_PARAMETERS - 1) == ["onnxruntime", "openvino"]
    assert fastest_first(on_processors, "fp32", SMALL_PARAMETERS) == ["openvino", "onnxruntime"]
    assert fastest_first(on_processors, "int8", 1) == ["openvino", "onnxruntime"]
    for parameters in (1, 10**9):
        assert fastest_first(["openvino"], "fp32", parameters) == ["openvino"]
        assert fastest_first(NAMES, "fp32", parameters)[:3] == ["tensorrt-rtx", "tensorrt", "onnxruntime-cuda"]
        assert sorted(fastest_first(NAMES, "fp32", parameters)) == sorted(NAMES)


@pytest.mark.parametrize("spec", BACKENDS, ids=NAMES)
def test_the_extra_installs_the_package_at_its_oldest_version(spec: BackendSpec) -> None:
    (line,) = [line for line in EXTRAS[spec.extra] if re.match(rf"{spec.package}\b(?!-)", line)]
    assert f">={spec.minimum_version}" in line.partition(";")[0]
    assert spec.install_command == f"pip install 'mapengine[{spec.extra}]'"


@pytest.mark.parametrize("spec", BACKENDS, ids=NAMES)
def test_every_backend_can_be_opened_or_says_how(spec: BackendSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    if spec.name in available_backends():
        assert make_backend(spec.name, [spec.name]).name == spec.name
    monkeypatch.setattr("mapengine.runtime.backends.onnxruntime_cuda.driver_problem", lambda: None)
    monkeypatch.setattr("mapengine.runtime.backends.tensorrt.backend.driver_problem", lambda: None)
    monkeypatch.setitem(sys.modules, spec.module, None)
    assert spec.name not in available_backends()
    with pytest.raises(BackendUnavailableError, match=f"{spec.name} is not installed; run: ") as caught:
        make_backend(spec.name, [spec.name])
    assert str(caught.value).endswith(spec.install_command)


def test_auto_names_the_extra_of_the_bundles_own_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mapengine.runtime.backends.registry.available_backends", list)
    with pytest.raises(BackendUnavailableError, match=r"\(openvino\) is installed; run: .*mapengine\[openvino\]"):
        make_backend("auto", ["openvino"])


def test_an_unknown_backend_is_told_all_names() -> None:
    with pytest.raises(InputError) as caught:
        make_backend("abacus", NAMES)
    assert all(name in str(caught.value) for name in NAMES)


@pytest.mark.slow
def test_the_table_imports_no_library() -> None:
    modules = {spec.module for spec in BACKENDS} | {"cuda"}
    check = f"import sys, mapengine.runtime.backend_table\nprint(sorted({modules!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("function", "names"),
    [(Engine.load, ("auto", *NAMES)), (build_engine, NAMES), (compile_engine, GPU_BACKENDS)],
    ids=["load", "build", "compile"],
)
def test_docstrings_name_what_they_take(function: Any, names: tuple[str, ...]) -> None:
    assert function.__doc__ is not None
    (text,) = re.findall(r"^ +backend: (.*?)^ +\w+: ", function.__doc__, re.M | re.S)
    assert set(re.findall(r'``"([\w-]+)"``', text)) == set(names)


def test_the_docstring_of_a_manifest_names_the_formats() -> None:
    assert Manifest.__doc__ is not None
    (text,) = re.findall(r"^ +format: (.*?)^ +\w+: ", Manifest.__doc__, re.M | re.S)
    assert set(re.findall(r"``([\w-]+)``", text)) >= set(BACKENDS_BY_FORMAT)


def test_the_table_of_the_readme() -> None:
    """Rows are the backends, and a precision that is not built is a plain "no"."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| *backend *\|.*\n(?:\|.*\n)+", text, re.M)
    head, _, *lines = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table.splitlines()]
    rows = {line[0].split("`")[1]: dict(zip(head, line, strict=True)) for line in lines}
    assert set(rows) == set(NAMES)
    for spec in BACKENDS:
        assert rows[spec.name]["extra"] == f"`{spec.extra}`"
        for precision in PRECISIONS:
            assert (rows[spec.name][precision.upper()] != "no") == (precision in spec.precisions), (
                spec.name,
                precision,
            )
