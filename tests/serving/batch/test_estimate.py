"""What is said about the time that is left holds for what comes."""

from __future__ import annotations

import random

import pytest

from mapengine.serving.batch.estimate import Estimate, duration


def results(*intervals: float) -> Estimate:
    times = iter([100.0, *(100.0 + sum(intervals[: n + 1]) for n in range(len(intervals)))])
    estimate = Estimate(lambda: next(times))
    for _ in range(len(intervals) + 1):
        estimate.add()
    return estimate


def test_nothing_is_said_of_a_few_scenes() -> None:
    assert results(1, 1, 1, 1).left(100) is None
    assert results(1, 1, 1, 1).words(100) == "too early to say how long it will take"


def test_equal_scenes_take_as_long_as_before() -> None:
    assert results(2, 2, 2, 2, 2).left(10) == (20.0, 20.0)
    assert results(2, 2, 2, 2, 2).words(10) == "about 20 s left"
    assert results(2, 2, 2, 2, 2).words(0) == "about 0 s left"


def test_scenes_that_differ_leave_a_range() -> None:
    low, high = results(1, 3, 1, 3, 1, 3).left(50) or (0, 0)
    assert low < 100 < high
    assert results(1, 3, 1, 3, 1, 3).words(50).endswith(" left")
    assert " to " in results(1, 3, 1, 3, 1, 3).words(50)


def test_the_range_holds_nineteen_times_in_twenty() -> None:
    held = 0
    draw = random.Random(1)
    for _ in range(400):
        intervals = [draw.expovariate(1) for _ in range(120)]
        low, high = results(*intervals[:40]).left(80) or (0, 0)
        held += low <= sum(intervals[40:]) <= high
    assert held / 400 > 0.9


@pytest.mark.parametrize(("seconds", "words"), [(0, "0 s"), (119, "119 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
