"""What people see: standard streams, consoles, tables, progress, and one-line messages."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, TextIO, cast

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.status import Status
from rich.table import Table

_UNLIMITED = 100_000


def make_console(stderr: bool = False, quiet: bool = False) -> Console:
    """A console without markup, or one that shows nothing.

    Only a terminal limits its width: a table in a file or a pipe is never cut.
    """
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _UNLIMITED
    return Console(stderr=stderr, quiet=quiet, width=width, markup=False, highlight=False, emoji=False)


def say(text: str) -> None:
    """One line on stdout, never wrapped."""
    make_console().print(text, soft_wrap=True)


def one_line(text: str) -> str:
    """``text`` on one line, without characters that would steer a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))


def problem(kind: str, text: str) -> None:
    """``Error: text`` (or another kind) on stderr, as one line."""
    print(f"{kind}: {one_line(text)}", file=sys.stderr, flush=True)


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> None:
    """A table on stdout; the columns named by ``right`` are aligned to the right."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    _show(table)


def show_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Names and values in two columns on stdout; a value may have several lines."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(name, value)
    _show(table)


def _show(table: Table) -> None:
    """The table and an empty line; in a file or a pipe without the spaces that fill its last column."""
    console = make_console()
    if console.is_terminal:
        console.print(table)
    else:
        with console.capture() as lines:
            console.print(table)
        for line in lines.get().splitlines():
            console.print(line.rstrip(), soft_wrap=True)
    console.print()


def megabytes(size: int) -> str:
    """A size in bytes for people."""
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


class Steps:
    """Shows which step runs, on stderr: with a spinner on a terminal, else as one line per step; or nothing."""

    def __init__(self, quiet: bool = False) -> None:
        self.seconds: dict[str, float] = {}
        """How long each finished step took."""
        self._console = make_console(stderr=True, quiet=quiet)
        self._status: Status | None = None
        self._step = ""
        self._start = 0.0
        self._silent = False
        self._quarter = 0

    def __call__(self, step: str) -> None:
        """End the step that runs and begin the next."""
        self._end()
        self._step, self._start, self._silent, self._quarter = step, time.perf_counter(), False, 0
        if not self._console.is_terminal:
            self._console.print(step, soft_wrap=True)
            return
        if self._status is None:
            self._status = self._console.status(step)
            self._status.start()
        self._status.update(step)

    def part(self, fraction: float, phase: str) -> None:
        """Show how much of the step that runs is done (0 to 1), and what it is doing; in a log at every quarter."""
        if self._status is not None:
            self._status.update(f"{self._step}: {fraction:.0%}  {phase}")
            return
        quarter = int(4 * fraction)
        if quarter > self._quarter:
            self._quarter = quarter
            self._console.print(f"{self._step}: {fraction:.0%}", soft_wrap=True)

    def start_silently(self, step: str) -> None:
        """Measure a step that something else shows."""
        self._step, self._start, self._silent = step, time.perf_counter(), True

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self._end()
        if self._status is not None:
            self._status.stop()

    def _end(self) -> None:
        if not self._step:
            return
        self.seconds[self._step] = time.perf_counter() - self._start
        if self._console.is_terminal and not self._silent:
            self._console.print(f"{self._step}: {self.seconds[self._step]:.1f} s", soft_wrap=True)
        self._step = ""


class StageProgress:
    """Receives an engine's progress: a bar per stage on a terminal, else a line per finished stage."""

    def __init__(self, bars: Progress | None, console: Console, views: int, with_geometry: int) -> None:
        self._bars = bars
        self._console = console
        self._tasks: dict[str, TaskID] = {}
        if bars is not None:
            counts = {"image_encoder": views, "geometry_encoder": with_geometry, "aggregator": views}
            for stage, count in {**counts, "dense_head": views}.items():
                if count:
                    self._tasks[stage] = bars.add_task(stage.replace("_", " "), total=count, start=False)
            bars.start_task(self._tasks["image_encoder"])

    def __call__(self, stage: str, done: int, total: int) -> None:
        """As :data:`mapengine.runtime.inference.Progress`."""
        if self._bars is None:
            if done == total:
                self._console.print(f"{stage.replace('_', ' ')}: {done} of {total} views", soft_wrap=True)
            return
        self._bars.update(self._tasks[stage], completed=done, total=total)
        if done == total:
            following = list(self._tasks)[list(self._tasks).index(stage) + 1 :]
            for task in following[:1]:
                self._bars.start_task(self._tasks[task])


@contextmanager
def stage_progress(views: int, with_geometry: int, quiet: bool = False) -> Iterator[StageProgress]:
    """A :class:`StageProgress` for ``views`` views, ``with_geometry`` of which go through the geometry encoder."""
    console = make_console(stderr=True, quiet=quiet)
    if not console.is_terminal:
        yield StageProgress(None, console, views, with_geometry)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("views"),
    )
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bars:
        yield StageProgress(bars, console, views, with_geometry)


def open_closed_streams() -> None:
    """Treat closed standard streams as the null device, and never fail because of what is said on stderr.

    The descriptors are filled, too: a result that is opened next would otherwise get the number of a standard stream,
    and what a library prints would be written into it.
    """
    for descriptor, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, mode)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - for the life of the process
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if not isinstance(sys.stderr, _Forgiving) and hasattr(sys.stderr, "buffer"):
        sys.stderr = cast(TextIO, _Forgiving(sys.stderr))


class _Forgiving:
    """A stream for progress and messages: where it cannot be written to, the work goes on and the exit code tells."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            return int(self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
