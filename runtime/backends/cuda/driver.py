"""The part of the CUDA driver API that the runtime uses, as objects: memory, streams, events, graphs.

Everything goes through the driver (``cuda.bindings.driver``), which is there wherever a GPU works; no CUDA toolkit and
no second framework is needed. The primary context is used, so other CUDA code of the process shares it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...backend_table import CPU_BACKENDS
from ...errors import BackendError, BackendUnavailableError, one_line

ALIGNMENT = 256
"""Bytes that TensorRT wants addresses of tensors to be multiples of; CUDA's allocations are."""

_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE

FATAL_ERRORS = frozenset({
    "CUDA_ERROR_ILLEGAL_ADDRESS", "CUDA_ERROR_LAUNCH_FAILED", "CUDA_ERROR_LAUNCH_TIMEOUT", "CUDA_ERROR_ASSERT",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION", "CUDA_ERROR_MISALIGNED_ADDRESS", "CUDA_ERROR_INVALID_ADDRESS_SPACE",
    "CUDA_ERROR_INVALID_PC", "CUDA_ERROR_HARDWARE_STACK_ERROR", "CUDA_ERROR_ECC_UNCORRECTABLE",
    "CUDA_ERROR_CONTEXT_IS_DESTROYED", "CUDA_ERROR_NVLINK_UNCORRECTABLE", "CUDA_ERROR_EXTERNAL_DEVICE",
    "CUDA_ERROR_CONTAINED", "CUDA_ERROR_TENSOR_MEMORY_LEAK", "CUDA_ERROR_MPS_CLIENT_TERMINATED", "CUDA_ERROR_UNKNOWN",
})  # fmt: skip
"""Errors after which every later call in the process fails (CUDA driver API, "Data types used by CUDA driver")."""


class OutOfMemory(BackendError):
    """The GPU has no block of memory of this size; fewer views need less."""


class Device:
    """A GPU. Several threads may use it, each within :meth:`current`.

    Attributes:
        failure: name of the error after which nothing runs on it in this process any more, or None.
    """

    def __init__(self, ordinal: int = 0) -> None:
        """Open the GPU ``ordinal``.

        Raises:
            BackendUnavailableError: cuda-bindings is not installed, or the driver refuses.
        """
        try:
            from cuda.bindings import driver
        except ImportError as error:
            raise BackendUnavailableError(
                f"the package cuda-bindings, which drives the GPU, cannot be imported ({one_line(error)}); run: "
                f"pip install --upgrade cuda-bindings"
            ) from error
        self._driver: Any = driver
        self.failure: str | None = None
        self.ordinal = ordinal
        self._captures = threading.local()
        self._freed_later: list[Buffer] = []
        self._opening = threading.Lock()
        self._lasting: Stream | None = None
        try:
            self._open(ordinal)
        except BackendError as error:
            raise BackendUnavailableError(str(error)) from error

    def _open(self, ordinal: int) -> None:
        driver = self._driver
        self.call("start", driver.cuInit, 0)
        self._handle = self.call("be opened", driver.cuDeviceGet, ordinal)
        self._context = self.call("be opened", driver.cuDevicePrimaryCtxRetain, self._handle)
        name: bytes = self.call("say its name", driver.cuDeviceGetName, 256, self._handle)
        self.name = name.split(b"\0")[0].decode(errors="replace")
        attribute = driver.CUdevice_attribute
        major, minor = (
            self.call("say its compute capability", driver.cuDeviceGetAttribute, kind, self._handle)
            for kind in (
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        self.compute_capability = f"{major}.{minor}"
        version = self.call("say its driver's version", driver.cuDriverGetVersion)
        self.driver_version = f"{version // 1000}.{version % 1000 // 10}"
        """Newest CUDA version that the driver serves, such as ``13.0``."""

    @property
    def description(self) -> str:
        """Name, compute capability and driver, as backends show it."""
        return f"{self.name} (compute capability {self.compute_capability}, CUDA driver {self.driver_version})"

    def call(self, doing: str, function: Any, *arguments: Any) -> Any:
        """Call a driver function and return its results.

        Args:
            doing: what it is for, for messages: "copy inputs".

        Raises:
            OutOfMemory: there is not enough memory, of the GPU or of the host.
            BackendError: it failed, or an earlier failure made the GPU unusable in this process.
        """
        if self.failure is not None:
            raise BackendError(
                f"the GPU cannot {doing}, because an earlier error ({self.failure}) made it unusable in this process; "
                f"restart the process"
            )
        try:
            status, *results = function(*arguments)
        except (RuntimeError, OSError, ValueError, KeyError) as error:
            # The driver is gone, is too old to have this function, or gives a status that the package does not know.
            raise BackendError(
                f"the GPU cannot {doing} ({one_line(error)}); install an NVIDIA driver and a cuda-bindings that fit"
            ) from error
        if int(status) != 0:
            raise self._error(doing, status)
        return results[0] if len(results) == 1 else tuple(results) or None

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make the GPU current for the calling thread, and what was current before again after the block."""
        self.call("use the GPU", self._driver.cuCtxPushCurrent, self._context)
        try:
            yield
        finally:
            self._driver.cuCtxPopCurrent()  # fails too after a fatal error, which was raised already

    def free_memory(self) -> tuple[int, int]:
        """Return the free bytes and all bytes of the GPU's memory."""
        free, total = self.call("read the free memory", self._driver.cuMemGetInfo)
        return int(free), int(total)

    def allocate(self, size: int) -> Buffer:
        """Allocate memory on the GPU, uninitialised.

        Raises:
            OutOfMemory: there is not enough.
        """
        return Buffer(self, max(size, ALIGNMENT))

    def free_soon(self, buffer: Buffer) -> None:
        """Free memory, also from a finalizer, which may run while this thread records a graph: then right after it."""
        if getattr(self._captures, "running", False):
            self._freed_later.append(buffer)
            return
        with self.current():
            buffer.free()

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Let nothing be freed while this thread records a graph, which that would spoil."""
        self._captures.running = True
        try:
            yield
        finally:
            self._captures.running = False
            while self._freed_later:
                self.free_soon(self._freed_later.pop())

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> Pinned:
        """Allocate page-locked memory of the host, which the GPU copies from and to while the processor goes on."""
        return Pinned(self, shape, np.dtype(dtype))

    def stream(self) -> Stream:
        """Create a queue of work."""
        return Stream(self)

    def lasting_stream(self) -> Stream:
        """Return the one stream of this process for libraries that stay tied to a stream after an engine is closed."""
        with self._opening:
            if self._lasting is None:
                self._lasting = self.stream()
        return self._lasting

    def event(self) -> Event:
        """Create a mark for streams."""
        return Event(self)

    def _error(self, doing: str, status: Any) -> BackendError:
        name = self._error_name(status)
        if name in FATAL_ERRORS:
            self.failure = name
            return BackendError(
                f"the GPU failed to {doing} ({name}), and nothing more can run on it in this process; restart the "
                f"process, and report it if it happens again"
            )
        if name == "CUDA_ERROR_OUT_OF_MEMORY":
            return OutOfMemory(f"there is no memory left to {doing}; use fewer or smaller views in one call")
        return BackendError(f"the GPU failed to {doing} ({name}); see the documentation of the CUDA driver API")

    def _error_name(self, status: Any) -> str:
        problem, name = self._driver.cuGetErrorName(status)
        return name.decode() if int(problem) == 0 and name else f"CUDA error {int(status)}"


class Buffer:
    """A block of GPU memory. ``free`` gives it back; using it afterwards is an error of the caller."""

    def __init__(self, device: Device, size: int) -> None:
        self._device = device
        self.size = size
        try:
            address = device.call("allocate memory", device._driver.cuMemAlloc, size)
        except OutOfMemory:
            free, total = device.free_memory()
            raise OutOfMemory(
                f"the GPU has no {_gib(size)} of memory left ({_gib(free)} of {_gib(total)} are free); use fewer or "
                f"smaller views in one call, or a smaller minibatch_size, or close other programs that use the GPU"
            ) from None
        self.address = int(address)

    def free(self) -> None:
        """Give the memory back; a second time does nothing."""
        if self.address and self._device.failure is None:
            self._device.call("free memory", self._device._driver.cuMemFree, self.address)
        self.address = 0


class Pinned:
    """Page-locked host memory as a NumPy array (``array``), valid until ``free``."""

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._device = device
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self.address = int(device.call("allocate page-locked memory", device._driver.cuMemHostAlloc, size, 0))
        raw = memoryview((ctypes.c_byte * size).from_address(self.address)).cast("B")
        self.array: NDArray[Any] = np.frombuffer(raw, np.uint8)[:size].view(dtype).reshape(shape)

    def free(self) -> None:
        """Give the memory back; a second time does nothing."""
        if self.address and self._device.failure is None:
            self.array = np.empty(0, self.array.dtype)
            self._device.call("free page-locked memory", self._device._driver.cuMemFreeHost, self.address)
        self.address = 0


class Stream:
    """A queue of copies and launches that run one after the other. Threads may share it.

    Attributes:
        turn: lock that whoever puts something into the queue holds, and a recording from its beginning to its end:
            what other threads enqueued meanwhile would become part of the graph.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._driver = device._driver
        flags = self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        self._stream = device.call("create a stream", self._driver.cuStreamCreate, int(flags))
        self._open = True
        self.turn = threading.RLock()

    @property
    def handle(self) -> int:
        """The stream as libraries take it."""
        return int(self._stream)

    def upload(self, source: Pinned, target: int) -> None:
        """Copy all of ``source`` to the GPU address ``target``."""
        size = source.array.nbytes
        self._enqueue("copy inputs", self._driver.cuMemcpyHtoDAsync, target, source.address, size)

    def download(self, source: int, target: Pinned) -> None:
        """Fill ``target`` from the GPU address ``source``."""
        size = target.array.nbytes
        self._enqueue("copy outputs", self._driver.cuMemcpyDtoHAsync, target.address, source, size)

    def move(self, source: int, target: int, size: int) -> None:
        """Copy between two places of the GPU's memory."""
        self._enqueue("copy features", self._driver.cuMemcpyDtoDAsync, target, source, size)

    def synchronize(self) -> None:
        """Wait until everything in the queue is done."""
        self._enqueue("run the network", self._driver.cuStreamSynchronize)

    @contextlib.contextmanager
    def capture(self) -> Iterator[Graph]:
        """Record what the block enqueues, instead of running it; the graph is ready after the block."""
        with self.turn, self._device.recording():
            yield from self._capture()

    def _capture(self) -> Iterator[Graph]:
        # Thread-local: another thread may allocate memory meanwhile without spoiling the capture.
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._device.call("record a graph", self._driver.cuStreamBeginCapture, self._stream, mode)
        graph = Graph(self._device)
        try:
            yield graph
        except BaseException:
            # The capture has to end in any case, or the stream stays unusable.
            _, unfinished = self._driver.cuStreamEndCapture(self._stream)
            if unfinished is not None and int(unfinished):
                self._driver.cuGraphDestroy(unfinished)
            raise
        graph.finish(self._device.call("record a graph", self._driver.cuStreamEndCapture, self._stream))

    def _enqueue(self, doing: str, function: Any, *arguments: Any) -> None:
        with self.turn:
            self._device.call(doing, function, *arguments, self._stream)

    def launch(self, graph: Graph) -> None:
        """Enqueue a recorded graph."""
        self._enqueue("run the network", self._driver.cuGraphLaunch, graph.executable)

    def free(self) -> None:
        """Close the stream; a second time does nothing."""
        if self._open and self._device.failure is None:
            self._device.call("close a stream", self._driver.cuStreamDestroy, self._stream)
        self._open = False


class Graph:
    """A recorded sequence of copies and launches on fixed addresses."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.executable: Any = None

    def finish(self, graph: Any) -> None:
        """Make the recorded graph runnable."""
        driver = self._device._driver
        try:
            self.executable = self._device.call("prepare a graph", driver.cuGraphInstantiate, graph, 0)
        finally:
            driver.cuGraphDestroy(graph)

    def free(self) -> None:
        """Give the graph back; a second time does nothing."""
        if self.executable is not None and self._device.failure is None:
            self._device.call("free a graph", self._device._driver.cuGraphExecDestroy, self.executable)
        self.executable = None


class Event:
    """A mark in a stream that the host can wait for, with the time at which it was reached."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._event = device.call("create an event", device._driver.cuEventCreate, 0)
        self._open = True

    def record(self, stream: Stream) -> None:
        """Set the mark behind what is in the queue now."""
        with stream.turn:
            self._device.call("record an event", self._device._driver.cuEventRecord, self._event, stream._stream)

    def wait(self) -> None:
        """Wait until the mark is reached."""
        self._device.call("run the network", self._device._driver.cuEventSynchronize, self._event)

    def milliseconds_since(self, earlier: Event) -> float:
        """Return the GPU time between two marks that were reached."""
        return float(
            self._device.call("read a time", self._device._driver.cuEventElapsedTime, earlier._event, self._event)
        )

    def free(self) -> None:
        """Give the event back; a second time does nothing."""
        if self._open and self._device.failure is None:
            self._device.call("free an event", self._device._driver.cuEventDestroy, self._event)
        self._open = False


devices: dict[int, Device] = {}
"""The GPUs that this process has opened, by ordinal: see :func:`open_device`."""
_devices_lock = threading.Lock()


def open_device(ordinal: int = 0) -> Device:
    """Return the GPU ``ordinal``: one object for the process, so that a fatal error of one engine is known to all."""
    with _devices_lock:
        if ordinal not in devices:
            devices[ordinal] = Device(ordinal)
        return devices[ordinal]


@functools.cache
def driver_problem() -> str | None:
    """Return what is missing to use an NVIDIA GPU, as part of a sentence; None if nothing is.

    Asks the driver library alone (``cuInit``, ``cuDeviceGetCount``), so it is safe on any machine.
    """
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return f"this machine has no NVIDIA driver ({name} is missing)"
    status = driver.cuInit(0)
    count = ctypes.c_int(0)
    if status == 0:
        status = driver.cuDeviceGetCount(ctypes.byref(count))
    if status == _NO_DEVICE or (status == 0 and count.value == 0):
        return "the NVIDIA driver finds no GPU"
    return None if status == 0 else f"the NVIDIA driver cannot be used (CUDA error {status})"


def no_gpu(backend: str, problem: str) -> BackendUnavailableError:
    """Return the error for a backend whose GPU cannot be used; ``problem`` is of :func:`driver_problem`."""
    return BackendUnavailableError(
        f"the backend {backend} needs an NVIDIA GPU, and {problem}; run it on a machine with one, or build the bundle "
        f"with --backend {' or '.join(CPU_BACKENDS)} to run it here"
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.1f} MiB"
