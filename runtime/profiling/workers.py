"""Contenders that take turns, each in a process of its own.

A machine whose speed drifts is then slow for all of them alike, and the memory of one is not reused by the next.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from ..errors import BackendError, MapEngineError
from ..memory.probe import can_probe, reset_peak
from ..system.machine import resident_bytes


class Subject(Protocol):
    """What a contender's process holds."""

    facts: dict[str, Any]
    """What it is: model, precision, backend, device, ..."""

    def call(self, files: Sequence[str], size: tuple[int, int]) -> dict[str, float]:
        """From image files to a scene; seconds by phase, ``total`` among them."""
        ...

    def device_seconds(self) -> dict[str, float] | None:
        """Seconds of the last call by what a device of its own did; None without one, or where it cannot be told."""
        ...

    def device_bytes(self) -> int | None:
        """Memory that is in use on a device of its own."""
        ...


Load = Callable[[], Subject]
"""Makes a subject in the contender's process. Must be picklable: a function of a module, or a partial of one."""


@dataclass(frozen=True)
class Run:
    """One call: seconds by phase, and by what the device did; peak bytes of the process while it ran, bytes on the
    device."""

    seconds: dict[str, float]
    device_seconds: dict[str, float] | None
    peak_bytes: int | None
    device_bytes: int | None


@dataclass
class Worker:
    """A contender's process, seen from the one that measures."""

    label: str
    facts: dict[str, Any] = field(default_factory=dict)
    load_s: float = 0.0
    _pipe: Any = None
    _process: Any = None

    @classmethod
    def start(cls, label: str, load: Load) -> Worker:
        """Start and load it.

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

    def run(self, files: Sequence[Path], size: tuple[int, int]) -> Run:
        """One call.

        Raises:
            MapEngineError: whatever the call raised, with the label.
        """
        with contextlib.suppress(OSError):  # a process that has ended is met when its answer is read
            self._pipe.send(([str(file) for file in files], size))
        result: Run = self._receive()
        return result

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()

    def _receive(self) -> Any:
        try:
            kind, value = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(10)
            raise BackendError(
                f"{self.label}: its process ended (exit code {self._process.exitcode}), probably for lack of memory"
            ) from None
        if kind == "error":
            raise MapEngineError(f"{self.label}: {value}")
        return value


def _serve(connection: Connection, load: Load) -> None:
    try:
        start = time.perf_counter()
        subject = load()
        connection.send(("ready", (subject.facts, time.perf_counter() - start)))
        while (message := connection.recv()) is not None:
            try:
                result: tuple[str, Any] = ("run", _measured(subject, *message))
            except Exception as error:
                result = "error", _in_words(error)
            connection.send(result)
    except (EOFError, KeyboardInterrupt):
        os._exit(0)
    except Exception as error:
        connection.send(("error", _in_words(error)))


def _measured(subject: Subject, files: Sequence[str], size: tuple[int, int]) -> Run:
    measured = can_probe()
    if measured:
        reset_peak()
    seconds = subject.call(files, size)
    peak = resident_bytes(peak=True) if measured else None
    return Run(seconds, subject.device_seconds(), peak, subject.device_bytes())


def _in_words(error: Exception) -> str:
    return str(error) if isinstance(error, MapEngineError) else f"{type(error).__name__}: {error}"
