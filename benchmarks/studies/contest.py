"""Functions that are called in turn, each in a process of its own."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mapengine.runtime.profiling.workers import Worker

Loader = Callable[[], Callable[[], Any]]
"""Loads a contender and returns what is timed. Must be picklable: a function of a module, or a partial of one."""


@dataclass
class Figures:
    """What was measured of one contender; ``seconds`` per round, without the first call."""

    load_s: float
    first_output: Any
    private_bytes: int = 0
    seconds: list[float] = field(default_factory=list)

    @property
    def median_s(self) -> float:
        """Median seconds of a call."""
        return statistics.median(self.seconds)

    def ratio(self, other: Figures) -> float:
        """Median over the rounds of this contender's time over the other's."""
        return statistics.median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))


class _Timed:
    """A contender in its process; see :class:`mapengine.runtime.profiling.workers.Service`."""

    def __init__(self, loader: Loader) -> None:
        self.facts: dict[str, Any] = {}
        self._run = loader()

    def __call__(self, keeps_output: bool) -> tuple[float, int, Any]:
        """Call once; returns seconds, private bytes of the process, and the output if it is wanted."""
        start = time.perf_counter()
        output = self._run()
        seconds = time.perf_counter() - start
        if not keeps_output:
            del output  # no part of the memory
            return seconds, private_bytes(), None
        return seconds, private_bytes(), output


def private_bytes() -> int:
    """Anonymous memory of this process: weights that are mapped from a file are shared and can be dropped."""
    text = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Anonymous:"))


def take_turns(contenders: Mapping[str, Loader], rounds: int) -> dict[str, Figures]:
    """Load the contenders one after the other, then call them in turn.

    Args:
        contenders: name to loader.
        rounds: timed calls of each; one more before them warms up.
    """
    workers = []
    figures: dict[str, Figures] = {}
    for name, loader in contenders.items():
        workers.append(worker := Worker.start(name, partial(_Timed, loader)))
        figures[name] = Figures(worker.load_s, worker.call(True)[2])
        print(f"{name}: loaded in {worker.load_s:.1f} s", flush=True)
    for _ in range(rounds):
        for worker in workers:
            seconds, figures[worker.label].private_bytes, _ = worker.call(False)
            figures[worker.label].seconds.append(seconds)
        print("  ".join(f"{name} {figure.seconds[-1]:.2f} s" for name, figure in figures.items()), flush=True)
    for worker in workers:
        worker.close()
    return figures
