"""Sweeps over numbers of views, sizes, bundles and baselines, with the contenders in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..backend_table import EIGHT_BIT
from ..errors import InputError, MapEngineError
from ..system.children import Worker
from .statistics import Summary
from .subjects import EngineSubject, MeasuredSubject, Run, Subject

BOUNDARY = (
    "One call is timed from image files on disk to a Scene in memory: reading, decoding, resizing, the network, masks, "
    "points. Not timed: starting the process, loading the bundle, the warm-up calls, saving. Pre-processing is "
    "everything before the network, post-processing everything after it, a stage from the report of the one before it "
    "to its own. What a GPU does is timed once more by marks in its queue, copies apart. Contenders run in turn, each "
    "in a process of its own."
)

INTERRUPTED = "interrupted"

Report = Callable[[str], None]


@dataclass(frozen=True)
class Contender:
    """What is timed: a name, and what loads it in its process (picklable: a class of a module, or a partial of one)."""

    label: str
    load: Callable[[], Subject]

    @classmethod
    def bundle(cls, path: Path, backend: str, threads: int | None) -> Contender:
        """Return the contender for an engine bundle on a backend."""
        return cls(f"{path} ({backend})", partial(EngineSubject, str(path), backend, threads))


@dataclass(frozen=True)
class Settings:
    """How a sweep is run.

    Attributes:
        views, sizes: what is swept; sizes are (width, height).
        runs: timed calls of each contender and configuration.
        seconds: budget of a configuration, over all its contenders; it may end with fewer runs, but not below
            ``LEAST_RUNS``.
        warmup: calls before those.
    """

    views: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    runs: int = 30
    seconds: float = 60.0
    warmup: int = 2

    LEAST_RUNS = 3

    def __post_init__(self) -> None:
        if not self.views or not self.sizes or min(self.views) < 1:
            raise InputError("there is nothing to profile; give at least one number of views and one size")
        if self.runs < 1 or not self.seconds > 0 or self.warmup < 0:
            raise InputError(
                f"{self.runs} runs in {self.seconds:g} s after {self.warmup} warm-up calls cannot be; runs and seconds "
                "must be positive"
            )


def profile(
    contenders: Sequence[Contender],
    photos: Callable[[int, int, int], list[Path]],
    settings: Settings,
    report: Report = lambda text: None,
) -> dict[str, Any]:
    """Measure every contender in every configuration.

    Args:
        contenders: with different labels. One that cannot be loaded or called is left out, and the record says why.
        photos: image files for (views, width, height).
        settings: see :class:`Settings`.
        report: called with a line of progress.

    Returns:
        ``boundary``, ``settings``, ``results`` (one per contender and configuration), ``not_measured`` and
        ``ended_early``: None, or what ended the sweep (:data:`INTERRUPTED`, or the message of an error); the results
        are then those that there are, the last ones perhaps of fewer runs.

    Raises:
        InputError: two contenders of one name, or none.
        MapEngineError: nothing could be measured.
        KeyboardInterrupt: interrupted before anything was measured.
    """
    if not contenders or len({contender.label for contender in contenders}) < len(contenders):
        raise InputError("contenders must have different names, and there must be one at least")
    results: list[dict[str, Any]] = []
    missing: list[dict[str, Any]] = []
    workers: list[Worker] = []
    ended_early: str | None = None
    try:
        for contender in contenders:
            report(f"loading {contender.label}")
            try:
                workers.append(Worker.start(contender.label, partial(MeasuredSubject, contender.load)))
            except MapEngineError as error:
                missing.append({"contender": contender.label, "why": _reason(error, contender.label)})
        for size in settings.sizes:
            for views in settings.views:
                report(f"{views} views of {size[0]}x{size[1]}: {len(workers)} contenders in turn")
                _configuration(workers, photos(views, *size), size, settings, report, results, missing)
    except (KeyboardInterrupt, Exception) as error:
        if not results:
            raise
        ended_early = INTERRUPTED if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__
    finally:
        for worker in workers:
            if ended_early is None:
                worker.close()
            else:
                worker.kill()
    if not results:
        raise MapEngineError("nothing was measured: " + "; ".join(f"{m['contender']}: {m['why']}" for m in missing))
    _mark_slow(results)
    return {
        "boundary": BOUNDARY,
        "settings": {"runs": settings.runs, "seconds": settings.seconds, "warmup": settings.warmup},
        "results": results,
        "not_measured": missing,
        "ended_early": ended_early,
    }


def _configuration(
    workers: Sequence[Worker],
    files: list[Path],
    size: tuple[int, int],
    settings: Settings,
    report: Report,
    results: list[dict[str, Any]],
    missing: list[dict[str, Any]],
) -> None:
    """Measure one number of views and size: add to ``results``, also when this is ended, and to ``missing``."""
    request = [str(file) for file in files], size
    runs: dict[str, list[Run]] = {worker.label: [] for worker in workers}
    able = list(workers)

    def call(worker: Worker) -> Run | None:
        try:
            run: Run = worker.call(*request)
            return run
        except MapEngineError as error:
            able.remove(worker)
            why = {"contender": worker.label, "why": _reason(error, worker.label)}
            missing.append({**why, "views": len(files), "size": list(size)})
            return None

    try:
        for worker in workers:
            for _ in range(settings.warmup):
                if call(worker) is None:
                    break
        start = time.monotonic()
        for done in range(settings.runs):
            if done >= settings.LEAST_RUNS and time.monotonic() - start > settings.seconds:
                break
            for worker in list(able):
                run = call(worker)
                if run is not None:
                    runs[worker.label].append(run)
    finally:
        for worker in workers:
            if runs[worker.label]:
                summary = Summary.of([run.seconds["total"] for run in runs[worker.label]])
                what = f"{worker.label}, {len(files)} views of {size[0]}x{size[1]}"
                report(f"{what}: {1e3 * summary.p50:.1f} ms, {summary.runs} runs")
                results.append(_result(worker, runs[worker.label], len(files), size))


def _result(worker: Worker, runs: Sequence[Run], views: int, size: tuple[int, int]) -> dict[str, Any]:
    phases = _summaries([{k: v for k, v in run.seconds.items() if k != "total"} for run in runs])
    on_device = [run.device_seconds for run in runs if run.device_seconds is not None]
    peaks = [run.peak_bytes for run in runs if run.peak_bytes is not None]
    device = [run.device_bytes for run in runs if run.device_bytes is not None]
    return {
        "contender": worker.label,
        **worker.facts,
        "views": views,
        "size": list(size),
        "load_s": round(worker.load_s, 3),
        "end_to_end_s": Summary.of([run.seconds["total"] for run in runs]).to_json(),
        "phases_s": phases,
        "device_s": _summaries(on_device) if on_device else None,
        "peak_process_mb": round(max(peaks) / 1e6, 1) if peaks else None,
        "device_mb": round(max(device) / 1e6, 1) if device else None,
    }


def _summaries(runs: Sequence[dict[str, float]]) -> dict[str, Any]:
    return {name: Summary.of([run.get(name, 0.0) for run in runs]).to_json() for name in runs[0]}


def _mark_slow(results: Sequence[dict[str, Any]]) -> None:
    """Name in each 8-bit result the fastest wider bundle of its model and backend that is at least as fast, or None."""
    for result in results:
        if result.get("precision") not in EIGHT_BIT:
            continue
        same = ("model", "backend", "views", "size")
        wider = [
            other
            for other in results
            if other.get("precision") not in EIGHT_BIT
            and other.get("kind") == "bundle"
            and all(other.get(key) == result.get(key) for key in same)
            and other["end_to_end_s"]["p50"] <= result["end_to_end_s"]["p50"]
        ]
        best = min(wider, key=lambda other: other["end_to_end_s"]["p50"], default=None)
        result["not_faster_than"] = None if best is None else best["contender"]


def _reason(error: MapEngineError, label: str) -> str:
    return str(error).removeprefix(f"{label}: ")
