"""A CUDA driver without a GPU, underneath the real ``cuda.bindings``.

``driver_abi.py`` puts it there, so that arguments and results pass through the real package. "Device memory" is host
memory that only streams touch.

Work in a stream runs when the stand-in's schedule says so, and no rule of CUDA is broken by that: ``lazy`` runs nothing
before somebody waits for it, ``eager`` runs all at once, and a number is the seed of a random interleaving of the
streams. Code that forgets to wait, or that fills a buffer which is still being read, gives wrong numbers on one.
"""

from __future__ import annotations

import ctypes
import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .stand_in_kernels import KernelCalls
from .stand_in_status import (
    CAPTURE_INVALIDATED,
    CAPTURE_UNSUPPORTED,
    ILLEGAL_ADDRESS,
    INVALID_CONTEXT,
    INVALID_HANDLE,
    INVALID_VALUE,
    LAUNCH_FAILED,
    NOT_INITIALIZED,
    NOT_READY,
    OK,
    OUT_OF_MEMORY,
    WRONG_THREAD,
    Fault,
)

ALIGNMENT = 512
"""Of allocations, as on a GPU."""

FATAL = (ILLEGAL_ADDRESS, LAUNCH_FAILED)

_CONTEXT = 0xC0DE
"""Handle of the primary context."""


@dataclass
class Mark:
    """One recording of an event."""

    stream: Stream
    done: bool = False
    time: int = 0


Work = Callable[[], None] | Mark
"""Something that runs, or a mark of another stream to wait for."""


@dataclass
class Capture:
    """A stream that records instead of running."""

    thread: int
    work: list[Work] = field(default_factory=list)
    is_valid: bool = True


class Stream:
    """A queue of work."""

    def __init__(self) -> None:
        self.queue: deque[Work] = deque()
        self.capture: Capture | None = None


@dataclass
class Event:
    timed: bool
    latest: Mark | None = None


class StandInDriver(KernelCalls):
    """One GPU and its state.

    Attributes:
        memory: bytes of device memory. blocks, pinned: live allocations, address to size.
        copies: between host and device ("up" or "down"), with their bytes, in the order they were enqueued.
        launches: graphs launched. kernels: how often each of our own ran. calls: how often each function was called.
        faults: status that a function answers with, once, per function name. A fatal one breaks the GPU.
        interrupts: what happens before a function is called the next time, once, per function name.
        broken: status that every call answers with after a fatal error.
        mistakes: broken rules that a real GPU would answer with garbage or a crash; empty unless the code is wrong.
    """

    def __init__(self, schedule: str | int = "lazy", memory: int = 2**30) -> None:
        self.memory = memory
        self.blocks: dict[int, int] = {}
        self.pinned: dict[int, int] = {}
        self.handles: dict[int, Any] = {}
        self.copies: list[tuple[str, int]] = []
        self.launches = 0
        self.kernels: dict[str, int] = {}
        self.calls: dict[str, int] = {}
        self.faults: dict[str, int] = {}
        self.interrupts: dict[str, Callable[[], None]] = {}
        self.broken = OK
        self.mistakes: list[str] = []
        self.lock = threading.RLock()
        self._random = None if isinstance(schedule, str) else random.Random(schedule)
        self._eager = schedule == "eager"
        self._store: dict[int, Any] = {}
        self._next = 0x1000
        self._clock = 0
        self._current = threading.local()
        self._initialised = False

    # For stand-ins of libraries that launch kernels

    def enqueue(self, stream: int, work: Work) -> None:
        """Put work into a stream, or into the graph that it records."""
        with self.lock:
            queue = self._stream(stream)
            if queue.capture is not None:
                queue.capture.work.append(work)
                return
            queue.queue.append(work)
            if self._eager:
                self._drain(queue)
            elif self._random is not None:
                self._wander(self._random)

    def is_capturing(self, stream: int) -> bool:
        """Whether a stream records."""
        with self.lock:
            return self._stream(stream).capture is not None

    def has_context(self) -> bool:
        """Whether the GPU is current for the calling thread."""
        return bool(self._stack and self._stack[-1])

    def contains(self, address: int, size: int) -> bool:
        """Whether a range lies within one live block of device memory."""
        return any(start <= address and address + size <= start + length for start, length in self.blocks.items())

    def mistake(self, text: str) -> None:
        """Note a broken rule; the GPU is unusable afterwards, as with a real one."""
        self.mistakes.append(text)
        self.broken = ILLEGAL_ADDRESS

    def call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """Answer a call of the C API: the results, or ``Fault``."""
        if name in self.interrupts:
            self.interrupts.pop(name)()
        with self.lock:
            self.calls[name] = self.calls.get(name, 0) + 1
            if self.broken:
                raise Fault(self.broken)
            if name in self.faults:
                status = self.faults.pop(name)
                if status in FATAL:
                    self.broken = status
                if name == "cuStreamEndCapture":  # a capture that fails is over too
                    self._stream(arguments[0]).capture = None
                raise Fault(status)
            return getattr(self, name)(*arguments)

    # The driver's functions: arguments as in the C API, results are returned

    def cuInit(self, flags: int) -> None:
        self._initialised = True

    def cuDriverGetVersion(self) -> int:
        return 13000

    def cuDeviceGetCount(self) -> int:
        return 1

    def cuDeviceGet(self, ordinal: int) -> int:
        if not self._initialised:
            raise Fault(NOT_INITIALIZED)
        if ordinal:
            raise Fault(INVALID_VALUE)
        return 0

    def cuDeviceGetName(self, device: int) -> bytes:
        return b"NVIDIA Stand-in 4000"

    def cuDeviceGetAttribute(self, attribute: int, device: int) -> int:
        return {75: 8, 76: 9}[attribute]  # compute capability 8.9

    def cuDevicePrimaryCtxRetain(self, device: int) -> int:
        return _CONTEXT

    def cuDevicePrimaryCtxRelease(self, device: int) -> None:
        pass

    def cuCtxSetCurrent(self, context: int) -> None:
        self._stack[-1:] = [context]

    def cuCtxPushCurrent(self, context: int) -> None:
        self._stack.append(context)

    def cuCtxPopCurrent(self) -> int:
        self._need_context()
        return int(self._stack.pop())

    def cuMemGetInfo(self) -> tuple[int, int]:
        self._need_context()
        return self.memory - sum(self.blocks.values()), self.memory

    def cuMemAlloc(self, size: int) -> int:
        self._unsafe()
        if size == 0:
            raise Fault(INVALID_VALUE)
        if size > self.memory - sum(self.blocks.values()):
            raise Fault(OUT_OF_MEMORY)
        return self._allocate(self.blocks, size)

    def cuMemFree(self, address: int) -> None:
        self._unsafe()
        self._drain_all()  # as cuMemFree does
        self._release(self.blocks, address)

    def cuMemHostAlloc(self, size: int, flags: int) -> int:
        self._unsafe()
        return self._allocate(self.pinned, size)

    def cuMemFreeHost(self, address: int) -> None:
        self._unsafe()
        self._drain_all()
        self._release(self.pinned, address)

    def cuMemcpyHtoDAsync(self, target: int, source: int, size: int, stream: int) -> None:
        self.copies.append(("up", size))
        self._copy(target, self.blocks, source, self.pinned, size, stream)

    def cuMemcpyDtoHAsync(self, target: int, source: int, size: int, stream: int) -> None:
        self.copies.append(("down", size))
        self._copy(target, self.pinned, source, self.blocks, size, stream)

    def cuMemcpyDtoDAsync(self, target: int, source: int, size: int, stream: int) -> None:
        self._copy(target, self.blocks, source, self.blocks, size, stream)

    def cuStreamCreate(self, flags: int) -> int:
        self._unsafe()
        if flags != 1:
            self.mistake("a stream that is not CU_STREAM_NON_BLOCKING waits for the legacy default stream")
        return self._handle(Stream())

    def cuStreamDestroy(self, stream: int) -> None:
        if self._stream(stream).capture is not None:
            self.mistake("a stream is destroyed while it records a graph")
        del self.handles[stream]

    def cuStreamSynchronize(self, stream: int) -> None:
        self._unsafe()
        queue = self._stream(stream)
        if queue.capture is not None:
            queue.capture.is_valid = False
            raise Fault(CAPTURE_UNSUPPORTED)
        self._drain(queue)

    def cuStreamWaitEvent(self, stream: int, event: int, flags: int) -> None:
        latest = self._event(event).latest
        if latest is not None:
            self.enqueue(stream, latest)

    def cuStreamBeginCapture(self, stream: int, mode: int) -> None:
        queue = self._stream(stream)
        if queue.capture is not None:
            raise Fault(CAPTURE_UNSUPPORTED)
        if mode == 0:
            self.mistake("a capture in global mode is spoilt by what other threads do")
        queue.capture = Capture(threading.get_ident())

    def cuStreamEndCapture(self, stream: int) -> int:
        queue = self._stream(stream)
        capture, queue.capture = queue.capture, None
        if capture is None:
            raise Fault(INVALID_VALUE)
        if capture.thread != threading.get_ident():
            raise Fault(WRONG_THREAD)
        if not capture.is_valid:
            raise Fault(CAPTURE_INVALIDATED)
        return self._handle(tuple(capture.work))

    def cuGraphInstantiateWithFlags(self, graph: int, flags: int) -> int:
        return self._handle(self.handles[graph])

    def cuGraphLaunch(self, executable: int, stream: int) -> None:
        self._need_context()
        self.launches += 1
        for work in self.handles[executable]:
            self.enqueue(stream, work)

    def cuGraphDestroy(self, graph: int) -> None:
        del self.handles[graph]

    def cuGraphExecDestroy(self, executable: int) -> None:
        self._drain_all()
        del self.handles[executable]

    def cuEventCreate(self, flags: int) -> int:
        self._need_context()
        return self._handle(Event(timed=not flags & 2))

    def cuEventRecord(self, event: int, stream: int) -> None:
        mark = Mark(self._stream(stream))
        self._event(event).latest = mark

        def reach() -> None:
            self._clock += 1
            mark.done, mark.time = True, self._clock

        self.enqueue(stream, reach)

    def cuEventSynchronize(self, event: int) -> None:
        self._unsafe()
        latest = self._event(event).latest
        if latest is not None:  # an event that was never recorded counts as reached
            self._drain(latest.stream, latest)

    def cuEventElapsedTime(self, start: int, end: int) -> float:
        first, last = self._event(start), self._event(end)
        if not (first.timed and last.timed and first.latest and last.latest):
            raise Fault(INVALID_HANDLE)
        if not (first.latest.done and last.latest.done):
            raise Fault(NOT_READY)
        return float(last.latest.time - first.latest.time)

    def cuEventDestroy(self, event: int) -> None:
        self._event(event)
        del self.handles[event]

    # How it works

    @property
    def _stack(self) -> list[int]:
        if not hasattr(self._current, "stack"):
            self._current.stack = []
        stack: list[int] = self._current.stack
        return stack

    def _need_context(self) -> None:
        if not self.has_context():
            raise Fault(INVALID_CONTEXT)

    def _unsafe(self) -> None:
        """Calls that a thread must not make while it records a graph."""
        self._need_context()
        for stream in self.handles.values():
            capture = stream.capture if isinstance(stream, Stream) else None
            if capture is not None and capture.thread == threading.get_ident():
                capture.is_valid = False
                raise Fault(CAPTURE_UNSUPPORTED)

    def _handle(self, thing: Any) -> int:
        self._next += 16
        self.handles[self._next] = thing
        return self._next

    def _stream(self, handle: int) -> Stream:
        self._need_context()
        stream = self.handles.get(handle)
        if not isinstance(stream, Stream):
            raise Fault(INVALID_HANDLE)
        return stream

    def _event(self, handle: int) -> Event:
        self._need_context()
        event = self.handles.get(handle)
        if not isinstance(event, Event):
            raise Fault(INVALID_HANDLE)
        return event

    def _allocate(self, kind: dict[int, int], size: int) -> int:
        store = ctypes.create_string_buffer(size + ALIGNMENT)
        address = -(-ctypes.addressof(store) // ALIGNMENT) * ALIGNMENT
        ctypes.memset(address, 0xFF, size)  # NaN, whoever reads it before it is written
        kind[address], self._store[address] = size, store
        return address

    def _release(self, kind: dict[int, int], address: int) -> None:
        if address not in kind:
            self.mistake(f"{address:#x} is freed, which is no allocation")
            raise Fault(INVALID_VALUE)
        del kind[address], self._store[address]

    def _copy(
        self, target: int, targets: dict[int, int], source: int, sources: dict[int, int], size: int, stream: int
    ) -> None:
        def run() -> None:
            for address, kind in ((target, targets), (source, sources)):
                if not any(start <= address and address + size <= start + length for start, length in kind.items()):
                    self.mistake(f"a copy of {size} bytes at {address:#x} leaves its allocation")
                    return
            if source < target + size and target < source + size:
                self.mistake("a copy overlaps itself")
            ctypes.memmove(target, source, size)

        self.enqueue(stream, run)

    def _drain(self, stream: Stream, until: Mark | None = None) -> None:
        """Run the work of a stream, to the end or to a mark."""
        while stream.queue and not (until is not None and until.done):
            work = stream.queue.popleft()
            if isinstance(work, Mark):
                self._drain(work.stream, work)
            else:
                work()
        if self.broken:
            raise Fault(self.broken)

    def _drain_all(self) -> None:
        for stream in [thing for thing in self.handles.values() if isinstance(thing, Stream)]:
            self._drain(stream)

    def _wander(self, numbers: random.Random) -> None:
        """Run some of the work that could run now, of any stream."""
        streams = [thing for thing in self.handles.values() if isinstance(thing, Stream) and thing.queue]
        for _ in range(numbers.randrange(4) if streams else 0):
            stream = numbers.choice(streams)
            if stream.queue and not (isinstance(stream.queue[0], Mark) and not stream.queue[0].done):
                work = stream.queue.popleft()
                if not isinstance(work, Mark):
                    work()
