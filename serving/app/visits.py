"""Visits: open pages, each with its uploads, its call and its result, and the one engine that they take turns at."""

from __future__ import annotations

import re
import secrets
import shutil
import sys
import threading
import time
import traceback
from collections import deque
from pathlib import Path
from typing import Any

from mapengine.runtime import Engine, Scene
from mapengine.runtime.errors import InputError, MapEngineError, one_line

from ..pages.own_folder import own_folder
from ..pages.shown_scene import ShownScene
from .call import Call, CallOptions, Cancelled, find_views, reconstruct
from .limits import UploadLimits
from .uploads import Upload, Uploads

IDLE_SECONDS = 600.0
"""After which a visit that does nothing makes room for another, if there are too many."""
ABSENT_SECONDS = 30.0
"""After which a visit ends whose page does not listen: its connection may be back before."""


class Visit:
    """One open page. Threads may share it.

    Attributes:
        token: its name, which nobody can guess.
        uploads: its files.
        result: of its last call, or None.
    """

    def __init__(self, folder: Path, limits: UploadLimits) -> None:
        self.token = secrets.token_urlsafe(24)
        self._folder = folder / self.token
        files = self._folder / "uploads"
        files.mkdir(parents=True)
        self.uploads = Uploads(files, limits)
        self.result: ShownScene | None = None
        self._facts: dict[str, Any] | None = None
        self._results = 0
        self._call: Call | None = None
        self._calls = 0
        self._condition = threading.Condition()
        self._version = 0
        self._listeners = 0
        self._ended = False
        self.seen = time.monotonic()

    def receive(self, name: str, size: int, content: Any) -> Upload:
        """Take an upload; as :meth:`Uploads.receive`."""
        self.seen = time.monotonic()
        return self.uploads.receive(name, size, content)

    @property
    def busy(self) -> bool:
        """Whether it has a call that waits or runs."""
        return self._call is not None and self._call.active

    def begin(self, options: CallOptions) -> Call:
        """Return a new call, which waits.

        Raises:
            InputError: it has one already, or has ended.
        """
        with self._condition:
            if self._ended:
                raise InputError(_ENDED)
            if self.busy:
                raise InputError("a reconstruction of yours is not done yet; stop it, or wait for it")
            self.seen = time.monotonic()
            self._calls += 1
            self._call = Call(options, self.changed)
            return self._call

    def stop(self) -> None:
        """End a call that waits, and ask one that runs to end."""
        call = self._call
        if call is not None and call.active:
            call.stop()
            if call.state == "waiting":
                self.uploads.remove(call.options.files)
                call.become("cancelled")

    def keep(self, scene: Scene, facts: dict[str, Any]) -> None:
        """Have a new result in place of the last one.

        Raises:
            OutputError: it could not be written.
            Cancelled: the visit has ended.
        """
        self._results += 1
        start = time.perf_counter()
        try:
            result = ShownScene(self._folder / f"result-{self._results}", scene)
        except Exception:
            if self._ended:  # and its folder was deleted
                raise Cancelled from None
            raise
        with self._condition:
            older, self.result = self.result, result
            self._facts = {
                **facts,
                **result.facts(),
                "number": self._results,
                "saving": time.perf_counter() - start,
            }
        if older is not None:
            older.delete()
        if self._ended:
            self.delete()
            raise Cancelled

    def state(self, ahead: int) -> dict[str, Any]:
        """Return what the page shows; ``ahead`` is how many calls come first."""
        call = self._call
        return {
            "call": None
            if call is None
            else {
                "number": self._calls,
                "state": call.state,
                "ahead": ahead,
                "stage": call.stage,
                "done": call.done,
                "total": call.total,
                "problem": call.problem,
            },
            "result": self._facts,
        }

    def changed(self) -> None:
        """Tell whoever waits for a change."""
        with self._condition:
            self._version += 1
            self._condition.notify_all()

    def wait(self, version: int, seconds: float) -> int | None:
        """Wait for another version of the state, at most so long; returns it, or None when the visit has ended."""
        with self._condition:
            self._condition.wait_for(lambda: self._ended or self._version != version, seconds)
            return None if self._ended else self._version

    def listen(self, step: int) -> None:
        """Count those that wait for changes: 1 for one more, -1 for one less."""
        with self._condition:
            self._listeners += step
            self.seen = time.monotonic()

    @property
    def absent(self) -> float:
        """For how many seconds nobody has listened."""
        return 0.0 if self._listeners else time.monotonic() - self.seen

    def end(self) -> None:
        """End it: its call is stopped, its uploads and its result are deleted."""
        with self._condition:
            self._ended = True
            self._condition.notify_all()
        self.stop()
        self.delete()

    def delete(self) -> None:
        """Delete its files."""
        self.uploads.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def sentence(self, error: BaseException) -> str:
        """Return what the page says of an error: files by their names, not by where they are here."""
        if isinstance(error, MemoryError) and not isinstance(error, MapEngineError):
            return "the memory is not enough; use fewer views, or a smaller size"
        if not isinstance(error, MapEngineError):
            traceback.print_exception(error, file=sys.stderr)
            return f"unexpected {type(error).__name__}: {one_line(error)}; try it again"
        text = re.sub(re.escape(str(self._folder / "uploads")) + r"[/\\]\d+[/\\]", "", str(error))
        return text.replace(str(self._folder), "the results")


_ENDED = "this visit has ended, and its files were deleted; load the page again"


class Visits:
    """All visits, and the thread that runs their calls, one after the other, in the order of the asking."""

    def __init__(
        self,
        engine: Engine,
        limits: UploadLimits,
        *,
        absent_seconds: float = ABSENT_SECONDS,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        """Begin to serve. Files are in a folder of this user alone, which goes with :meth:`close`."""
        self.engine = engine
        self.limits = limits
        self._absent_seconds, self._idle_seconds = absent_seconds, idle_seconds
        self.folder = own_folder("mapengine-app")
        self._visits: dict[str, Visit] = {}
        self._queue: deque[tuple[Visit, Call]] = deque()
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._closed = threading.Event()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._run_calls, self._end_absent)]
        for thread in self._threads:
            thread.start()

    def new(self) -> Visit:
        """Return a new visit.

        Raises:
            InputError: there are too many.
        """
        with self._lock:
            idle = None
            if len(self._visits) >= self.limits.visits:
                still = [visit for visit in self._visits.values() if not visit.busy]
                idle = min(still, key=lambda visit: visit.seen, default=None)
                if idle is None or time.monotonic() - idle.seen < self._idle_seconds:
                    raise InputError(
                        f"{len(self._visits)} pages are open, which is as many as may be; close one, or come back later"
                    )
                del self._visits[idle.token]
            visit = Visit(self.folder, self.limits)
            self._visits[visit.token] = visit
        if idle is not None:
            idle.end()
        return visit

    def find(self, token: str) -> Visit:
        """Return a visit by its token; InputError where it has ended."""
        with self._lock:
            if token not in self._visits:
                raise InputError(_ENDED)
            return self._visits[token]

    def end(self, visit: Visit) -> None:
        """End a visit, whose files are deleted."""
        with self._lock:
            self._visits.pop(visit.token, None)
        visit.end()

    def check(self, visit: Visit, options: CallOptions) -> dict[str, Any]:
        """Return which views a call would have.

        Raises:
            MapEngineError: why it cannot be.
        """
        found = find_views(self.engine, visit.uploads.paths(options.files), options)
        names = [view.name for view in found.views]
        return {"count": len(names), "first": names[:3], "last": names[-1]}

    def ask(self, visit: Visit, options: CallOptions) -> None:
        """Put a call of a visit into the queue.

        Raises:
            InputError: it has one already, has ended, or asks for files that are not there.
        """
        visit.uploads.paths(options.files)
        call = visit.begin(options)
        with self._work:
            self._queue.append((visit, call))
            self._work.notify_all()
        visit.changed()

    def state(self, visit: Visit) -> dict[str, Any]:
        """Return what the page of a visit shows."""
        with self._lock:
            waiting = [other for other, call in self._queue if call.active]
        return visit.state(waiting.index(visit) if visit in waiting else 0)

    def close(self) -> None:
        """End all visits, and delete everything; a call that runs is given two seconds to notice."""
        self._closed.set()
        with self._work:
            visits, self._visits = list(self._visits.values()), {}
            self._work.notify_all()
        for visit in visits:
            visit.end()
        for thread in self._threads:
            thread.join(2)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run_calls(self) -> None:
        while not self._closed.is_set():
            with self._work:
                while not self._queue and not self._closed.is_set():
                    self._work.wait()
                if self._closed.is_set():
                    return
                visit, call = self._queue[0]
            self._run(visit, call)
            with self._work:
                self._queue.popleft()
                others = [other for other, _ in self._queue]
            for other in others:
                other.changed()  # their place in the queue

    def _run(self, visit: Visit, call: Call) -> None:
        try:
            try:
                call.check_stopped()
                call.become("running")
                scene, facts = reconstruct(self.engine, visit.uploads.paths(call.options.files), call)
                call.report("showing", 0, 0)
                visit.keep(scene, facts)
            finally:
                visit.uploads.remove(call.options.files)
        except Cancelled:
            call.become("cancelled")
        except Exception as error:
            call.become("failed", visit.sentence(error))
        else:
            call.become("done")

    def _end_absent(self) -> None:
        while not self._closed.wait(min(1.0, self._absent_seconds / 2)):
            with self._lock:
                gone = [visit for visit in self._visits.values() if visit.absent > self._absent_seconds]
            for visit in gone:
                self.end(visit)
