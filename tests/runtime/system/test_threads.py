"""Threads change neither order nor which error is raised."""

from __future__ import annotations

import threading
import time

import pytest

from mapengine.runtime.system.threads import in_order


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
