"""Contenders that take turns, each in a process of its own.

A machine whose speed drifts is then slow for all of them alike, and the memory of one is not reused by the next.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

Loader = Callable[[], Callable[[], Any]]
"""Loads a contender and returns what is timed. Must be picklable: a function of a module, or a partial of one."""


@dataclass
class Figures:
    """What was measured of one contender; ``seconds`` per round, without the first call."""

    load_s: float
    first_output: Any = None
    private_bytes: int = 0
    seconds: list[float] = field(default_factory=list)

    @property
    def median_s(self) -> float:
        """Median seconds of a call."""
        return statistics.median(self.seconds)

    def ratio(self, other: Figures) -> float:
        """Median over the rounds of this contender's time over the other's."""
        return statistics.median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))


def private_bytes() -> int:
    """Anonymous memory of this process: weights that are mapped from a file are shared and can be dropped."""
    text = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Anonymous:"))


def _worker(connection: Connection, loader: Loader) -> None:
    start = time.perf_counter()
    run = loader()
    connection.send(time.perf_counter() - start)
    connection.send(run())
    while connection.recv():
        start = time.perf_counter()
        run()
        connection.send((time.perf_counter() - start, private_bytes()))


def take_turns(contenders: Mapping[str, Loader], rounds: int) -> dict[str, Figures]:
    """Load the contenders one after the other, then call them in turn.

    Args:
        contenders: name to loader.
        rounds: timed calls of each; one more before them warms up.
    """
    context = multiprocessing.get_context("spawn")
    figures: dict[str, Figures] = {}
    pipes: dict[str, Connection] = {}
    processes = []
    for name, loader in contenders.items():
        here, there = context.Pipe()
        process = context.Process(target=_worker, args=(there, loader), daemon=True)
        process.start()
        there.close()  # so that a process that dies ends the wait
        processes.append(process)
        pipes[name] = here
        figures[name] = Figures(load_s=here.recv())
        figures[name].first_output = here.recv()
        print(f"{name}: loaded in {figures[name].load_s:.1f} s", flush=True)
    for _ in range(rounds):
        for name, pipe in pipes.items():
            pipe.send(True)
            seconds, figures[name].private_bytes = pipe.recv()
            figures[name].seconds.append(seconds)
        print("  ".join(f"{name} {figure.seconds[-1]:.2f} s" for name, figure in figures.items()), flush=True)
    for pipe in pipes.values():
        pipe.send(False)
    for process in processes:
        process.join()
    return figures
