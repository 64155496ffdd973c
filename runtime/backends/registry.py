"""Backend names, which of them are installed, and how ``auto`` chooses."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection
from functools import partial
from numbers import Integral

from ..errors import BackendUnavailableError, InputError
from .contract import Backend
from .cuda import driver
from .onnxruntime import OnnxRuntimeBackend
from .onnxruntime_cuda import OnnxRuntimeCudaBackend, has_cuda
from .openvino import OpenVinoBackend
from .tensorrt import flavour
from .tensorrt.backend import TensorRtBackend

_HOST: dict[str, Callable[[int | None], Backend]] = {"openvino": OpenVinoBackend, "onnxruntime": OnnxRuntimeBackend}
_DEVICE: dict[str, Callable[[], Backend]] = {
    **{name: partial(TensorRtBackend, name) for name in flavour.NAMES},
    OnnxRuntimeCudaBackend.name: OnnxRuntimeCudaBackend,
}

NAMES = (*_DEVICE, *_HOST)
"""Fastest first: ``auto`` takes the first that is usable here and that the bundle is for."""

_MOST_THREADS = 1024
"""More than any processor has; the libraries fail to allocate, or worse, for a number far beyond it."""


def available_backends() -> list[str]:
    """Names of the backends that are usable here, fastest first: the package is installed, and its device is there."""
    devices: list[str] = []
    if driver.driver_problem() is None:
        devices += [name for name in flavour.NAMES if flavour.is_installed(name)]
        if has_cuda():
            devices.append(OnnxRuntimeCudaBackend.name)
    return [*devices, *(name for name in _HOST if importlib.util.find_spec(name) is not None)]


def make_backend(name: str, supported: Collection[str], threads: int | None = None) -> Backend:
    """Open a backend.

    Args:
        name: a backend, or ``auto``.
        supported: the backends that the bundle is for; ``auto`` chooses among them.
        threads: processor threads of a CPU backend, by default all that this process may use.

    Raises:
        InputError: the name is unknown, or ``threads`` is no number of threads.
        BackendUnavailableError: its package is not installed, or its device is not there.
    """
    if name == "auto":
        usable = [candidate for candidate in available_backends() if candidate in supported]
        # A plan is for one library: opening that says what is missing.
        name = usable[0] if usable else next((known for known in _DEVICE if known in supported), "")
        if not name:
            raise BackendUnavailableError(
                f"none of the backends of this bundle ({', '.join(sorted(supported))}) is installed; "
                f"run: pip install 'mapengine[cpu]'"
            )
    if not isinstance(name, str) or name not in NAMES:
        raise InputError(f"unknown backend {name!r}; use auto, {', '.join(NAMES[:-1])} or {NAMES[-1]}")
    if threads is not None:
        is_count = isinstance(threads, Integral) and not isinstance(threads, bool)
        if not is_count or not 1 <= threads <= _MOST_THREADS:
            raise InputError(f"threads is {threads!r}; give a whole number from 1 to {_MOST_THREADS} or leave it out")
        threads = int(threads)
    return _DEVICE[name]() if name in _DEVICE else _HOST[name](threads)
