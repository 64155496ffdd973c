"""Backend names, which of them are installed, and how ``auto`` chooses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from numbers import Integral

from ..backend_table import BACKENDS, BACKENDS_BY_NAME, GPU_BACKENDS, NAMES, TENSORRT_BACKENDS, BackendSpec
from ..errors import BackendUnavailableError, InputError
from ..system.machine import usable_processors
from .contract import Backend
from .cuda import driver
from .libraries import is_installed
from .onnxruntime import OnnxRuntimeBackend
from .onnxruntime_cuda import OnnxRuntimeCudaBackend, has_cuda
from .openvino import OpenVinoBackend
from .tensorrt.backend import TensorRtBackend

_HOST: dict[str, Callable[[int | None], Backend]] = {
    OnnxRuntimeBackend.name: OnnxRuntimeBackend,
    OpenVinoBackend.name: OpenVinoBackend,
}
_DEVICE: dict[str, Callable[[], Backend]] = {
    OnnxRuntimeCudaBackend.name: OnnxRuntimeCudaBackend,
    **{name: partial(TensorRtBackend, name) for name in TENSORRT_BACKENDS},
}

_ALWAYS_THREADS = 8
"""So many threads are taken on fewer processors too; they cost little."""


def available_backends() -> list[str]:
    """Return the backends that are usable here, fastest first: the package is installed, and its device is there."""
    return [spec.name for spec in reversed(BACKENDS) if _is_usable(spec)]


def _is_usable(spec: BackendSpec) -> bool:
    # The driver comes first: without one, ONNX Runtime is not even imported.
    if spec.on_gpu and driver.driver_problem() is not None:
        return False
    return is_installed(spec.name) and (spec.provider is None or has_cuda())


def make_backend(name: str, supported: Sequence[str], threads: int | None = None) -> Backend:
    """Open a backend.

    Args:
        name: a backend, or ``auto``.
        supported: the backends that the bundle is for, fastest first; ``auto`` takes the first that is usable here.
        threads: processor threads of a CPU backend, by default all that this process may use.

    Raises:
        InputError: the name is unknown, or ``threads`` is no number of threads.
        BackendUnavailableError: its package is not installed, or its device is not there.
    """
    if name == "auto":
        available = available_backends()
        usable = [candidate for candidate in supported if candidate in available]
        # A plan is for one library: opening that says what is missing.
        name = usable[0] if usable else next((known for known in GPU_BACKENDS if known in supported), "")
        if not name:
            raise BackendUnavailableError(
                f"none of the backends of this bundle ({', '.join(sorted(supported))}) is installed; "
                f"run: {next(BACKENDS_BY_NAME[known] for known in NAMES if known in supported).install_command}"
            )
    if not isinstance(name, str) or name not in NAMES:
        raise InputError(f"unknown backend {name!r}; use auto, {', '.join(NAMES[:-1])} or {NAMES[-1]}")
    if threads is not None:
        is_count = isinstance(threads, Integral) and not isinstance(threads, bool)
        # More than processors wait for each other: with a thousand on two, a call took minutes.
        most = max(usable_processors(), _ALWAYS_THREADS)
        if not is_count or not 1 <= threads <= most:
            raise InputError(
                f"threads is {threads!r}, and this process may use {usable_processors()} processors; give a whole "
                f"number from 1 to {most} or leave it out"
            )
        threads = int(threads)
    return _DEVICE[name]() if name in _DEVICE else _HOST[name](threads)
