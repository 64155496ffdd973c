"""Backend names, which of them are installed, and how ``auto`` chooses."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection

from ..errors import BackendUnavailableError, InputError
from .base import Backend
from .onnxruntime import OnnxRuntimeBackend
from .openvino import OpenVinoBackend

_BACKENDS: dict[str, Callable[[int | None], Backend]] = {
    "openvino": OpenVinoBackend,
    "onnxruntime": OnnxRuntimeBackend,
}
"""Fastest first: ``auto`` takes the first that is installed and that the bundle is for."""


def available_backends() -> list[str]:
    """Names of the backends whose package is installed, fastest first."""
    return [name for name in _BACKENDS if importlib.util.find_spec(name) is not None]


def make_backend(name: str, supported: Collection[str], threads: int | None = None) -> Backend:
    """Open a backend.

    Args:
        name: a backend, or ``auto``.
        supported: the backends that the bundle is for; ``auto`` chooses among them.
        threads: processor threads, by default all that this process may use.

    Raises:
        InputError: the name is unknown.
        BackendUnavailableError: its package is not installed.
    """
    if name == "auto":
        usable = [candidate for candidate in available_backends() if candidate in supported]
        if not usable:
            raise BackendUnavailableError(
                f"none of the backends of this bundle ({', '.join(sorted(supported))}) is installed; "
                f"run: pip install 'mapengine[cpu]'"
            )
        name = usable[0]
    if name not in _BACKENDS:
        raise InputError(f"unknown backend {name!r}; use auto, {' or '.join(_BACKENDS)}")
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}; give a positive number or leave it out")
    return _BACKENDS[name](threads)
