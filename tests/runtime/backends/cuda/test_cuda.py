"""The objects around the CUDA driver: what they do, what they give back, and what they say when the driver refuses."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mapengine.runtime.backends.cuda import driver as cuda
from mapengine.runtime.backends.cuda.driver import Device, OutOfMemory, open_device
from mapengine.runtime.errors import BackendError, BackendUnavailableError

from .stand_in_driver import StandInDriver
from .stand_in_status import ILLEGAL_ADDRESS, LAUNCH_FAILED


@pytest.fixture
def device(driver: StandInDriver) -> Device:
    return Device()


def test_a_device_says_what_it_is(device: Device) -> None:
    assert (device.name, device.compute_capability, device.driver_version) == ("NVIDIA Stand-in 4000", "8.9", "13.0")
    with device.current():
        free, total = device.free_memory()
    assert free == total == 2**30


def test_data_goes_to_the_gpu_around_on_it_and_back(device: Device) -> None:
    with device.current():
        stream, first, second = device.stream(), device.allocate(2000), device.allocate(2000)
        source, target = device.pinned((5, 100), "float32"), device.pinned((3, 100), np.float32)
        source.array[...] = np.arange(500).reshape(5, 100)
        stream.upload(source, first.address)
        stream.move(first.address + 400, second.address, 1200)
        stream.download(second.address, target)
        stream.synchronize()
        assert np.array_equal(target.array, source.array[1:4])
        assert first.address % cuda.ALIGNMENT == second.address % cuda.ALIGNMENT == 0


def test_everything_is_given_back_and_twice_is_once(device: Device, driver: StandInDriver) -> None:
    with device.current():
        things: list[Any] = [device.allocate(10), device.pinned((3,), "int64"), device.stream(), device.event()]
        stream = things[2]
        with stream.capture() as graph:
            pass
        assert driver.blocks
        assert driver.pinned
        assert len(driver.handles) == 3  # stream, event and the runnable graph: the recorded one is gone
        for _ in range(2):
            for thing in (graph, *things):
                thing.free()
    assert (driver.blocks, driver.pinned, driver.handles) == ({}, {}, {})


def test_time_passes_between_events(device: Device) -> None:
    with device.current():
        stream, start, end = device.stream(), device.event(), device.event()
        start.wait()  # a mark that was never set counts as reached
        start.record(stream)
        end.record(stream)
        with pytest.raises(BackendError, match=r"failed to read a time \(CUDA_ERROR_NOT_READY\)"):
            end.milliseconds_since(start)
        end.wait()
        assert end.milliseconds_since(start) > 0


# Memory


@pytest.mark.slow
def test_too_little_memory_names_both_figures_and_the_remedies(make_driver: Callable[..., StandInDriver]) -> None:
    driver = make_driver(memory=3 * 2**30)
    device = Device()
    with device.current():
        held = device.allocate(2 * 2**30)
        with pytest.raises(
            OutOfMemory, match=r"no 1\.5 GiB of memory left \(1\.0 GiB of 3\.0 GiB are free\)"
        ) as caught:
            device.allocate(3 * 2**29)
        assert re.search("fewer or smaller views.*minibatch_size.*other programs", str(caught.value))
        held.free()
        device.allocate(3 * 2**29).free()
    assert driver.blocks == {}


def test_too_little_host_memory_is_said_too(device: Device, driver: StandInDriver) -> None:
    with device.current():
        driver.faults["cuMemHostAlloc"] = 2
        with pytest.raises(
            OutOfMemory, match="no memory left to allocate page-locked memory; use fewer or smaller views"
        ):
            device.pinned((3,), "float32")


def test_nothing_is_a_block_too(device: Device) -> None:
    """A context may need no memory, and CUDA refuses to allocate 0 bytes."""
    with device.current():
        assert device.allocate(0).size > 0


# Threads and contexts


def test_the_callers_own_context_comes_back(device: Device, driver: StandInDriver) -> None:
    driver.cuCtxPushCurrent(0xABC)
    with device.current():
        assert driver.cuCtxPopCurrent() != 0xABC
        driver.cuCtxPushCurrent(0xDEF)
    assert driver.cuCtxPopCurrent() == 0xABC
    assert not driver.has_context()


def test_each_thread_needs_the_gpu_current(device: Device) -> None:
    found: list[Any] = []

    def other() -> None:
        try:
            device.stream()
        except BackendError as error:
            found.append(str(error))
        with device.current():
            found.append(device.stream())

    with device.current():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "CUDA_ERROR_INVALID_CONTEXT" in found[0]
    assert len(found) == 2


def test_one_object_per_gpu_and_process(driver: StandInDriver) -> None:
    assert open_device() is open_device()
    with pytest.raises(BackendUnavailableError, match=r"the GPU failed to be opened \(CUDA_ERROR_INVALID_VALUE\)"):
        open_device(1)


# Graphs


def test_a_graph_repeats_what_was_recorded(device: Device, driver: StandInDriver) -> None:
    with device.current():
        stream, block = device.stream(), device.allocate(4)
        source, target = device.pinned((1,), "float32"), device.pinned((1,), "float32")
        with stream.capture() as graph:
            stream.upload(source, block.address)
            stream.download(block.address, target)
        for value in (3, 4):
            source.array[:] = value
            stream.synchronize()
            assert target.array[0] != value  # recording runs nothing
            stream.launch(graph)
            stream.synchronize()
            assert target.array[0] == value
    assert driver.launches == 2


def test_a_failure_while_recording_leaves_the_stream_usable(device: Device, driver: StandInDriver) -> None:
    def record(failing: Callable[[], object]) -> None:
        with stream.capture():
            failing()

    with device.current():
        stream = device.stream()
        handles = len(driver.handles)
        with pytest.raises(ZeroDivisionError):
            record(lambda: 1 / 0)
        with pytest.raises(BackendError, match="CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"):
            record(lambda: device.allocate(10))  # not allowed while a graph is recorded
        with pytest.raises(BackendError, match="CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"):
            record(stream.synchronize)
        driver.faults["cuGraphInstantiateWithFlags"] = 2
        with pytest.raises(OutOfMemory, match="prepare a graph"):
            record(lambda: None)
        assert len(driver.handles) == handles
        stream.synchronize()


def test_another_thread_may_allocate_while_a_graph_is_recorded(device: Device) -> None:
    def other() -> None:
        with device.current():
            device.allocate(10)

    with device.current():
        stream = device.stream()
        with stream.capture() as graph:
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
        stream.launch(graph)
        stream.synchronize()


# Errors


def test_an_error_names_what_was_tried_and_cudas_own_name(device: Device, driver: StandInDriver) -> None:
    with device.current():
        driver.faults["cuStreamCreate"] = 400
        with pytest.raises(BackendError, match=r"failed to create a stream \(CUDA_ERROR_INVALID_HANDLE\)"):
            device.stream()
        device.stream().synchronize()  # such an error passes
        driver.faults["cuStreamCreate"] = 12345  # of a driver that is newer than the package
        with pytest.raises(BackendError, match=r"cannot create a stream \(12345.*a cuda-bindings that fit"):
            device.stream()


@pytest.mark.parametrize("status", [ILLEGAL_ADDRESS, LAUNCH_FAILED])
def test_a_fatal_error_is_what_every_later_call_says(status: int, device: Device, driver: StandInDriver) -> None:
    with device.current():
        stream, block, pinned, event = device.stream(), device.allocate(4), device.pinned((1,), "int8"), device.event()
        driver.faults["cuStreamSynchronize"] = status
        with pytest.raises(BackendError, match=r"failed to run the network \(CUDA_ERROR_\w+\).*restart the process"):
            stream.synchronize()
        calls = dict(driver.calls)
        for call in (stream.synchronize, event.wait, device.free_memory, lambda: device.allocate(4)):
            with pytest.raises(BackendError, match=r"because an earlier error \(CUDA_ERROR_\w+\) made it unusable"):
                call()
        for thing in (stream, block, pinned, event):
            thing.free()  # nothing can be given back, and nothing is said about it
        assert driver.calls == calls  # the driver is left alone
    with pytest.raises(BackendError, match="cannot use the GPU, because an earlier error"), device.current():
        pass


def test_the_fatal_errors_are_those_of_cudas_documentation() -> None:
    from cuda.bindings.driver import CUresult

    words = re.compile(r"must\s+be\s+terminated\s+and\s+relaunched")
    documented = {status.name for status in CUresult if words.search(status.__doc__ or "")}
    assert len(documented) > 8
    assert documented <= cuda.FATAL_ERRORS <= {status.name for status in CUresult}
    assert "CUDA_ERROR_OUT_OF_MEMORY" not in cuda.FATAL_ERRORS


def test_a_function_that_the_driver_lacks(device: Device) -> None:
    from cuda.bindings import driver

    with device.current(), pytest.raises(BackendError, match=r"cannot count.*is not found\); install an NVIDIA driver"):
        device.call("count", driver.cuMemPoolCreate, driver.CUmemPoolProps())


def test_without_cuda_bindings(driver: StandInDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings", None)
    with pytest.raises(BackendUnavailableError, match=r"cuda-bindings.*; run: pip install --upgrade cuda-bindings"):
        Device()
