"""Work on files and images with several threads: Pillow and NumPy let go of the interpreter while they compute."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import chain, islice
from typing import TypeVar

from ..errors import kept_warnings, warn
from .machine import usable_processors

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_THREADS = 8
"""Each may hold a decoded photo."""


def threads_in_order() -> int:
    """Return how many items :func:`in_order` works on at a time."""
    return min(MOST_THREADS, _processors_in(int(time.monotonic())))


@lru_cache(maxsize=1)
def _processors_in(second: int) -> int:
    """Count once a second: it takes milliseconds, as long as a small network takes for a view."""
    return usable_processors()


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int | None = None
) -> Generator[Result, None, None]:
    """Results of ``function`` in the order of the items, as ``map`` gives them.

    The first item that fails raises, whatever happened to later ones, and what has not begun by then is not done.
    At most :func:`threads_in_order` threads do it, or ``threads`` if that is fewer; a single item needs none. What an
    item warns of is said with its result.
    """
    rest = iter(items)
    first = list(islice(rest, 2))
    if len(first) < 2:
        yield from map(function, first)
        return

    def work(item: Item) -> tuple[Result, list[str]]:
        with kept_warnings() as messages:
            return function(item), messages

    with ThreadPoolExecutor(min(threads_in_order(), threads or MOST_THREADS)) as pool:
        try:
            for result, messages in pool.map(work, chain(first, rest)):
                for message in messages:
                    warn(message)
                yield result
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
