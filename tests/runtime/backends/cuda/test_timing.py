"""Copies and stages are timed apart on the stand-in GPU, and timing changes nothing else."""

from __future__ import annotations

import pytest

from mapengine.runtime import Engine
from mapengine.runtime.backends.contract import ChunkSizes
from mapengine.runtime.backends.cuda.timing import DEVICE_TO_HOST, HOST_TO_DEVICE, ON_DEVICE
from mapengine.runtime.errors import BackendError

from ....random_views import assert_close
from .requests import forward, given_views
from .stand_in_driver import StandInDriver

COPIES = {HOST_TO_DEVICE, DEVICE_TO_HOST, ON_DEVICE}


def test_copies_and_stages_are_timed_apart(device_engine: Engine, small: Engine, driver: StandInDriver) -> None:
    read = device_engine.time_device()
    assert read is not None
    for kinds in ("gig", "gig", "iii"):
        views = given_views(kinds)
        assert_close(forward(device_engine, views, ChunkSizes(1, 2, 2)), forward(small, views))
        found = read()
        stages = {"image_encoder", "aggregator", "dense_head", "scene"} | (
            {"geometry_encoder"} if "g" in kinds else set()
        )
        assert set(found) == COPIES | stages
        assert all(seconds >= 0 for seconds in found.values())
        assert all(found[stage] > 0 for stage in stages)
    assert read() == {}
    marks = driver.calls["cuEventCreate"]
    forward(device_engine, given_views("iii"), ChunkSizes(1, 2, 2))
    assert driver.calls["cuEventCreate"] == marks  # those of the call before are used again
    device_engine.pipeline.close()
    assert (driver.blocks, driver.pinned, driver.handles) == ({}, {}, {})


def test_a_failed_call_leaves_no_marks(device_engine: Engine, driver: StandInDriver) -> None:
    read = device_engine.time_device()
    assert read is not None
    for function in ("cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync"):
        driver.faults[function] = 400
        with pytest.raises(BackendError):
            forward(device_engine, given_views("gi"))
        driver.faults.clear()
        read()
    forward(device_engine, given_views("gi"))
    assert DEVICE_TO_HOST in read()
    device_engine.pipeline.close()
    assert driver.handles == {}


def test_a_processor_has_no_device_to_time(small: Engine) -> None:
    assert small.time_device() is None
