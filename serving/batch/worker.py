"""A worker: one engine, and scene after scene from its files to its folder. The same here and on a cluster."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from mapengine.runtime import Engine, Scene
from mapengine.runtime.errors import InputError, IntegrityError, MapEngineError, OutputError, kept_warnings, one_line
from mapengine.runtime.inputs.formats.table import in_natural_order
from mapengine.runtime.inputs.sources import open_views
from mapengine.runtime.inputs.stored_view import StoredView
from mapengine.runtime.outputs.formats.table import FORMATS
from mapengine.runtime.system.machine import resident_bytes
from mapengine.runtime.system.sizes import gigabytes

from .addresses import content_digest, fetched, is_remote, named_files, signature_of, signatures
from .job import MOST_ATTEMPTS, Attempts, Job
from .listing import SceneEntry
from .records import DONE, SceneResult, SourceFile, is_complete, read_result, write_result
from .scene_options import SceneOptions

_WATCH_SECONDS = 0.02
_FOR_ALL = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EROFS") if hasattr(errno, name)}
"""Errors of writing that the next scene would meet, too."""


class BatchStopped(MapEngineError):
    """No scene can be done any more; says why."""


@dataclass(frozen=True)
class Answer:
    """What a worker says of a scene: its result, whether that is new, or why no scene can be done."""

    result: SceneResult | None = None
    is_new: bool = True
    stop: str = ""


def answer(job: Job, offsets: Sequence[int]) -> list[Answer]:
    """Do the scenes at some ``offsets`` of the file of scenes to do; nothing that is wrong with them raises.

    While one scene is saved, the next is reconstructed.
    """
    try:
        worker = _worker_of(job)
        begun = []
        for offset in offsets:
            try:
                begun.append(worker.begin(job.entry_at(offset)))
            except FileNotFoundError:
                raise BatchStopped(
                    f"{job.place}: a worker does not find it; OUT must be in a folder that every worker sees under the "
                    "same path"
                ) from None
    except BatchStopped as stop:
        return [Answer(stop=str(stop))]
    return [_outcome(future) for future in begun]


def _outcome(future: Future[Answer]) -> Answer:
    try:
        return future.result()
    except BatchStopped as stop:
        return Answer(stop=str(stop))


@lru_cache(maxsize=1)
def _worker_of(job: Job) -> SceneWorker:
    return SceneWorker(job)


class SceneWorker:
    """An engine that does the scenes of a job; while one is saved, the next is reconstructed.

    Raises:
        BatchStopped: when it is made: the engine cannot be loaded here.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._saver = ThreadPoolExecutor(1)
        self._saving: Future[Answer] | None = None
        try:
            self._engine = _load(job)
            if self._engine.digest != job.digest:
                raise IntegrityError(f"{job.bundle}: is another bundle here than where the batch was started")
            if job.memory is not None and resident_bytes() > job.memory:
                raise InputError(
                    f"the engine alone takes {gigabytes(resident_bytes())} of memory, and a worker may take "
                    f"{gigabytes(job.memory)}; allow more"
                )
        except MapEngineError as error:
            raise BatchStopped(str(error)) from error

    def begin(self, entry: SceneEntry) -> Future[Answer]:
        """Do a scene, unless it was done already, and begin to save it; what fails is recorded.

        Raises:
            BatchStopped: the run is over, or nothing can be written any more; of saving, the future raises it.
        """
        job = self._job
        folder = job.folder(entry.id)
        known = read_result(folder)
        if known is not None and not is_complete(folder, known):
            known = None
        if known is not None and known.run == job.run:  # by a worker that ended before it could say so
            return _ready(Answer(known))
        options = job.options_of(entry)
        blank = SceneResult(entry.id, DONE, job.digest, job.digest_of(options), job.run)
        attempts = Attempts.of(job, entry.id)
        count, reason = attempts.read()
        if reason or count >= MOST_ATTEMPTS:
            why = reason or f"its worker ended {count} times while it was at work on this scene, without a word"
            return _ready(Answer(self._record(folder, blank.failed(why))))
        if count:  # it may end this process, too, which is not to be laid at the door of the scene before it
            self._wait()
        self._check_running()
        try:
            attempts.write(count + 1)
            with self._watched(attempts, count + 1):
                return self._do(entry, options, blank, known, attempts)
        except FileNotFoundError:  # of the run's own folder
            self._check_running()
            raise

    def _wait(self) -> None:
        """Wait until the scene before is saved."""
        if self._saving is not None:
            wait([self._saving])

    def _check_running(self) -> None:
        """Write nothing for a run that is over: another one may be at work on the same scene."""
        if not Path(self._job.place).is_dir():
            raise BatchStopped("this run is over")

    def _do(
        self,
        entry: SceneEntry,
        options: dict[str, Any],
        blank: SceneResult,
        known: SceneResult | None,
        attempts: Attempts,
    ) -> Future[Answer]:
        folder = self._job.folder(entry.id)
        start = time.perf_counter()
        work = Path(f"{attempts.path}-fetched")

        def end(write: Callable[[], Answer]) -> Answer:
            """Do the last part; whatever happens, the scene has a result and leaves nothing else."""
            try:
                with self._recording(folder, blank, start) as failure:
                    found = write()
                return found if failure.answer is None else failure.answer
            finally:
                shutil.rmtree(work, ignore_errors=True)
                attempts.clear()

        with self._recording(folder, blank, start) as failure:
            made, scene = self._make(entry, SceneOptions.of(options), blank, known, work, start)
        if failure.answer is not None or scene is None:
            answer = failure.answer or Answer(made, is_new=False)
            return _ready(end(lambda: answer))
        self._wait()  # at most one finished scene is kept beside the one that is made
        self._saving = self._saver.submit(end, lambda: Answer(self._save(folder, made, scene)))
        if self._job.memory is not None:  # what the next one takes is then its own
            self._wait()
        return self._saving

    @contextmanager
    def _recording(self, folder: Path, blank: SceneResult, start: float) -> Iterator[_Failure]:
        """Record what the block raises as the scene's failure, unless it would meet every scene."""
        found = _Failure()
        try:
            yield found
            return
        except BatchStopped:
            raise
        except MapEngineError as error:
            if isinstance(error, OutputError) and error.errno in _FOR_ALL:
                raise BatchStopped(str(error)) from error
            failure = blank.failed(str(error))
        except MemoryError:
            failure = blank.failed("out of memory; give fewer or smaller views, or run fewer workers")
        except Exception as error:
            self._check_running()
            failure = blank.failed(f"unexpected {type(error).__name__}: {one_line(error)}")
        found.answer = Answer(self._record(folder, replace(failure, seconds=time.perf_counter() - start)))

    def _make(
        self,
        entry: SceneEntry,
        options: SceneOptions,
        blank: SceneResult,
        known: SceneResult | None,
        work: Path,
        start: float,
    ) -> tuple[SceneResult, Scene | None]:
        """Reconstruct a scene; or return the known result without one, where its bytes turn out to be the same."""
        with kept_warnings() as warnings:
            asked = [*entry.inputs, *options.files]
            before = signatures(asked)
            inputs, given = self._local(entry, options, work)
            views = open_views(in_natural_order([Path(path) for path in inputs]), **given, options=options.reading)
            beside = _beside(views, [*inputs, *_paths(given)])
            fetched_to = f"{work}{os.sep}"  # what is remote is compared where it comes from
            before |= {path: signature_of(path) or "" for path in beside if not path.startswith(fetched_to)}
            files = [*named_files([*inputs, *_paths(given)]), *((f"+/{os.path.basename(p)}", p) for p in beside)]
            digest = content_digest(files)
            if known is not None and _decided_by(known) == (DONE, blank.bundle, blank.options, digest):
                return known, None
            began = time.perf_counter()
            scene = self._engine.reconstruct_views(views, size=options.size, frame=options.frame, **options.inference)
            engine_seconds = time.perf_counter() - began
        if any(before.get(path) != signature for path, signature in signatures(asked).items()):
            raise InputError("its files were written to while they were read; run it again")
        result = replace(
            blank,
            seconds=time.perf_counter() - start,
            engine_seconds=engine_seconds,
            views=len(views),
            points=int(scene.mask.sum()),
            scale=float(scene.metric_scale),
            inputs=digest,
            sources=tuple(SourceFile(path, signature) for path, signature in before.items()),
            warnings=tuple(warnings),
        )
        return result, scene

    def _save(self, folder: Path, result: SceneResult, scene: Scene) -> SceneResult:
        self._check_running()

        def save(new: Path) -> None:
            for form in (form for form in FORMATS if form.name in self._job.formats):
                scene.save(new / (form.name if form.is_folder else f"scene{form.suffixes[0]}"), format=form.name)

        start = time.perf_counter()
        with kept_warnings() as warnings:
            written = write_result(folder, result, save)
        return replace(
            written, seconds=result.seconds + time.perf_counter() - start, warnings=(*result.warnings, *warnings)
        )

    def _local(self, entry: SceneEntry, options: SceneOptions, work: Path) -> tuple[list[str], dict[str, Any]]:
        """Inputs and what is given with them, as paths of this machine."""
        inputs = fetched(entry.inputs, work / "inputs")
        given = dict(options.given)
        for name in list(given):
            if isinstance(given[name], str) and is_remote(given[name]):
                (given[name],) = fetched([given[name]], work / name)
        return inputs, given

    def _record(self, folder: Path, failure: SceneResult) -> SceneResult:
        """Write a failure; where something that is not ours is in the way, it is in the table alone."""
        try:
            return write_result(folder, failure)
        except OutputError as error:
            if error.errno in _FOR_ALL:
                raise BatchStopped(str(error)) from error
            return failure

    @contextmanager
    def _watched(self, attempts: Attempts, count: int) -> Iterator[None]:
        """End this process, with a word for the next, when it takes more memory than it may."""
        limit = self._job.memory
        if limit is None:
            yield
            return
        done = threading.Event()

        def watch() -> None:
            while not done.wait(_WATCH_SECONDS):
                taken = resident_bytes()
                if taken > limit:
                    attempts.write(
                        count,
                        f"it takes more than the {gigabytes(limit)} of memory that a worker may take; give fewer or "
                        "smaller views, or allow more",
                    )
                    os._exit(1)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


@dataclass
class _Failure:
    """What was recorded of a scene that failed."""

    answer: Answer | None = None


def _ready(answer: Answer) -> Future[Answer]:
    """A future that has its result."""
    future: Future[Answer] = Future()
    future.set_result(answer)
    return future


def _load(job: Job) -> Engine:
    """The engine, with the limit where its memory was measured: a call that is too large is then not begun."""
    options: dict[str, Any] = {"threads": job.threads}
    if job.memory is not None:
        try:
            return Engine.load(job.bundle, job.backend, **options, memory_limit=job.memory)
        except InputError:  # not planned on this machine; the watch alone holds the limit
            pass
    return Engine.load(job.bundle, job.backend, **options)


def _decided_by(result: SceneResult) -> tuple[str, str, str, str | None]:
    return result.state, result.bundle, result.options, result.inputs


def _paths(given: dict[str, Any]) -> list[str]:
    return [given[name] for name in ("intrinsics", "masks") if isinstance(given.get(name), str)]


def _beside(views: list[StoredView], inputs: list[str]) -> list[str]:
    """Files of the views that are not among the inputs, such as images that a list names."""
    listed = {os.path.abspath(path) for path in signatures(inputs)}
    files = {os.path.abspath(file): None for view in views for file in view.files.files()}
    return [file for file in files if file not in listed]
