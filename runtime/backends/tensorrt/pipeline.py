"""The four plans of a bundle, run on a GPU: the counterpart of :class:`mapengine.runtime.pipeline.Pipeline`."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BackendError
from ...inference import Progress
from ...pipeline import ChunkSizes
from ...postprocess import forward_outputs
from ...views import PreparedViews, ViewGeometry
from .cuda import Device, OutOfMemory
from .plans import Plan
from .runtime_cache import RuntimeCaches
from .session import Request, Session

_PATCH = 14
_MOST_IDLE = 4
"""Sessions that are kept for the next call: a few shapes are usual, and each holds the memory of its largest stage."""


class DevicePipeline:
    """Threads may share it: a call takes a session that nobody uses, or makes one."""

    def __init__(self, device: Device, plans: Mapping[str, Plan], chunks: ChunkSizes, caches: RuntimeCaches) -> None:
        """Use the loaded ``plans``, keyed by stage; ``chunks`` are the most views that their profiles take at once."""
        self.chunks = chunks
        self._device = device
        self._plans = plans
        self._caches = caches
        self._idle: OrderedDict[int, Session] = OrderedDict()
        self._lock = threading.Lock()

    def forward(
        self, prepared: PreparedViews, chunks: ChunkSizes | None = None, progress: Progress | None = None
    ) -> list[dict[str, NDArray[Any]]]:
        """As :meth:`mapengine.runtime.pipeline.Pipeline.forward`. Samples run one after the other.

        Raises:
            ProfileError: the plans were not built for so many views, or for their size.
            OutOfMemory: the GPU's memory does not suffice.
            BackendError: the GPU or the library failed.
        """
        self._device.activate()
        sizes = self._limited(chunks or self.chunks)
        samples = [self._run(prepared, sample, sizes, progress) for sample in range(prepared.batch)]
        if len(samples) == 1:
            return [forward_outputs(**raw, scale=scale) for raw, scale in samples[0]]
        predictions = []
        for parts in zip(*samples, strict=True):
            raw = {name: np.concatenate([part[0][name] for part in parts]) for name in parts[0][0]}
            predictions.append(forward_outputs(**raw, scale=np.concatenate([part[1] for part in parts])))
        return predictions

    def close(self) -> None:
        """Give the GPU's memory back. Calls that run keep theirs until they end."""
        with self._lock:
            sessions = list(self._idle.values())
            self._idle.clear()
        for session in sessions:
            session.close()

    def _run(
        self, prepared: PreparedViews, sample: int, chunks: ChunkSizes, progress: Progress | None
    ) -> list[tuple[dict[str, NDArray[Any]], NDArray[np.float32]]]:
        images = [np.asarray(image[sample : sample + 1], np.float32) for image in prepared.images]
        geometry = [_of_sample(view, sample) for view in prepared.geometry]
        given = tuple(view is not None for view in geometry)
        request = Request(len(images), prepared.height // _PATCH, prepared.width // _PATCH, given, chunks)
        session = self._take(request)
        try:
            results = list(session.run(images, geometry, progress))
        except BaseException:
            session.close()
            raise
        self._caches.save()
        self._give_back(session)
        return results

    def _limited(self, chunks: ChunkSizes) -> ChunkSizes:
        """What was asked for, as far as the plans' profiles go."""
        limits = self.chunks.to_json()
        return replace(chunks, **{stage: min(views, limits[stage]) for stage, views in chunks.to_json().items()})

    def _take(self, request: Request) -> Session:
        with self._lock:
            for key, session in reversed(self._idle.items()):
                if session.request == request:
                    del self._idle[key]
                    return session
        try:
            return Session(self._device, self._plans, request)
        except OutOfMemory:
            # Memory that only waits for another shape to come back is better used now.
            self.close()
            return Session(self._device, self._plans, request)

    def _give_back(self, session: Session) -> None:
        with self._lock:
            self._idle[id(session)] = session
            surplus = [self._idle.popitem(last=False)[1] for _ in range(len(self._idle) - _MOST_IDLE)]
        for old in surplus:
            old.close()

    def __del__(self) -> None:
        try:
            self._device.activate()
            self.close()
        except (AttributeError, TypeError, BackendError):  # half made, or the interpreter is shutting down
            return


def _of_sample(view: ViewGeometry | None, sample: int) -> ViewGeometry | None:
    """What a view brings for one sample; None for nothing."""
    if view is None or not view.flags[sample].any():
        return None
    part = slice(sample, sample + 1)
    values = (getattr(view, name) for name in ViewGeometry.__dataclass_fields__)
    return ViewGeometry(*(None if value is None else value[part] for value in values))  # type: ignore[arg-type]
