"""The four plans of a bundle, run on a GPU: the counterpart of :class:`mapengine.runtime.pipeline.Pipeline`."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...inference import Progress
from ...pipeline import ChunkSizes
from ...postprocess import forward_outputs
from ...profile import PATCH_SIZE
from ...views import PreparedViews, ViewGeometry
from .cuda import Device, OutOfMemory
from .plans import Plan
from .runtime_cache import RuntimeCaches
from .session import Request, Session

_MOST_IDLE = 4
"""Sessions that are kept for the next call: a few shapes are usual, and each holds the memory of its largest stage."""


class DevicePipeline:
    """Threads may share it: a call takes a session that nobody uses, or makes one."""

    def __init__(self, device: Device, plans: Mapping[str, Plan], chunks: ChunkSizes, caches: RuntimeCaches) -> None:
        """Use the loaded ``plans``, keyed by stage; ``chunks`` are the most views that their profiles take at once."""
        self.chunks = chunks
        self._device = device
        self._sessions = _Sessions(device, plans, caches)
        # Also at the end of the process, as long as the libraries still work.
        self.close = weakref.finalize(self, self._sessions.close)
        """Give the GPU's memory back, after the last call. It happens by itself when the object goes away."""

    def forward(
        self, prepared: PreparedViews, chunks: ChunkSizes | None = None, progress: Progress | None = None
    ) -> list[dict[str, NDArray[Any]]]:
        """As :meth:`mapengine.runtime.pipeline.Pipeline.forward`. Samples run one after the other.

        Raises:
            ProfileError: the plans were not built for so many views, or for their size.
            OutOfMemory: the GPU's memory does not suffice.
            BackendError: the GPU or the library failed.
        """
        sizes = self._limited(chunks or self.chunks)
        with self._device.current():
            if prepared.batch == 1:
                with contextlib.closing(self._run(prepared, 0, sizes, progress)) as views:
                    return [forward_outputs(**raw, scale=scale) for raw, scale in views]
            samples = [list(self._run(prepared, sample, sizes, progress)) for sample in range(prepared.batch)]
        predictions = []
        for parts in zip(*samples, strict=True):
            raw = {name: np.concatenate([part[0][name] for part in parts]) for name in parts[0][0]}
            predictions.append(forward_outputs(**raw, scale=np.concatenate([part[1] for part in parts])))
        return predictions

    def _run(
        self, prepared: PreparedViews, sample: int, chunks: ChunkSizes, progress: Progress | None
    ) -> Generator[tuple[dict[str, NDArray[Any]], NDArray[np.float32]], None, None]:
        images = [np.asarray(image[sample : sample + 1], np.float32) for image in prepared.images]
        geometry = [_of_sample(view, sample) for view in prepared.geometry]
        request = Request(len(images), prepared.height // PATCH_SIZE, prepared.width // PATCH_SIZE, chunks)
        report = progress
        if progress is not None and prepared.batch > 1:
            before, batch, tell = sample, prepared.batch, progress

            def report(stage: str, done: int, total: int) -> None:
                tell(stage, before * total + done, batch * total)

        with self._sessions.taken(request, sum(view is not None for view in geometry)) as session:
            yield from session.run(images, geometry, report)

    def _limited(self, chunks: ChunkSizes) -> ChunkSizes:
        """What was asked for, as far as the plans' profiles go."""
        limits = self.chunks.to_json()
        return replace(chunks, **{stage: min(views, limits[stage]) for stage, views in chunks.to_json().items()})


class _Sessions:
    """The sessions of a pipeline: those that run, and a few that wait for the next call of their shape."""

    def __init__(self, device: Device, plans: Mapping[str, Plan], caches: RuntimeCaches) -> None:
        self._device = device
        self._plans = plans
        self._caches = caches
        self._idle: list[Session] = []  # the newest last
        self._running = 0
        self._changed = threading.Condition()
        self._making = threading.Lock()

    @contextlib.contextmanager
    def taken(self, request: Request, geometry: int) -> Iterator[Session]:
        """A session for one call with ``geometry`` views that bring geometry; the block's failure closes it."""
        session = self._find(request)
        is_new = session is None or not session.is_prepared(geometry)
        if session is None or is_new:
            session = self._make(request, geometry, session)
        with self._changed:
            self._running += 1
        try:
            yield session
            if is_new:  # its kernels were compiled now
                self._caches.save()
        except BaseException:
            session.close()
            with self._changed:
                self._running -= 1
                self._changed.notify_all()
            raise
        with self._changed:
            self._running -= 1
            self._idle.append(session)
            surplus, self._idle = self._idle[:-_MOST_IDLE], self._idle[-_MOST_IDLE:]
            self._changed.notify_all()
        for old in surplus:
            old.close()

    def close(self) -> None:
        """Save what the library compiled and give back what no call uses. Never raises."""
        with contextlib.suppress(Exception), self._device.current():
            self._caches.save()
            self._close_idle()

    def _find(self, request: Request) -> Session | None:
        with self._changed:
            for session in reversed(self._idle):
                if session.request == request:
                    self._idle.remove(session)
                    return session
        return None

    def _make(self, request: Request, geometry: int, session: Session | None) -> Session:
        # One at a time: two calls could each hold a part of the memory that either needs.
        with self._making:
            while True:
                session = session or Session(self._device, self._plans, request)
                try:
                    session.prepare(geometry)
                    return session
                except OutOfMemory:
                    session.close()
                    session = None
                    if not self._make_room():
                        raise
                except BaseException:
                    session.close()
                    raise

    def _make_room(self) -> bool:
        """Free memory that only waits for another shape to come back, or wait for a call to end."""
        with self._changed:
            if not self._idle and not self._running:
                return False
            running = self._running
            self._changed.wait_for(lambda: self._idle or self._running < running)
        self._close_idle()
        return True

    def _close_idle(self) -> None:
        with self._changed:
            sessions, self._idle = self._idle, []
        for session in sessions:
            session.close()


def _of_sample(view: ViewGeometry | None, sample: int) -> ViewGeometry | None:
    """What a view brings for one sample; None for nothing."""
    if view is None or not view.flags[sample].any():
        return None
    part = slice(sample, sample + 1)
    values = (getattr(view, name) for name in ViewGeometry.__dataclass_fields__)
    return ViewGeometry(*(None if value is None else value[part] for value in values))  # type: ignore[arg-type]
