"""An engine as a contender: one call from files to a scene, with the time of every phase."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from ..engine import Engine
from ..inputs.view_lists import raw_views
from ..outputs.scene import Scene


class StageClock:
    """Progress of a call, as seconds by stage: what passed since the stage before it reported last."""

    def __init__(self, wait: Callable[[], None] | None = None) -> None:
        """``wait`` returns when what a stage queued is done, where it only queues."""
        self._wait = wait
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Called by ``infer``."""
        if self._wait is not None:
            self._wait()
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


def phases(clock: StageClock, start: float, loaded: float, end: float) -> dict[str, float]:
    """Seconds by phase of a call that had its views at ``loaded``: what no stage took is before or after them."""
    network = sum(clock.seconds.values())
    return {
        "pre-processing": loaded - start,
        **clock.seconds,
        "post-processing": end - loaded - network,
        "total": end - start,
    }


class EngineSubject:
    """See :class:`.workers.Subject`."""

    def __init__(self, bundle: str, backend: str, threads: int | None) -> None:
        self._engine = Engine.load(bundle, backend, threads=threads, verify=False)
        self._device_clock = self._engine.time_device()
        manifest = self._engine.manifest
        self.facts: dict[str, Any] = {
            "kind": "bundle",
            "model": manifest.model.id,
            "weights_sha256": manifest.model.weights_sha256,
            "config": manifest.model.config,
            "bundle_sha256": self._engine.digest,
            "precision": manifest.precision,
            "backend": self._engine.backend,
            "backend_version": self._engine.backend_version,
            "device": self._engine.device,
            "chunk": dict(manifest.requests.chunks).get("image_encoder", 1),
        }

    def call(self, files: Sequence[str], size: tuple[int, int]) -> dict[str, float]:
        """See :class:`.workers.Subject`."""
        start = time.perf_counter()
        raw, names = raw_views(list(files))
        views = self._engine.preprocess(raw, size=size)
        loaded = time.perf_counter()
        clock = StageClock()
        predictions = self._engine.infer(views, progress=clock)
        Scene.from_predictions(predictions, names)
        return phases(clock, start, loaded, time.perf_counter())

    def device_seconds(self) -> dict[str, float] | None:
        """See :class:`.workers.Subject`."""
        return None if self._device_clock is None else self._device_clock()

    def device_bytes(self) -> int | None:
        """See :class:`.workers.Subject`; None on a CPU, and where the library does not tell."""
        return self._engine.device_bytes()
