"""Calls from several threads get what calls one after the other get."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mapengine.runtime import Engine

from ....random_views import assert_close, random_views
from .requests import LIBRARIES, MakeDriver, MakeLibrary, call_from_threads, forward, given_views
from .stand_in_driver import StandInDriver


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["lazy", "eager", 11])
@pytest.mark.parametrize("name", LIBRARIES)
def test_threads_get_what_serial_calls_get(
    schedule: str | int,
    name: str,
    small: Engine,
    plan_bundles: dict[str, Path],
    make_driver: MakeDriver,
    make_library: MakeLibrary,
) -> None:
    make_library(name, make_driver(schedule))
    engine = Engine.load(plan_bundles[name], verify=False)
    call_from_threads(engine, small)


@pytest.mark.slow
def test_a_failing_thread_does_not_disturb_the_others(device_engine: Engine, small: Engine) -> None:
    views = given_views("gi")
    expected = forward(small, views)
    start = threading.Barrier(4)

    def stop(stage: str, done: int, total: int) -> None:
        raise ArithmeticError

    def call(index: int) -> None:
        start.wait()
        for _ in range(4):
            if index % 2:
                with pytest.raises(ArithmeticError):
                    forward(device_engine, views, None, stop)
            else:
                assert_close(forward(device_engine, views), expected)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(call, range(4)))


def test_the_callers_context_is_as_before(device_engine: Engine, driver: StandInDriver) -> None:
    driver.cuCtxPushCurrent(0xABC)
    forward(device_engine, random_views(2))
    assert driver.cuCtxPopCurrent() == 0xABC
    assert not driver.has_context()
