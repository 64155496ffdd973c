"""What the node counts and times, and what it says of it in ``/diagnostics``."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter

OK, WARN, ERROR, STALE = 0, 1, 2, 3
"""Levels of ``DiagnosticStatus``."""

PHASES = ("wait", "decode", "prepare", "encode", "infer", "publish", "total")
"""From the arrival of a set's last message: until it is taken, messages to arrays, arrays to the network's size, the
image encoder, the rest of the network with post-processing, messages of the results; and all of it."""

_LATEST = 50  # sets that the latencies are of
_RECENT = 5.0  # seconds for which a refusal is told as a warning


@dataclass(frozen=True)
class Status:
    """One entry of ``/diagnostics``."""

    name: str
    level: int
    message: str
    values: dict[str, str] = field(default_factory=dict)


class Record:
    """Counts and latencies. Threads may share it.

    A frame that was received was reconstructed, is on its way, or was dropped for one of the reasons that are counted:
    ``replaced`` (a newer one came while the engine was busy), ``unmatched`` (no partners within the tolerance),
    ``refused`` (the message or what is known with it is wrong), ``failed`` (the engine). ``lost`` are messages that the
    middleware says it dropped.
    """

    def __init__(self, cameras: Sequence[str]) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, Counter[str]] = {name: Counter() for name in cameras}
        self._phases: dict[str, deque[float]] = {phase: deque(maxlen=_LATEST) for phase in PHASES}
        self._refusals: dict[str, tuple[float, str]] = {}
        self._failure: tuple[float, str] | None = None
        self._sets = 0

    def count(self, camera: str, what: str, by: int = 1) -> None:
        """Add to a count of a camera."""
        with self._lock:
            self._counts[camera][what] += by

    def refuse(self, camera: str, sentence: str, now: float, *, frame: bool = True) -> None:
        """Note why something of a camera was not used; ``frame``: so that its frame was dropped."""
        with self._lock:
            self._counts[camera]["refused" if frame else "incomplete"] += 1
            self._refusals[camera] = (now, sentence)

    def fail(self, cameras: Sequence[str], sentence: str, now: float) -> None:
        """Note that the engine did not reconstruct a set."""
        with self._lock:
            for camera in cameras:
                self._counts[camera]["failed"] += 1
            self._failure = (now, sentence)

    def finish(self, cameras: Sequence[str], phases: Mapping[str, float]) -> None:
        """Note a reconstructed set with the seconds of its phases."""
        with self._lock:
            self._sets += 1
            self._failure = None
            for camera in cameras:
                self._counts[camera]["used"] += 1
            for phase, seconds in phases.items():
                self._phases[phase].append(seconds)

    def counts(self, camera: str) -> dict[str, int]:
        """Return the counts of a camera."""
        with self._lock:
            return dict(self._counts[camera])

    def latencies(self) -> dict[str, float]:
        """Return the median seconds of every phase, of the latest sets."""
        with self._lock:
            return {phase: median(values) for phase, values in self._phases.items() if values}

    def statuses(self, silent: Sequence[tuple[str, str]], facts: Mapping[str, str], now: float) -> list[Status]:
        """Return one status of the engine, and one per camera.

        Args:
            silent: (camera, kind) of topics that nothing comes from.
            facts: what is said of the engine besides.
            now: seconds, of the clock of ``refuse`` and ``fail``.
        """
        with self._lock:
            return [self._engine_status(facts, now), *(self._camera_status(name, silent, now) for name in self._counts)]

    def _engine_status(self, facts: Mapping[str, str], now: float) -> Status:
        values = {**facts, "sets reconstructed": str(self._sets)}
        for phase, seconds in self._phases.items():
            if seconds:
                values[f"{phase}, median ms"] = f"{1000 * median(seconds):.1f}"
                values[f"{phase}, longest ms"] = f"{1000 * max(seconds):.1f}"
        if self._failure is not None:
            return Status("engine", ERROR, self._failure[1], values)
        return Status("engine", OK, "reconstructing" if self._sets else "waiting for images", values)

    def _camera_status(self, name: str, silent: Sequence[tuple[str, str]], now: float) -> Status:
        counts = self._counts[name]
        values = {what: str(counts[what]) for what in ("received", "used", *DROPPED, "incomplete")}
        kinds = [kind for camera, kind in silent if camera == name]
        told, sentence = self._refusals.get(name, (-_RECENT, ""))
        if sentence:
            values["last refusal"] = sentence
        if now - told < _RECENT:
            return Status(name, WARN, sentence, values)
        if "image" in kinds:
            text = "no images come" if counts["received"] else "no image has come yet"
            return Status(name, STALE if counts["received"] else WARN, text, values)
        if kinds:
            return Status(name, WARN, f"left out, because nothing comes: {', '.join(kinds)}", values)
        return Status(name, OK, "images come", values)


DROPPED = ("replaced", "unmatched", "refused", "failed", "lost")
"""Counts of frames that were not reconstructed."""


class Stopwatch:
    """Seconds by phase of one set."""

    def __init__(self, arrived: float) -> None:
        """Begin with what passed since ``arrived``, on the clock of ``time.perf_counter``."""
        self._arrived = arrived
        self.seconds = {"wait": perf_counter() - arrived}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what runs inside."""
        begun = perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - begun

    def finish(self) -> dict[str, float]:
        """Return the phases and ``total``."""
        return {**self.seconds, "total": perf_counter() - self._arrived}
