"""A run of a batch: what is listed is compared with what is there, and the rest is handed to a pool."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mapengine.runtime.bundle.store import Bundle
from mapengine.runtime.errors import MapEngineError, warn
from mapengine.runtime.writing.files import make_folders, real_path, write_text, writing
from mapengine.runtime.writing.recognition import RECORD, marker, our_files
from mapengine.runtime.writing.staging import clean, staging

from .addresses import is_folder
from .job import Job
from .ledger import RESULTS, Ledger
from .listing import SceneEntry, list_scenes
from .pools import Pool
from .records import DONE, FAILED, SCENES, SceneResult, are_unchanged, is_complete, read_result
from .scene_options import PATHS
from .worker import Answer

BATCH_KIND = "batch"


class BatchError(MapEngineError):
    """A batch was given up, or some of its scenes failed; what is done is there."""


@dataclass
class Tally:
    """How far a batch is.

    Attributes:
        scenes: that are listed. before: that were done already, of which ``reread`` had files with new times.
        missing, failed_before, changed, touched: that are to do: without a result, with a failure, with another bundle
            or other options, and with files that may have changed.
        done, failed: in this run. last_error: of the scene that failed last.
    """

    scenes: int = 0
    before: int = 0
    missing: int = 0
    failed_before: int = 0
    changed: int = 0
    touched: int = 0
    reread: int = 0
    done: int = 0
    failed: int = 0
    last_error: str = ""
    seconds: float = 0.0

    @property
    def todo(self) -> int:
        """How many there were to do when the run began."""
        return self.missing + self.failed_before + self.changed + self.touched

    @property
    def left(self) -> int:
        """How many there are still to do."""
        return self.todo - self.done - self.failed - self.reread

    def plan(self) -> str:
        """Return what is to be done, for people."""
        kinds = {
            "missing": self.missing,
            "failed before": self.failed_before,
            "with another bundle or other options": self.changed,
            "with files that were written to": self.touched,
        }
        why = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
        return f"{self.scenes} scenes: {self.before} are done, {self.todo} to do" + (f" ({why})" if why else "")


@dataclass(frozen=True)
class Batch:
    """What is to be done with which scenes.

    Attributes:
        bundle: folder of the bundle. scenes: address of the list. out: folder of the results.
        options: of all scenes, by name. formats: that each scene is saved in.
        backend, threads: as ``Engine.load`` takes them.
        memory: bytes that a worker may take; None for any.
        max_failures: how many scenes may fail before the rest is left; None for any number.
    """

    bundle: Path
    scenes: str
    out: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    formats: tuple[str, ...] = ("npz",)
    backend: str = "auto"
    threads: int | None = None
    memory: int | None = None
    max_failures: int | None = None


def run_batch(
    batch: Batch,
    pool: Pool,
    planned: Callable[[Tally], None] = lambda tally: None,
    progress: Callable[[Tally, Answer], None] = lambda tally, answer: None,
) -> Tally:
    """Do the scenes of a batch that are not done, and write the table of all of them.

    Args:
        planned: called once, when it is known what is to do.
        progress: called after each scene.

    Raises:
        InputError: the list is wrong; nothing was done.
        BundleError: there is no such bundle.
        OutputError: the folder is not ours, or another process writes it now.
        BatchError: more scenes failed than may, or nothing more can be done; the table says what is done.
        KeyboardInterrupt: with how far it came.
    """
    start = time.monotonic()
    bundle = Bundle.open(batch.bundle, verify=False)
    tally = Tally()
    with writing(batch.out) as made:
        out = real_path(batch.out)
        our_files(out, BATCH_KIND)
        made += make_folders(out)
        with staging(out, inside=True, exclusive=True) as staged, Ledger() as ledger:
            our_files(out, BATCH_KIND)
            job = _job(batch, bundle, out, staged.place)
            with job.todo.open("w", encoding="utf-8", newline="\n") as todo:
                for entry in list_scenes(batch.scenes):
                    ledger.add(entry)
                    tally.scenes += 1
                    if not _was_done(job, entry, ledger, tally):
                        todo.write(entry.as_line())
            write_text(out / RECORD, BATCH_KIND, json.dumps({"generator": marker(BATCH_KIND), "files": {}}) + "\n")
            made.clear()  # from here on the folder stays
            clean(out / SCENES)
            planned(tally)
            try:
                with _naming_what_is_done(tally), _taking_in_what_is_there(job, ledger, tally):
                    _do(job, pool, ledger, tally, batch.max_failures, progress)
            finally:
                clean(out / SCENES)  # what a worker that was ended has left
                tally.seconds = time.monotonic() - start
                ledger.write_results(out / RESULTS, by_id=is_folder(batch.scenes))
    return tally


def _job(batch: Batch, bundle: Bundle, out: Path, place: Path) -> Job:
    options = dict(batch.options)
    for name in PATHS:
        if isinstance(options.get(name), str) and "://" not in options[name]:
            options[name] = os.path.abspath(options[name])
    return Job(
        bundle=str(real_path(batch.bundle)),
        digest=bundle.digest,
        backend=batch.backend,
        threads=batch.threads,
        memory=batch.memory,
        options=json.dumps(options),
        formats=tuple(sorted(batch.formats)),
        out=str(out),
        place=str(place),
        run=secrets.token_hex(8),
    )


def _was_done(job: Job, entry: SceneEntry, ledger: Ledger, tally: Tally) -> bool:
    """Whether a scene's result is there and up to date, as far as that can be seen without reading its files."""
    folder = job.folder(entry.id)
    known = read_result(folder)
    if known is None or (known.state == DONE and not is_complete(folder, known)):
        tally.missing += 1
        return False
    if known.state == FAILED:
        tally.failed_before += 1
        return False
    options = job.options_of(entry)
    if (known.bundle, known.options) != (job.digest, job.digest_of(options)):
        tally.changed += 1
        return False
    more = [options[name] for name in PATHS if isinstance(options.get(name), str)]
    if not are_unchanged(known.sources, entry, more):
        tally.touched += 1
        return False
    tally.before += 1
    ledger.finish(known)
    return True


def _do(
    job: Job,
    pool: Pool,
    ledger: Ledger,
    tally: Tally,
    max_failures: int | None,
    progress: Callable[[Tally, Answer], None],
) -> None:
    if not tally.todo:
        return
    with closing(pool.run(job, _offsets(job.todo), tally.todo)) as answers:
        for answer in answers:
            if answer.result is None:
                raise BatchError(f"{answer.stop}; {tally.done} scenes were done in this run, {tally.left} are left")
            result = answer.result
            ledger.finish(result)
            if not answer.is_new:
                tally.reread += 1
            elif result.state == DONE:
                tally.done += 1
            else:
                tally.failed += 1
                tally.last_error = f"{result.id}: {result.error}"
            for warning in result.warnings:
                warn(f"{result.id}: {warning}")
            progress(tally, answer)
            if max_failures is not None and tally.failed > max_failures:
                raise BatchError(
                    f"{tally.failed} scenes failed, and {max_failures} may (--max-failures); the last is "
                    f"{tally.last_error}; {tally.left} scenes are left, and a second run goes on with them"
                )


def _offsets(todo: Path) -> Iterator[int]:
    """Where the lines of a file begin."""
    offset = 0
    with todo.open("rb") as file:
        for line in file:
            yield offset
            offset += len(line)


def _written_in(job: Job, ledger: Ledger) -> list[SceneResult]:
    """The results of this run among the scenes that nothing is known of."""
    found = (read_result(job.folder(scene)) for scene in ledger.pending())
    return [result for result in found if result is not None and result.run == job.run]


@contextmanager
def _taking_in_what_is_there(job: Job, ledger: Ledger, tally: Tally) -> Iterator[None]:
    """Count what workers finished and could not say any more, when the block fails."""
    try:
        yield
    except BaseException:
        for result in _written_in(job, ledger):
            ledger.finish(result)
            tally.done += result.state == DONE
            tally.failed += result.state == FAILED
        raise


@contextmanager
def _naming_what_is_done(tally: Tally) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"{tally.before + tally.reread + tally.done} of {tally.scenes} scenes are done; the same command goes on"
        ) from None
