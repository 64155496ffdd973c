"""A call that is out of memory waits for the contexts of other calls, at whatever moment it looks for them.

Each test stops one call at the moment in question, starts another, and goes on when that one waits or has ended.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from mapengine.runtime import Engine
from mapengine.runtime.backends.cuda.call import Work
from mapengine.runtime.backends.cuda.shape_context import ShapeContext
from mapengine.runtime.errors import BackendError

from ....random_views import Views, assert_close, random_views
from .requests import forward, given_views
from .stand_in_driver import StandInDriver
from .stand_in_status import LAUNCH_FAILED

LONGEST = 120
"""Seconds after which a call hangs."""


class Call(threading.Thread):
    """A call in a thread of its own.

    Attributes:
        has_stopped: it waits for another call, or has ended. result: the predictions. error: what it raised.
    """

    def __init__(self, engine: Engine, views: Views) -> None:
        super().__init__(daemon=True)
        self.has_stopped = threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None
        self._request = engine, views

    def run(self) -> None:
        try:
            self.result = forward(*self._request)
        except BaseException as error:
            self.error = error
        self.has_stopped.set()

    def start_and_stop(self) -> None:
        """Start the call and wait until it has stopped."""
        self.start()
        assert self.has_stopped.wait(LONGEST)

    def finish(self) -> Any:
        """Wait for its end; returns the predictions."""
        self.join(LONGEST)
        assert not self.is_alive(), "the call hangs"
        if self.error is not None:
            raise self.error
        return self.result


@pytest.fixture(autouse=True)
def _calls_stop_where_they_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    wait_for = threading.Condition.wait_for

    def seen(condition: threading.Condition, predicate: Callable[[], object], timeout: float | None = None) -> Any:
        thread = threading.current_thread()
        if isinstance(thread, Call) and not predicate():
            thread.has_stopped.set()
        return wait_for(condition, predicate, timeout)

    monkeypatch.setattr(threading.Condition, "wait_for", seen)


def memory_in_use(driver: StandInDriver) -> int:
    return sum(driver.blocks.values())


def test_a_context_that_was_just_taken_is_waited_for(
    device_engine: Engine, small: Engine, driver: StandInDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = random_views(3)
    expected = forward(small, views)
    forward(device_engine, views)
    driver.memory = memory_in_use(driver) + 1000
    other = Call(device_engine, views)
    pending, first, leave = [other.start_and_stop], threading.current_thread(), threading.Condition.__exit__

    def interrupted(condition: threading.Condition, *arguments: Any) -> None:
        leave(condition, *arguments)
        if pending and threading.current_thread() is first:  # it has looked for a context
            pending.pop()()

    monkeypatch.setattr(threading.Condition, "__exit__", interrupted)
    assert_close(forward(device_engine, views), expected)
    assert not pending
    assert_close(other.finish(), expected)


@pytest.mark.slow
def test_a_context_that_will_be_extended_gives_its_memory(
    device_engine: Engine, small: Engine, driver: StandInDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A context waits for its turn to get what it lacks, while the call whose turn it is needs the memory."""
    requests = given_views("gii"), random_views(8, width=126)
    expected = [forward(small, views) for views in requests]
    forward(device_engine, requests[1])
    driver.memory = memory_in_use(driver) + 1000
    forward(device_engine, given_views("iii"))  # gives the first one's memory back
    other = Call(device_engine, requests[0])
    is_prepared = ShapeContext.is_prepared

    def seen(context: ShapeContext, work: Work) -> bool:
        result = is_prepared(context, work)
        if threading.current_thread() is other and not result:
            other.has_stopped.set()
        return result

    monkeypatch.setattr(ShapeContext, "is_prepared", seen)
    driver.interrupts["cuMemAlloc"] = other.start_and_stop
    assert_close(forward(device_engine, requests[1]), expected[1])
    assert not driver.interrupts
    assert_close(other.finish(), expected[0])


@pytest.mark.slow
def test_a_context_that_is_being_closed_is_waited_for(
    device_engine: Engine, small: Engine, driver: StandInDriver
) -> None:
    """Contexts that are too many for the next calls hold their memory until they are closed."""
    big = random_views(8, width=126, height=112)
    expected = forward(small, big)
    forward(device_engine, big)
    needed = memory_in_use(driver)
    for width in (14, 28, 42):
        forward(device_engine, random_views(1, width=width))
    other = Call(device_engine, big)

    def interrupted() -> None:
        driver.memory = memory_in_use(driver) + 1000
        assert driver.memory < 2 * needed  # without the others' memory there is too little
        other.start_and_stop()

    driver.interrupts["cuMemFree"] = interrupted
    forward(device_engine, random_views(1, width=56))  # one shape more than are kept: closes the oldest
    assert not driver.interrupts
    assert_close(other.finish(), expected)


def test_a_fatal_error_ends_a_call_that_waits(device_engine: Engine, driver: StandInDriver) -> None:
    views = random_views(3)
    forward(device_engine, views)
    driver.memory = memory_in_use(driver) + 1000
    other = Call(device_engine, views)

    def interrupted(stage: str, done: int, total: int) -> None:
        if other.ident is None:
            other.start_and_stop()
            driver.faults["cuEventSynchronize"] = LAUNCH_FAILED

    with pytest.raises(BackendError, match="failed to run the network"):
        forward(device_engine, views, None, interrupted)
    with pytest.raises(BackendError, match="an earlier error"):
        other.finish()
