"""Find and import the libraries of backends, and say how to get one that is missing."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..backend_table import BACKENDS_BY_NAME
from ..errors import BackendError, BackendUnavailableError, one_line

MEMORY_CURE = "use fewer or smaller views in one call, or give the process more memory"
_OUT_OF_MEMORY = ("bad_alloc", "bad allocation", "out of memory", "allocate memory", "unable to allocate")
"""What the libraries' errors say where memory ran out."""


def library_error(what: str, error: BaseException, reason: str, fix: str = "") -> BackendError:
    """Return the error for what a library on the host refused.

    Args:
        what: as ``"onnxruntime failed in the stage aggregator"``.
        error: of the library. reason: its cause in one line.
        fix: what to do, if it is not memory that is missing.
    """
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(sign in text for sign in _OUT_OF_MEMORY):
        return BackendError(f"{what}, because memory ran out ({reason}); {MEMORY_CURE}")
    return BackendError(f"{what}: {reason}{f'; {fix}' if fix else ''}")


def is_installed(name: str) -> bool:
    """Return whether the Python module of a backend is there; it is not imported."""
    return importlib.util.find_spec(BACKENDS_BY_NAME[name].module) is not None


def import_library(name: str) -> Any:
    """Return the Python module of a backend; its import tells nobody of it.

    Raises:
        BackendUnavailableError: it is not installed, or is there but broken: the remedies differ.
    """
    spec = BACKENDS_BY_NAME[name]
    try:
        with _unobserved():
            return importlib.import_module(spec.module)
    except Exception as error:  # a missing shared library raises OSError, RuntimeError or ImportError
        if isinstance(error, ModuleNotFoundError) and error.name == spec.module:
            problem = f"is not installed; run: {spec.install_command}"
        else:
            problem = (
                f"is installed but cannot be imported ({one_line(error)}); "
                f"reinstall it: {spec.install_command} --force-reinstall"
            )
        raise BackendUnavailableError(f"the backend {name} {problem}") from error


@contextmanager
def _unobserved() -> Iterator[None]:
    """Import libraries in this block without what tells their makers of it.

    ONNX Runtime 1.32 reports to Microsoft unless the environment forbids it before it is imported, and the import of
    OpenVINO to Google Analytics, where the package that does so, which it brings along, can be imported.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    absent = "openvino_telemetry" not in sys.modules
    if absent:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if absent:
            sys.modules.pop("openvino_telemetry", None)


def installed_version(name: str) -> str:
    """Return the version of a backend's library, without the build that some append; errors as import_library."""
    return str(import_library(name).__version__).partition("-")[0]


@contextmanager
def utf8_path(path: Path, library: str) -> Iterator[str]:
    """Yield a path of the file ``path`` for a library that takes UTF-8 alone.

    A name that is not UTF-8, or that Python could not decode in the locale that it runs in, is reached through an open
    descriptor of its folder. Files beside it are reached the same way.

    Raises:
        BackendError: this system has no such paths, or the folder cannot be opened.
    """
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        pass
    else:
        yield str(path)
        return
    problem = f"{library} cannot open files in {str(path.parent)!a}, whose name is not UTF-8"
    try:
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError as error:
        raise BackendError(f"{problem}, and it cannot be reached otherwise ({error.strerror}); rename it") from error
    try:
        place = Path("/proc/self/fd") / str(folder) / path.name
        if not place.exists():
            raise BackendError(f"{problem}, and this system has no other way to it; rename it")
        yield str(place)
    finally:
        os.close(folder)
