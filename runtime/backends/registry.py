"""Backend names, which of them are installed, and how ``auto`` chooses."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection
from numbers import Integral

from ..errors import BackendUnavailableError, InputError
from .base import Backend
from .onnxruntime import OnnxRuntimeBackend
from .openvino import OpenVinoBackend

_BACKENDS: dict[str, Callable[[int | None], Backend]] = {
    "openvino": OpenVinoBackend,
    "onnxruntime": OnnxRuntimeBackend,
}
"""Fastest first: ``auto`` takes the first that is installed and that the bundle is for."""

_NOT_YET = ("tensorrt", "tensorrt-rtx")

_MOST_THREADS = 1024
"""More than any processor has; the libraries fail to allocate, or worse, for a number far beyond it."""


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
        InputError: the name is unknown, or ``threads`` is no number of threads.
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
    if name in _NOT_YET:
        raise InputError(f"this version of mapengine does not run {name} yet; use auto, {' or '.join(_BACKENDS)}")
    if not isinstance(name, str) or name not in _BACKENDS:
        raise InputError(f"unknown backend {name!r}; use auto, {' or '.join(_BACKENDS)}")
    if threads is not None:
        is_count = isinstance(threads, Integral) and not isinstance(threads, bool)
        if not is_count or not 1 <= threads <= _MOST_THREADS:
            raise InputError(f"threads is {threads!r}; give a whole number from 1 to {_MOST_THREADS} or leave it out")
        threads = int(threads)
    return _BACKENDS[name](threads)
