"""Find and import the libraries of backends, and say how to get one that is missing."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from ..backend_table import BACKENDS_BY_NAME
from ..errors import BackendUnavailableError, one_line


def is_installed(name: str) -> bool:
    """Return whether the Python module of a backend is there; it is not imported."""
    return importlib.util.find_spec(BACKENDS_BY_NAME[name].module) is not None


def import_library(name: str) -> Any:
    """Return the Python module of a backend.

    Raises:
        BackendUnavailableError: it is not installed, or is there but broken: the remedies differ.
    """
    spec = BACKENDS_BY_NAME[name]
    try:
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


def installed_version(name: str) -> str:
    """Return the version of a backend's library, without the build that some append; errors as import_library."""
    return str(import_library(name).__version__).partition("-")[0]
