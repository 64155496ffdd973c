"""What fails on the stand-in GPU ends its call with a message, and only its call."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from mapengine.runtime import Engine
from mapengine.runtime.backends.contract import ChunkSizes
from mapengine.runtime.backends.cuda.call import SceneCall
from mapengine.runtime.errors import BackendError

from ....random_views import assert_close, random_views
from .requests import MakeLibrary, forward, given_views
from .stand_in_driver import StandInDriver
from .stand_in_status import LAUNCH_FAILED
from .stand_in_tensorrt import StandInTensorRt


@pytest.mark.parametrize(
    "function", ["cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuEventRecord", "cuEventSynchronize", "cuMemHostAlloc"]
)
def test_after_a_passing_failure_the_next_call_runs(
    function: str, device_engine: Engine, small: Engine, driver: StandInDriver
) -> None:
    views, chunks = given_views("gig"), ChunkSizes(1, 1, 1)
    forward(device_engine, given_views("iii"), chunks)
    for _ in range(2):  # a call that finds a context, without what views with geometry need, and one that makes it
        driver.faults[function] = 400
        with pytest.raises(BackendError, match="CUDA_ERROR_INVALID_HANDLE"):
            forward(device_engine, views, chunks)
        assert (driver.blocks, driver.pinned) == ({}, {})
    assert_close(forward(device_engine, views, chunks), forward(small, views))


def test_a_callers_own_exception_ends_the_call(device_engine: Engine, small: Engine, driver: StandInDriver) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "aggregator":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        forward(device_engine, random_views(4), None, stop)
    assert (driver.blocks, driver.pinned) == ({}, {})
    assert_close(forward(device_engine, random_views(4)), forward(small, random_views(4)))


def test_a_failure_of_the_host_part_ends_the_call(
    device_engine: Engine, driver: StandInDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(SceneCall, "result", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            forward(device_engine, random_views(4))
    assert (driver.blocks, driver.pinned) == ({}, {})
    assert len(forward(device_engine, random_views(4))) == 4


@pytest.mark.slow
def test_a_fatal_error_is_said_by_every_engine_of_the_process(
    device_engine: Engine, driver: StandInDriver, library: StandInTensorRt, plan_bundle: Path
) -> None:
    other = Engine.load(plan_bundle, verify=False)
    forward(device_engine, random_views(2))
    driver.faults["cuEventSynchronize"] = LAUNCH_FAILED
    with pytest.raises(BackendError, match=r"\(CUDA_ERROR_LAUNCH_FAILED\).*restart the process"):
        forward(device_engine, random_views(2))
    for engine in (device_engine, other):
        with pytest.raises(BackendError, match=r"an earlier error \(CUDA_ERROR_LAUNCH_FAILED\).*restart the process"):
            forward(engine, random_views(2))
    with pytest.raises(BackendError, match="an earlier error"):
        Engine.load(plan_bundle, verify=False)
    del engine, other
    gc.collect()  # raises nothing


def test_a_failing_graph_of_many_is_a_failure_of_the_call(
    driver: StandInDriver, make_library: MakeLibrary, plan_bundles: dict[str, Path]
) -> None:
    make_library("tensorrt", driver)
    engine = Engine.load(plan_bundles["tensorrt"], verify=False)
    for _ in range(2):
        forward(engine, random_views(2))
    driver.faults["cuGraphLaunch"] = 400
    with pytest.raises(BackendError, match=r"failed to run the network \(CUDA_ERROR_INVALID_HANDLE\)"):
        forward(engine, random_views(2))
