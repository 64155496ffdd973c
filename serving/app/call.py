"""One reconstruction for a visit: what the page asks for, the call, and what it took."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from mapengine.runtime import Engine, Scene
from mapengine.runtime.errors import InputError, kept_warnings
from mapengine.runtime.inputs.formats.view_files import ReadOptions
from mapengine.runtime.inputs.raw_view import RawView
from mapengine.runtime.inputs.resolutions import Size
from mapengine.runtime.inputs.sources import open_views
from mapengine.runtime.inputs.stored_view import StoredView
from mapengine.runtime.options import LIMITS, InferOptions
from mapengine.runtime.profiling.subjects import StageClock
from mapengine.runtime.system.machine import can_reset_peak, peak_bytes, reset_peak, resident_bytes
from mapengine.runtime.system.sizes import parse_pixels
from mapengine.runtime.typed_json.codec import read_json
from mapengine.runtime.typed_json.fields import Bounds, Text
from mapengine.runtime.typed_json.text import Document

READING = "reading"
"""The phase of a call before the stages of the network: files are read and resized."""
FINISHING = "post-processing"

_REQUEST = Document("the request", "load the page again", InputError, defaults=True)
_MOST = 2**31


@dataclass(frozen=True)
class CallOptions:
    """What a page asks for.

    Attributes:
        files: numbers of its uploads.
        every: as in :class:`ReadOptions`.
        max_views: likewise.
        size: ``WxH`` that the images are brought to; empty for the nearest that is usual.
        confidence_percentile: as in :class:`InferOptions`; 0 leaves out nothing.
        mask_edges: likewise.
    """

    files: tuple[Annotated[int, Bounds(0, _MOST)], ...]
    every: Annotated[int, Bounds(1, _MOST)] = 1
    max_views: Annotated[int, Bounds(1, _MOST)] | None = None
    size: Annotated[str, Text("WIDTHxHEIGHT in pixels, or empty", r"\s*|\s*\d{1,6}[xX]\d{1,6}\s*", False)] = ""
    confidence_percentile: Annotated[float, Bounds(*LIMITS["confidence_percentile"])] = 0.0
    mask_edges: bool = InferOptions.mask_edges

    @classmethod
    def of_json(cls, text: bytes) -> CallOptions:
        """Read them.

        Raises:
            InputError: something else than the page sends.
        """
        return read_json(cls, text, _REQUEST)


class Cancelled(Exception):
    """Somebody stopped the call, or left."""


@dataclass(frozen=True, eq=False)
class _WatchedView(StoredView):
    """A view that tells when it was read."""

    read_one: Callable[[], None] = field(kw_only=True)

    def resized(self, target: Size) -> RawView:
        result = super().resized(target)
        self.read_one()
        return result


@dataclass(frozen=True)
class FoundViews:
    """The views that a call will have, none of which is decoded yet, and (W, H) of them if that was chosen."""

    views: list[StoredView]
    size: Size | None


def find_views(engine: Engine, paths: list[Path], options: CallOptions) -> FoundViews:
    """Return the views behind uploads, for a call that can be.

    Raises:
        InputError: files or options that cannot be used, or more than the engine serves.
        MemoryLimitError: they do not fit.
    """
    size = parse_pixels(options.size) if options.size.strip() else None
    views = open_views(paths, options=ReadOptions(every=options.every, max_views=options.max_views))
    engine.check_call(views, size=size)
    return FoundViews(views, size)


class Call:
    """A reconstruction that waits, runs or has ended.

    Attributes:
        options: of it.
        state: ``"waiting"``, ``"running"``, ``"done"``, ``"failed"`` or ``"cancelled"``.
        stage, done, total: how far it is.
        problem: why it failed, as a sentence.
    """

    def __init__(self, options: CallOptions, changed: Callable[[], None]) -> None:
        """Wait. ``changed`` is called when one of the attributes has changed."""
        self.options = options
        self.state = "waiting"
        self.stage, self.done, self.total = "", 0, 0
        self.problem = ""
        self._changed = changed
        self._stopped = threading.Event()

    @property
    def active(self) -> bool:
        """Whether it has not ended."""
        return self.state in ("waiting", "running")

    def stop(self) -> None:
        """Ask it to end; it does so after what the network does now."""
        self._stopped.set()

    def check_stopped(self) -> None:
        """Raise :class:`Cancelled` if it was asked to end."""
        if self._stopped.is_set():
            raise Cancelled

    def become(self, state: str, problem: str = "") -> None:
        """Change its state."""
        self.state, self.problem = state, problem
        self._changed()

    def report(self, stage: str, done: int, total: int) -> None:
        """Say how far it is; raises :class:`Cancelled` if it was asked to end."""
        self.check_stopped()
        self.stage, self.done, self.total = stage, done, total
        self._changed()


def reconstruct(engine: Engine, paths: list[Path], call: Call) -> tuple[Scene, dict[str, Any]]:
    """Run a call.

    Returns:
        The scene, and what the page says of it.

    Raises:
        InputError, MemoryLimitError, BackendError: as :meth:`Engine.reconstruct`.
        Cancelled: it was asked to end.
    """
    options = call.options
    call.report(READING, 0, 0)
    before, is_measured = resident_bytes(), can_reset_peak()
    if is_measured:
        reset_peak()
    with kept_warnings() as warnings:
        start, clock, lock, read = time.perf_counter(), StageClock(), threading.Lock(), 0
        found = find_views(engine, paths, options)
        total = len(found.views)

        def progress(stage: str, done: int, of: int) -> None:
            clock(stage, done, of)
            call.report(stage, done, of)

        def read_one() -> None:
            nonlocal read
            with lock:
                read += 1
                progress(READING, read, total)

        scene = engine.reconstruct_views(
            [_WatchedView(v.files, v.where, v.name, v.depth_resize, read_one=read_one) for v in found.views],
            size=found.size,
            progress=progress,
            mask_edges=options.mask_edges,
            apply_confidence_mask=options.confidence_percentile > 0,
            confidence_percentile=options.confidence_percentile,
        )
        end = time.perf_counter()
    scene.sources = ()  # the uploads are deleted
    peak = peak_bytes() if is_measured else None
    seconds = dict(clock.seconds)
    seconds[FINISHING] = end - start - sum(seconds.values())
    return scene, {
        **_facts(scene),
        "seconds": seconds,
        "total": end - start,
        "memory": {"peak": peak, "before": before, "device": engine.device_bytes()},
        "notes": list(dict.fromkeys(warnings)),
        "options": {name: value for name, value in asdict(options).items() if name != "files"},
    }


def _facts(scene: Scene) -> dict[str, Any]:
    depths = scene.depth[scene.mask]
    return {
        "points": int(depths.size),
        "pixels": scene.mask.size,
        "scale": scene.metric_scale,
        "depth": float(np.median(depths)) if depths.size else None,
    }
