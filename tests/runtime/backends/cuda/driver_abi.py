"""Puts a :class:`StandInDriver` underneath the real ``cuda.bindings``, for the life of the process.

``cuda.bindings`` asks its driver library for the address of every function by name, once. A few lines of C
(``driver_shim.c``) answer with the functions made here, which call whichever driver is set at that time. A function
that the stand-in lacks is not found, as with a driver that is too old.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from .stand_in_driver import StandInDriver
from .stand_in_status import DEINITIALIZED, NAMES, UNKNOWN, Fault

_INT, _UINT, _SIZE, _HANDLE = ctypes.c_int, ctypes.c_uint, ctypes.c_size_t, ctypes.c_void_p
_ADDRESS, _FLAGS = ctypes.c_uint64, ctypes.c_ulonglong

SIGNATURES: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    # Types of the results, which the C API returns through pointers, and of the arguments behind those pointers.
    "cuInit": ((), (_UINT,)),
    "cuDriverGetVersion": ((_INT,), ()),
    "cuDeviceGetCount": ((_INT,), ()),
    "cuDeviceGet": ((_INT,), (_INT,)),
    "cuDeviceGetAttribute": ((_INT,), (_INT, _INT)),
    "cuDevicePrimaryCtxRetain": ((_HANDLE,), (_INT,)),
    "cuDevicePrimaryCtxRelease": ((), (_INT,)),
    "cuCtxSetCurrent": ((), (_HANDLE,)),
    "cuCtxPushCurrent": ((), (_HANDLE,)),
    "cuCtxPopCurrent": ((_HANDLE,), ()),
    "cuMemGetInfo": ((_SIZE, _SIZE), ()),
    "cuMemAlloc": ((_ADDRESS,), (_SIZE,)),
    "cuMemFree": ((), (_ADDRESS,)),
    "cuMemHostAlloc": ((_HANDLE,), (_SIZE, _UINT)),
    "cuMemFreeHost": ((), (_HANDLE,)),
    "cuMemcpyHtoDAsync": ((), (_ADDRESS, _HANDLE, _SIZE, _HANDLE)),
    "cuMemcpyDtoHAsync": ((), (_HANDLE, _ADDRESS, _SIZE, _HANDLE)),
    "cuMemcpyDtoDAsync": ((), (_ADDRESS, _ADDRESS, _SIZE, _HANDLE)),
    "cuStreamCreate": ((_HANDLE,), (_UINT,)),
    "cuStreamDestroy": ((), (_HANDLE,)),
    "cuStreamSynchronize": ((), (_HANDLE,)),
    "cuStreamWaitEvent": ((), (_HANDLE, _HANDLE, _UINT)),
    "cuStreamBeginCapture": ((), (_HANDLE, _INT)),
    "cuGraphInstantiateWithFlags": ((_HANDLE,), (_HANDLE, _FLAGS)),
    "cuGraphLaunch": ((), (_HANDLE, _HANDLE)),
    "cuGraphDestroy": ((), (_HANDLE,)),
    "cuGraphExecDestroy": ((), (_HANDLE,)),
    "cuEventCreate": ((_HANDLE,), (_UINT,)),
    "cuEventRecord": ((), (_HANDLE, _HANDLE)),
    "cuEventSynchronize": ((), (_HANDLE,)),
    "cuEventElapsedTime": ((ctypes.c_float,), (_HANDLE, _HANDLE)),
    "cuEventDestroy": ((), (_HANDLE,)),
    "cuModuleLoadData": ((_HANDLE,), (_HANDLE,)),
    "cuModuleUnload": ((), (_HANDLE,)),
    "cuModuleGetFunction": ((_HANDLE,), (_HANDLE, ctypes.c_char_p)),
    "cuFuncSetAttribute": ((), (_HANDLE, _INT, _INT)),
    "cuLaunchKernel": ((), (_HANDLE, *[_UINT] * 7, _HANDLE, _HANDLE, _HANDLE)),
}

_driver: StandInDriver | None = None
_alive: list[Any] = []
"""What C code points at."""


def set_driver(driver: StandInDriver | None) -> None:
    """Answer with ``driver`` from now on."""
    global _driver
    _driver = driver


def install(folder: Path) -> None:
    """Make ``cuda.bindings`` load the stand-in; the first time in a process compiles the shim into ``folder``."""
    if _alive:
        return
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler is not None, "the tests of the TensorRT backend need a C compiler; install gcc"
    source, library = Path(__file__).with_name("driver_shim.c"), folder / "driver_shim.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    shim = ctypes.CDLL(str(library))
    functions = {name: _function(name, *signature) for name, signature in SIGNATURES.items()}
    functions |= {"cuGetErrorName": _error_name(), "cuDeviceGetName": _device_name(), "cuStreamEndCapture": _end()}
    functions["cuGetProcAddress"] = shim.cuGetProcAddress_v2

    @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)
    def lookup(name: bytes) -> int | None:
        function = functions.get(name.decode())
        return None if function is None else ctypes.cast(function, ctypes.c_void_p).value

    shim.set_lookup(lookup)
    _alive.extend([shim, functions, lookup])

    from cuda.bindings import driver
    from cuda.bindings._internal import driver as loader

    # cuda.bindings loads its library at its first call, and keeps it. The patch goes away at once, so that nothing else
    # in the process takes the shim for a driver.
    found = SimpleNamespace(_handle_uint=shim._handle, abs_path=str(library))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "load_nvidia_dynamic_lib", lambda name: found)
        set_driver(first := StandInDriver())
        driver.cuInit(0)
        set_driver(None)
    assert first.calls == {"cuInit": 1}, "another driver was loaded in this process before"


def _call(name: str, arguments: tuple[Any, ...]) -> Any:
    if _driver is None:
        raise Fault(DEINITIALIZED)  # as when the process ends
    try:
        return _driver.call(name, tuple(argument or 0 for argument in arguments))
    except Fault:
        raise
    except Exception:
        _driver.mistake(f"{name}: {traceback.format_exc()}")
        raise Fault(UNKNOWN) from None


def _function(name: str, results: tuple[Any, ...], arguments: tuple[Any, ...]) -> Any:
    prototype = ctypes.CFUNCTYPE(_INT, *(ctypes.POINTER(kind) for kind in results), *arguments)

    def run(*given: Any) -> int:
        try:
            values = _call(name, given[len(results) :])
        except Fault as fault:
            return fault.status
        for pointer, value in zip(given, values if isinstance(values, tuple) else (values,), strict=False):
            if results:
                pointer[0] = value
        return 0

    return prototype(run)


def _error_name() -> Any:
    texts = {status: ctypes.create_string_buffer(name) for status, name in NAMES.items()}

    def run(status: int, pointer: Any) -> int:
        if status not in texts:
            return 1
        pointer[0] = ctypes.cast(texts[status], ctypes.c_void_p)
        return 0

    return ctypes.CFUNCTYPE(_INT, _INT, ctypes.POINTER(ctypes.c_void_p))(run)


def _device_name() -> Any:
    def run(target: Any, size: int, device: int) -> int:
        name: bytes = _call("cuDeviceGetName", (device,))[: size - 1] + b"\0"
        ctypes.memmove(target, name, len(name))
        return 0

    return ctypes.CFUNCTYPE(_INT, _HANDLE, _INT, _INT)(run)


def _end() -> Any:
    def run(stream: int, pointer: Any) -> int:
        try:
            pointer[0] = _call("cuStreamEndCapture", (stream,))
        except Fault as fault:
            return fault.status
        return 0

    return ctypes.CFUNCTYPE(_INT, _HANDLE, ctypes.POINTER(ctypes.c_void_p))(run)
