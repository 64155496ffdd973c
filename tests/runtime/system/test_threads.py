"""Threads change neither order nor which error is raised."""

from __future__ import annotations

import threading
import time

import pytest

from mapengine.runtime.errors import warn
from mapengine.runtime.system.threads import in_order, threads_in_order


@pytest.mark.slow
def test_results_come_in_order() -> None:
    def slow_first(index: int) -> int:
        time.sleep(0.002 * (20 - index))
        return index * index

    assert list(in_order(slow_first, range(20))) == [i * i for i in range(20)]
    assert list(in_order(str, [])) == []


def test_the_first_item_that_fails_raises() -> None:
    began: list[int] = []

    def fail(index: int) -> int:
        began.append(index)
        if index == 0:
            time.sleep(0.05)  # a later one fails before it
        if index in (0, 1):
            raise ValueError(f"item {index}")
        time.sleep(0.01)
        return index

    with pytest.raises(ValueError, match="item 0"):
        list(in_order(fail, range(200)))
    assert len(began) < 200


def test_threads_end_when_the_results_are_left() -> None:
    before = threading.active_count()
    results = in_order(lambda x: x, range(50))
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_a_single_item_needs_no_thread_and_says_what_it_warns_of() -> None:
    def where(item: str) -> str:
        warn(f"about {item}")
        return threading.current_thread().name

    with pytest.warns(UserWarning, match="about one"):
        assert list(in_order(where, iter(["one"]))) == [threading.current_thread().name]
    with pytest.warns(UserWarning, match="about"):
        assert threading.current_thread().name not in list(in_order(where, ["one", "two"]))


def test_processors_are_counted_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of a small network takes milliseconds, and so does reading the limits of control groups."""
    counted = []
    monkeypatch.setattr("mapengine.runtime.system.threads.usable_processors", lambda: counted.append(1) or 3)
    start = time.monotonic()
    counts = [threads_in_order() for _ in range(100)]
    assert set(counts[1:]) <= {3, counts[0]}
    assert len(counted) <= 2 + time.monotonic() - start
