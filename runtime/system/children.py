"""Processes of Python that this one starts.

``python -m`` and :mod:`multiprocessing` make the child import from the working folder first, and there may lie
anything: a ``numpy.py`` among downloaded images would be run. Python 3.10 has no switch against that, so every child is
started here: it imports from where this process does, but for the working folder.

Objects pass as pickles, through pipes that only the two processes have.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import queue
import runpy
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import IO, Any, Protocol

from .. import errors
from ..errors import BackendError, MapEngineError

_LENGTH = struct.Struct("<Q")
_SECONDS_TO_END = 10


def child_command(module: str, *arguments: object) -> list[str]:
    """Return the command that runs a module as ``python -m`` does; to be used with :func:`child_environment`."""
    return _command(f"import runpy; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)", *arguments)


def child_environment(**changes: str | None) -> dict[str, str]:
    """Return the environment of a child: that of this process with ``changes``, of which None takes a name away."""
    environment = dict(os.environ)
    # It would make Python look for modules before the first line of the command is run.
    environment.pop("PYTHONINSPECT", None)
    if "PYTHONPATH" in environment:
        entries = environment["PYTHONPATH"].split(os.pathsep)
        environment["PYTHONPATH"] = os.pathsep.join(entry for entry in entries if not _is_working_folder(entry))
    for name, value in changes.items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value
    return environment


def _command(code: str, *arguments: object) -> list[str]:
    # Until its first line is run, Python itself imports nothing from the folder that -c puts in front.
    path = [entry for entry in sys.path if os.path.isabs(entry) and not _is_working_folder(entry)]
    own = "[entry for entry in sys.path if entry]"
    safe = f"import sys; own, known = {own}, {path!r}; sys.path[:] = known + [e for e in own if e not in known]; {code}"
    options = [f"-W{option}" for option in sys.warnoptions] + (["-Xutf8"] if sys.flags.utf8_mode else [])
    return [sys.executable, *options, "-c", safe, *map(str, arguments)]


def _is_working_folder(entry: str) -> bool:
    return os.path.realpath(entry or os.curdir) == os.path.realpath(os.curdir)


class Service(Protocol):
    """What a worker's process holds.

    Attributes:
        facts: what it says of itself once it is loaded; picklable.
    """

    facts: Mapping[str, Any]

    def __call__(self, *arguments: Any) -> Any:
        """Answer a call; arguments and result are picklable."""
        ...


Load = Callable[[], Service]
"""Makes a service in the worker's process. Must be picklable: a class or function of a module, or a partial of one."""


@dataclass(eq=False)
class Worker:
    """A process with a service, seen from the one that calls it. It ends with that one.

    What is compared runs in turn, each in a process of its own: a machine whose speed drifts is then slow for all of
    them alike, and the memory of one is not reused by the next.

    Attributes:
        label: name in messages. facts: of the service. load_s: seconds that loading it took.
    """

    label: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    load_s: float = 0.0
    _process: Any = None

    @classmethod
    def start(cls, label: str, load: Load) -> Worker:
        """Start the process and load the service.

        Raises:
            MapEngineError: whatever loading raised, with the label.
        """
        command = _command("from mapengine.runtime.system.children import serve; serve()")
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=child_environment(), bufsize=-1
        )
        worker = cls(label, {}, 0.0, process)
        try:
            worker._send(load)
            worker.facts, worker.load_s = worker._receive()
        except BaseException:
            worker.kill()
            raise
        return worker

    def call(self, *arguments: Any) -> Any:
        """Call the service and return its result.

        Raises:
            MapEngineError: whatever the call raised, with the label.
        """
        self._send(arguments)
        return self._receive()

    def close(self) -> None:
        """End the process."""
        self._send(None)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_SECONDS_TO_END)
        self.kill()

    @property
    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End the process whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()

    def _send(self, value: Any) -> None:
        pickled = pickle.dumps(value)
        request = pickle.dumps((_main_module() if b"__main__" in pickled else None, pickled))
        with contextlib.suppress(OSError, ValueError):  # a process that has ended is met when its answer is read
            _write(self._process.stdin, request)

    def _receive(self) -> Any:
        message = _read(self._process.stdout)
        prefix = f"{self.label}: " if self.label else ""
        if message is None:
            self._process.wait()
            raise BackendError(
                f"{prefix}its process ended (exit code {self._process.returncode}), probably for lack of memory"
            )
        succeeded, value = pickle.loads(message)
        if not succeeded:
            kind, text = value
            raise getattr(errors, kind, MapEngineError)(f"{prefix}{text}")
        return value


class WorkerPool:
    """Calls functions in several processes at a time.

    One that takes its process down costs its own call alone (BackendError): the next call gets a new process.
    """

    def __init__(self, workers: int) -> None:
        """Begin without processes; each of the ``workers`` is started when it is needed."""
        self._threads = ThreadPoolExecutor(workers)
        self._lock = threading.Lock()
        self._idle: list[Worker] = []
        self._all: set[Worker] = set()
        self._is_closed = False

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Begin a call as soon as a process is free; function, arguments and result are picklable."""
        return self._threads.submit(self._call, function, *arguments)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        if worker is None:
            worker = Worker.start("", _Calls)
            with self._lock:
                self._all.add(worker)
                closed = self._is_closed
            if closed:
                worker.kill()
        try:
            return worker.call(function, *arguments)
        finally:
            with self._lock:
                if worker.is_alive:
                    self._idle.append(worker)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes; calls that are not done are given up."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._is_closed = True
            workers = list(self._all)
        for worker in workers:
            worker.kill()
        self._threads.shutdown()


class _Calls:
    """The service of a pool's process."""

    facts: Mapping[str, Any] = {}

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


def serve() -> None:
    """Be the process of a :class:`Worker`, until its other end closes the pipe."""
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # whatever a library prints goes there, the answers alone through the pipe
        threading.Thread(target=_take_requests, args=(requests,), daemon=True).start()
        try:
            start = time.perf_counter()
            service = _value(requests.get())()
            _write(answers, pickle.dumps((True, (service.facts, time.perf_counter() - start))))
            while (arguments := _value(requests.get())) is not None:
                try:
                    answer = pickle.dumps((True, service(*arguments)))
                except Exception as error:
                    answer = pickle.dumps((False, _message(error)))
                _write(answers, answer)
        except (BrokenPipeError, KeyboardInterrupt):
            os._exit(0)
        except Exception as error:
            _write(answers, pickle.dumps((False, _message(error))))


def _value(request: bytes) -> Any:
    main_module, pickled = pickle.loads(request)
    if main_module is not None and "__mp_main__" not in sys.modules:
        _adopt_main(*main_module)
    return pickle.loads(pickled)


def _take_requests(requests: queue.SimpleQueue[bytes]) -> None:
    """Read while the main thread computes, so that the process ends with its parent."""
    with open(0, "rb", buffering=0, closefd=False) as pipe:  # Python cannot end while a thread holds a buffer's lock
        while (message := _read(pipe)) is not None:
            requests.put(message)
    os._exit(1)


def _main_module() -> tuple[str, bool] | None:
    """The name or the file of the module that this program was started with, and whether it is a name."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return spec.name, True
    file = getattr(main, "__file__", None)
    return None if file is None else (os.path.abspath(file), False)


def _adopt_main(place: str, is_name: bool) -> None:
    """Make what pickles call ``__main__`` the module of the parent, without running what it does when it is started."""
    if is_name:
        module = importlib.import_module(place)
    else:
        module = type(sys)("__mp_main__")
        module.__dict__.update(runpy.run_path(place, run_name="__mp_main__"))
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module


def _message(error: Exception) -> tuple[str, str]:
    if isinstance(error, MapEngineError):
        return type(error).__name__, str(error)
    return MapEngineError.__name__, f"{type(error).__name__}: {error}"


def _write(pipe: IO[bytes], message: bytes) -> None:
    pipe.write(_LENGTH.pack(len(message)))
    pipe.write(message)
    pipe.flush()


def _read(pipe: IO[bytes]) -> bytes | None:
    """One message; None when the other end is gone."""
    try:
        header = _read_bytes(pipe, _LENGTH.size)
        return None if header is None else _read_bytes(pipe, *_LENGTH.unpack(header))
    except (OSError, ValueError):  # closed meanwhile
        return None


def _read_bytes(pipe: IO[bytes], count: int) -> bytes | None:
    content = bytearray()
    while len(content) < count:
        part = pipe.read(count - len(content))
        if not part:
            return None
        content += part
    return bytes(content)
