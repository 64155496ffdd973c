"""Processes that this one starts: none runs what lies in the working folder, and each ends as it should."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from mapengine.kernels.processes import compile_all
from mapengine.kernels.variants import variants
from mapengine.runtime.bundle.bundle_files import BundleFiles
from mapengine.runtime.bundle.store import Bundle
from mapengine.runtime.errors import BackendError, InputError, MapEngineError
from mapengine.runtime.inputs.sources import read_views
from mapengine.runtime.profiling.memory import probe
from mapengine.runtime.system.children import Worker, WorkerPool, child_command, child_environment

ROOT = Path(__file__).resolve().parents[3]
PLANTED = ("json", "multiprocessing", "numpy", "pickle", "runpy", "sitecustomize", "subprocess", "triton", "PIL")


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with modules that say when they are run."""
    folder = tmp_path / "downloads"
    (folder / "mapengine").mkdir(parents=True)
    for path in (*(folder / f"{name}.py" for name in PLANTED), folder / "mapengine" / "__init__.py"):
        path.write_text(f"open({str(tmp_path / 'was-run')!r}, 'a').write(__name__ + ' ')\n", encoding="utf-8")
    monkeypatch.chdir(folder)
    # As in a shell whose PYTHONPATH ends with a colon, and a program that was started with `python -m`.
    monkeypatch.setenv("PYTHONPATH", os.pathsep)
    monkeypatch.setenv("PYTHONINSPECT", "1")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.syspath_prepend("")
    return tmp_path / "was-run"


def service_of(function: Callable[..., object]) -> None:
    with WorkerPool(1) as pool:
        pool.submit(function).result()


def memory_child() -> None:
    nowhere = Path("nowhere")
    manifest: Any = None  # the child opens the bundle for itself
    gone = Bundle(nowhere, manifest, "0" * 64, BundleFiles(nowhere))
    with pytest.raises(BackendError, match="nowhere"):
        probe(gone, "onnxruntime", 1, 28, 28)


def plan_compiler() -> None:
    command = child_command("mapengine.export.tensorrt.worker")
    done = subprocess.run(command, input="no request\n", env=child_environment(), capture_output=True, text=True)
    assert "not valid JSON" in done.stderr


def kernel_compiler() -> None:
    job = next(variant for variant in variants() if variant.name.startswith("int8-fp8")), 80  # no chip for it: refused
    ((_, result),) = compile_all([job], 1)
    assert isinstance(result, Exception)


@pytest.mark.parametrize(
    "start",
    [
        partial(service_of, math.pi.as_integer_ratio),
        memory_child,
        plan_compiler,
        pytest.param(kernel_compiler, marks=pytest.mark.slow),
    ],
)
def test_no_child_runs_what_lies_in_the_working_folder(start: Callable[[], None], trap: Path) -> None:
    start()
    assert not trap.exists(), trap.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("module", ["mapengine", "mapengine.cli"])
def test_the_program_runs_nothing_of_the_working_folder_as_a_module_either(
    module: str, trap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH")
    monkeypatch.delenv("PYTHONINSPECT")
    # Python itself is not ours: it looks for these two there before it runs anything of a package.
    (Path("mapengine") / "__init__.py").unlink()
    Path("mapengine").rmdir()
    Path("runpy.py").unlink()
    done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True)
    assert done.stdout.startswith("mapengine "), done.stderr
    assert not trap.exists(), trap.read_text()


def test_every_process_of_python_is_started_where_the_working_folder_is_left_out() -> None:
    starts = re.compile(r"sys\.executable|multiprocessing\.get_context|get_context\(|ProcessPoolExecutor|os\.fork\(")
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in (
            "benchmarks",
            "calibration",
            "cli",
            "docs",
            "examples",
            "export",
            "kernels",
            "package",
            "runtime",
        )
        for path in (ROOT / folder).rglob("*.py")
        if starts.search(path.read_text(encoding="utf-8"))
    }
    assert found == {"kernels/processes.py", "runtime/system/children.py"}


@pytest.mark.slow
def test_a_child_finds_what_this_process_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "of_the_caller.py").write_text("def answer():\n    print('to nobody')\n    return 42\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    from of_the_caller import answer  # type: ignore[import-not-found]

    with WorkerPool(1) as pool:
        assert pool.submit(answer).result() == 42


@pytest.mark.slow
def test_functions_of_the_program_itself_are_found(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from mapengine.runtime.system.children import WorkerPool\n"
        "def double(x):\n    return 2 * x\n"
        "if __name__ == '__main__':\n"
        "    with WorkerPool(2) as pool:\n"
        "        print([job.result() for job in [pool.submit(double, x) for x in range(4)]])\n"
    )
    done = subprocess.run([sys.executable, program], capture_output=True, text=True)
    assert done.stdout == "[0, 2, 4, 6]\n", done.stderr


@pytest.mark.slow
def test_what_a_child_raises_keeps_its_kind_and_a_crash_costs_one_call() -> None:
    with WorkerPool(1) as pool:
        with pytest.raises(InputError, match="there are no images"):
            pool.submit(read_views, []).result()
        with pytest.raises(MapEngineError, match="ZeroDivisionError"):
            pool.submit(divmod, 1, 0).result()
        with pytest.raises(BackendError, match="exit code 7"):
            pool.submit(os._exit, 7).result()
        assert pool.submit(divmod, 7, 2).result() == (3, 1)


@pytest.mark.slow
def test_a_pool_ends_at_once_and_with_its_processes() -> None:
    with WorkerPool(1) as pool:
        process = pool.submit(os.getpid).result()
        pool.submit(time.sleep, 60)
        start = time.monotonic()
    assert time.monotonic() - start < 10
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


@pytest.mark.slow
def test_a_worker_ends_with_its_parent(tmp_path: Path) -> None:
    script = (
        "import os, time\nfrom mapengine.runtime.system.children import WorkerPool\n"
        "pool = WorkerPool(1)\nprint(pool.submit(os.getpid).result(), flush=True)\n"
        "pool.submit(time.sleep, 60)\ntime.sleep(0.3)\nos._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    process, deadline = int(done.stdout), time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    pytest.fail("the worker still runs")


@pytest.mark.slow
def test_a_load_that_fails_names_the_worker() -> None:
    with pytest.raises(MapEngineError, match="first: ZeroDivisionError"):
        Worker.start("first", partial(divmod, 1, 0))  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_worker_that_is_closed_ends_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    worker = Worker.start("first", partial(Mock, return_value=42, facts={}))
    assert worker.call() == 42
    worker.close()
    assert not worker.is_alive
    assert capfd.readouterr().err == ""
