"""Processes that hold one object each and call it on request.

What is compared runs in turn, each in a process of its own: a machine whose speed drifts is then slow for all of them
alike, and the memory of one is not reused by the next.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Protocol

from ..errors import BackendError, MapEngineError


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


@dataclass
class Worker:
    """A process with a service, seen from the one that calls it.

    Attributes:
        label: name in messages. facts: of the service. load_s: seconds that loading it took.
    """

    label: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    load_s: float = 0.0
    _pipe: Any = None
    _process: Any = None

    @classmethod
    def start(cls, label: str, load: Load) -> Worker:
        """Start the process and load the service.

        Raises:
            MapEngineError: whatever loading raised, with the label.
        """
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there, load), daemon=True)
        process.start()
        there.close()  # so that a process that dies ends the wait
        worker = cls(label, {}, 0.0, here, process)
        worker.facts, worker.load_s = worker._receive()
        return worker

    def call(self, *arguments: Any) -> Any:
        """Call the service and return its result.

        Raises:
            MapEngineError: whatever the call raised, with the label.
        """
        with contextlib.suppress(OSError):  # a process that has ended is met when its answer is read
            self._pipe.send(arguments)
        return self._receive()

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()

    def _receive(self) -> Any:
        try:
            succeeded, value = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(10)
            raise BackendError(
                f"{self.label}: its process ended (exit code {self._process.exitcode}), probably for lack of memory"
            ) from None
        if not succeeded:
            raise MapEngineError(f"{self.label}: {value}")
        return value


def _serve(connection: Connection, load: Load) -> None:
    try:
        start = time.perf_counter()
        service = load()
        connection.send((True, (service.facts, time.perf_counter() - start)))
        while (arguments := connection.recv()) is not None:
            try:
                answer: tuple[bool, Any] = True, service(*arguments)
            except Exception as error:
                answer = False, _message(error)
            connection.send(answer)
    except (EOFError, KeyboardInterrupt):
        os._exit(0)
    except Exception as error:
        connection.send((False, _message(error)))


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, MapEngineError) else f"{type(error).__name__}: {error}"
