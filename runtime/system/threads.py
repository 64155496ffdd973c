"""Work on files and images with several threads: Pillow and NumPy let go of the interpreter while they compute."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_THREADS = 8
"""Each may hold a decoded photo."""


def in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Results of ``function`` in the order of the items, as ``map`` gives them.

    The first item that fails raises, whatever happened to later ones, and what has not begun by then is not done.
    """
    with ThreadPoolExecutor(min(MOST_THREADS, default_threads())) as pool:
        try:
            yield from pool.map(function, items)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def default_threads() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
