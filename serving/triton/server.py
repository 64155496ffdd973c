"""Starting a Triton server without a container: the one that the package ``nvidia-pytriton`` carries."""

from __future__ import annotations

import importlib.util
import os
import py_compile
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
import psutil

from mapengine.runtime.errors import BackendUnavailableError, InputError

from .watch import STUB, Watch

POLL_OPTIONS = ("--model-control-mode=poll", "--repository-poll-secs=2")
"""What is written into a repository is loaded, unless a mode is chosen."""
_LOOK_SECONDS = 0.5
_END_SECONDS, _MORE_SECONDS = 30, 10
"""What a server takes to end by default, and what it gets beyond that."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class ServerFiles:
    """Where the server is.

    Attributes:
        program: ``tritonserver``.
        backends: folder of its backends; None where the program knows.
        stub: what runs models, for this version of Python; None where it is among the backends.
        libraries: folders that the dynamic linker has to search.
    """

    program: Path
    backends: Path | None = None
    stub: Path | None = None
    libraries: tuple[Path, ...] = ()


def find_server() -> ServerFiles:
    """Return the server of this environment: that of ``nvidia-pytriton``, else one on the ``PATH``.

    Raises:
        BackendUnavailableError: there is none, or it cannot run models of this Python; says what to install.
    """
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        found = shutil.which("tritonserver")
        if found is None:
            raise BackendUnavailableError(
                "there is no Triton server here; use NVIDIA's container, or on Linux with Python 3.10 to 3.12 run: "
                "pip install 'mapengine[triton-server]'"
            )
        return ServerFiles(Path(found))
    package = Path(spec.origin).parent
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    root = package / "tritonserver"
    stub = root / "python_backend_stubs" / version / STUB
    if not stub.is_file():
        known = ", ".join(sorted(path.name for path in stub.parent.parent.glob("*")))
        raise BackendUnavailableError(
            f"nvidia-pytriton has nothing that runs models of Python {version}, only of {known}; use one of those"
        )
    if int(np.__version__.partition(".")[0]) >= 2:
        raise BackendUnavailableError(
            f"with NumPy {np.__version__} the server of nvidia-pytriton hands empty tensors to models; run: "
            "pip install 'numpy<2' in this environment"
        )
    libraries = [package.parent / "nvidia_pytriton.libs"]
    # Of this Python: the stub would else load that of the system, with other modules, or none.
    shared = sysconfig.get_config_var("LIBDIR")
    if shared and sysconfig.get_config_var("Py_ENABLE_SHARED"):
        libraries.append(Path(shared))
    return ServerFiles(root / "bin" / "tritonserver", root / "backends", stub, tuple(libraries))


@contextmanager
def server_command(
    repository: str | os.PathLike[str], options: Sequence[str] = (), files: ServerFiles | None = None
) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Yield the command and the environment that start a server; they need a folder that goes with the block.

    Args:
        repository: what ``mapengine triton`` wrote.
        options: further ones of ``tritonserver``.
        files: of the server; None for those of this environment.

    Raises:
        InputError: no such repository.
        BackendUnavailableError: as :func:`find_server`.
    """
    if not Path(repository).is_dir():
        raise InputError(f"{repository}: there is no such folder; give the one that `mapengine triton` wrote")
    found = files or find_server()
    mode = () if chooses_mode(options) else POLL_OPTIONS
    command = [str(found.program), f"--model-repository={os.path.abspath(repository)}", *mode, *options]
    environment = dict(os.environ)
    # The stub takes the modules of the Python that it finds first.
    environment["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), environment.get("PATH", os.defpath)])
    paths = [*map(str, found.libraries), *filter(None, [environment.get("LD_LIBRARY_PATH")])]
    if paths:
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(paths)
    with tempfile.TemporaryDirectory(prefix="mapengine-triton-") as folder:
        if found.backends is not None and found.stub is not None:
            python = Path(folder) / "python"
            python.mkdir()
            for path in (*(found.backends / "python").iterdir(), found.stub):
                (python / path.name).symlink_to(path)
            command.append(f"--backend-directory={folder}")
        yield command, environment


def chooses_mode(options: Sequence[str]) -> bool:
    """Return whether options of ``tritonserver`` say when models are loaded."""
    return any(option.startswith("--model-control-mode") for option in options)


def serve(repository: str | os.PathLike[str], options: Sequence[str] = ()) -> int:
    """Run a server until it ends or this process is told to, and return its exit code.

    Models that lose a process are loaded again (see :mod:`.watch`), unless ``options`` choose when models are loaded.
    Where the repository cannot be written to, the server is started again instead. A server that does not end when it
    is told to is killed.

    Args:
        repository: what ``mapengine triton`` wrote.
        options: further ones of ``tritonserver``.

    Raises:
        InputError, BackendUnavailableError: as :func:`server_command`.
    """
    told: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        told.append(number)
        if process is not None:
            process.send_signal(number)

    with server_command(repository, options) as (command, environment):
        compile_models(Path(repository))
        before = {number: signal.signal(number, pass_on) for number in _SIGNALS}
        try:
            while True:
                process = subprocess.Popen(command, env=environment)
                if told:  # before there was a process to pass it on to
                    process.send_signal(told[-1])
                if _runs_to_its_end(process, told, options):
                    return process.returncode
        finally:
            if process is not None and process.poll() is None:
                process.kill()
            for number, handler in before.items():
                signal.signal(number, handler)


def compile_models(repository: Path) -> None:
    """Compile the programs of all models, as Python would when they are first loaded: later this would be a change of
    the model, which would be loaded again."""
    for program in repository.glob("*/*/model.py"):
        with suppress(OSError, py_compile.PyCompileError):  # loading it says so
            py_compile.compile(
                str(program), doraise=True, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH
            )


def _runs_to_its_end(process: subprocess.Popen[bytes], told: list[int], options: Sequence[str]) -> bool:
    """Wait for a server; False if it was stopped to be started again."""
    watch = None if chooses_mode(options) else Watch(psutil.Process(process.pid), _report)
    while not told:
        try:
            process.wait(_LOOK_SECONDS)
            return True
        except subprocess.TimeoutExpired:
            if watch is not None and not told and not watch.look():
                break
    if not told:
        _report("the server is started again")
        process.terminate()
    patience = next(
        (int(o.split("=")[1]) for o in options if re.fullmatch(r"--exit-timeout-secs=\d+", o)), _END_SECONDS
    )
    try:
        process.wait(patience + _MORE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return bool(told)


def _report(text: str) -> None:
    print(f"mapengine: {text}", file=sys.stderr, flush=True)
