"""What waits for the engine: one item, the newest."""

from __future__ import annotations

import threading

from mapengine_ros.newest import Newest


def test_newer_replaces_older() -> None:
    queue: Newest[int] = Newest()
    assert queue.put(1) is None
    assert queue.put(2) == 1
    assert queue.take() == 2
    assert queue.put(3) is None


def test_nothing_comes_within_the_timeout() -> None:
    assert Newest[int]().take(0.001) is None


def test_closing_ends_who_waits() -> None:
    queue: Newest[int] = Newest()
    found: list[int | None] = [0]
    thread = threading.Thread(target=lambda: found.append(queue.take()))
    thread.start()
    queue.close()
    thread.join(5)
    assert not thread.is_alive()
    assert found == [0, None]
    assert queue.put(1) == 1
    assert queue.take() is None


def test_of_a_burst_only_the_first_and_the_last_are_taken() -> None:
    queue: Newest[int] = Newest()
    busy, go_on, taken = threading.Event(), threading.Event(), []

    def work() -> None:
        while (item := queue.take()) is not None:
            taken.append(item)
            busy.set()
            go_on.wait(5)

    thread = threading.Thread(target=work)
    thread.start()
    queue.put(0)
    assert busy.wait(5)
    replaced = [queue.put(item) for item in range(1, 10)]
    go_on.set()
    while len(taken) < 2 and thread.is_alive():
        thread.join(0.001)
    queue.close()
    thread.join(5)
    assert taken == [0, 9]
    assert replaced == [None, *range(1, 9)]
