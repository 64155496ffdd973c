"""How long a batch will still take, with how much that may be wrong."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

_LEAST = 5
"""Intervals between results before anything is said."""
_DEVIATIONS = 2.0


class Estimate:
    """The time that is left, from the intervals between the results so far.

    The first result counts as the beginning: what workers take to start says nothing of the rest.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: float | None = None
        self._count = 0
        self._mean = 0.0
        self._squares = 0.0

    def add(self) -> None:
        """Note a result."""
        now = self._clock()
        if self._last is not None:
            self._count += 1
            step = now - self._last - self._mean
            self._mean += step / self._count
            self._squares += step * (now - self._last - self._mean)
        self._last = now

    def left(self, scenes: int) -> tuple[float, float] | None:
        """Return the seconds that ``scenes`` further ones will take, at least and at most; None if that is not known.

        Both are two standard deviations away: of the mean interval so far, and of what is still to come.
        """
        if self._count < _LEAST:
            return None
        variance = self._squares / (self._count - 1)
        deviation = math.sqrt(variance * (scenes**2 / self._count + scenes))
        expected = scenes * self._mean
        return max(0.0, expected - _DEVIATIONS * deviation), expected + _DEVIATIONS * deviation

    def words(self, scenes: int) -> str:
        """Return :meth:`left` for people."""
        found = self.left(scenes)
        if found is None:
            return "too early to say how long it will take"
        low, high = (duration(seconds) for seconds in found)
        return f"about {low} left" if low == high else f"{low} to {high} left"


def duration(seconds: float) -> str:
    """Return a time for people: seconds below two minutes, minutes below two hours, then hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
