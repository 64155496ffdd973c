"""What `mapengine profile` times: one call from files to a scene, with the seconds of every phase."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..engine import Engine
from ..inputs.sources import read_views
from ..outputs.scene import SCENE_OUTPUTS, Scene
from ..system.machine import can_reset_peak, peak_bytes, reset_peak


class Subject(Protocol):
    """A loaded contender.

    Attributes:
        facts: what it is: model, precision, backend, device, ...
    """

    facts: dict[str, Any]

    def call(self, files: Sequence[str], size: tuple[int, int]) -> dict[str, float]:
        """Make a scene of image files; returns the seconds by phase, ``total`` among them."""
        ...

    def device_seconds(self) -> dict[str, float] | None:
        """Return the seconds of the last call by what its own device did; None without one, or if it is unknown."""
        ...

    def device_bytes(self) -> int | None:
        """Return the memory that is in use on its own device; None without one, or if it is unknown."""
        ...


@dataclass(frozen=True)
class Run:
    """One call: seconds by phase, and by what the device did; peak bytes of the process while it ran, bytes on the
    device."""

    seconds: dict[str, float]
    device_seconds: dict[str, float] | None
    peak_bytes: int | None
    device_bytes: int | None


class MeasuredSubject:
    """A subject in a worker's process; see :class:`..system.children.Service`."""

    def __init__(self, load: Callable[[], Subject]) -> None:
        self._subject = load()
        self.facts: Mapping[str, Any] = self._subject.facts

    def __call__(self, files: Sequence[str], size: tuple[int, int]) -> Run:
        """Call the subject once."""
        is_measured = can_reset_peak()
        if is_measured:
            reset_peak()
        seconds = self._subject.call(files, size)
        peak = peak_bytes() if is_measured else None
        return Run(seconds, self._subject.device_seconds(), peak, self._subject.device_bytes())


class StageClock:
    """Progress of a call, as seconds by stage: what passed since the stage before it reported last."""

    def __init__(self, wait: Callable[[], None] | None = None) -> None:
        """Start the clock. ``wait`` returns when what a stage queued is done, where it only queues."""
        self._wait = wait
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Add the time since the last report to ``stage``; ``infer`` calls this."""
        if self._wait is not None:
            self._wait()
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


def phases(clock: StageClock, start: float, loaded: float, end: float) -> dict[str, float]:
    """Return the seconds by phase of a call that had its views at ``loaded``.

    Pre-processing ends at ``loaded``; what no stage took after it is post-processing.
    """
    network = sum(clock.seconds.values())
    return {
        "pre-processing": loaded - start,
        **clock.seconds,
        "post-processing": end - loaded - network,
        "total": end - start,
    }


class EngineSubject:
    """An engine bundle on a backend; see :class:`Subject`."""

    def __init__(self, bundle: str, backend: str, threads: int | None) -> None:
        self._engine = Engine.load(bundle, backend, threads=threads)
        self._device_clock = self._engine.time_device()
        manifest = self._engine.manifest
        self.facts: dict[str, Any] = {
            "kind": "bundle",
            "model": manifest.model.id,
            "weights_sha256": manifest.model.weights_sha256,
            "config": manifest.model.config,
            "key_shares": manifest.shares_by_block,
            "bundle_sha256": self._engine.digest,
            "precision": manifest.precision,
            "backend": self._engine.backend,
            "backend_version": self._engine.backend_version,
            "device": self._engine.device,
            "chunk": dict(manifest.requests.chunks).get("image_encoder", 1),
        }

    def call(self, files: Sequence[str], size: tuple[int, int]) -> dict[str, float]:
        """See :class:`Subject`."""
        start = time.perf_counter()
        raw = read_views(list(files))
        views = list(self._engine.prepare(raw, size=size))  # so that reading has a phase of its own
        loaded = time.perf_counter()
        clock = StageClock()
        predictions = self._engine.infer(views, outputs=SCENE_OUTPUTS, progress=clock)
        Scene.from_predictions(predictions, [view.name for view in raw])
        return phases(clock, start, loaded, time.perf_counter())

    def device_seconds(self) -> dict[str, float] | None:
        """See :class:`Subject`."""
        return None if self._device_clock is None else self._device_clock()

    def device_bytes(self) -> int | None:
        """See :class:`Subject`."""
        return self._engine.device_bytes()
