"""The stand-ins have the names of the real packages, and notice what would go wrong on a real GPU."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorrt_rtx

from mapengine.runtime import BackendError, Engine
from mapengine.runtime.backends.cuda.driver import Device

from ....random_views import random_views
from . import driver_abi, stand_in_tensorrt, stand_in_values
from .stand_in_driver import StandInDriver
from .stand_in_tensorrt import StandInTensorRt

CLASSES = {
    "Runtime": ("Runtime", "RtxRuntime"),
    "ICudaEngine": ("ICudaEngine", "RtxEngine"),
    "IExecutionContext": ("IExecutionContext",),
    "IRuntimeConfig": ("IRuntimeConfig",),
    "IRuntimeCache": ("IRuntimeCache",),
    "ILogger": ("ILogger",),
}
OWN = {"compiled", "serialized", "add"}
"""Counters of the stand-ins."""


def members(names: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in names:
        found |= vars(getattr(stand_in_values, name, None) or getattr(stand_in_tensorrt, name))
    return {name: value for name, value in found.items() if not name.startswith("_") and name not in OWN}


@pytest.mark.parametrize("real", CLASSES)
def test_every_member_of_a_stand_in_is_one_of_the_library(real: str) -> None:
    for name, member in members(CLASSES[real]).items():
        genuine = getattr(getattr(tensorrt_rtx, real), name)
        if inspect.isfunction(member):
            overloads = re.findall(rf"{name}\(self: [\w.]+(.*?)\) ->", genuine.__doc__)
            arguments = [re.findall(r", (\w+):", overload) for overload in overloads]
            assert list(inspect.signature(member).parameters)[1:] in arguments, name


@pytest.mark.parametrize(
    "name",
    ["ExecutionContextAllocationStrategy", "TensorIOMode", "DataType", "CudaGraphStrategy", "EngineValidity",
     "EngineInvalidityDiagnostics"],
)  # fmt: skip
def test_enumerations_are_those_of_the_library(name: str) -> None:
    ours, real = getattr(stand_in_values, name).__members__, getattr(tensorrt_rtx, name).__members__
    assert set(ours) <= set(real)
    if name == "EngineInvalidityDiagnostics":  # bits
        assert {key: member.value for key, member in ours.items()} == {key: real[key].value for key in ours}


def test_the_driver_is_reached_through_the_real_package(driver: StandInDriver) -> None:
    """``cuda.bindings`` has every function of the stand-in, converts the arguments and wraps the results."""
    from cuda.bindings import driver as real

    for name in driver_abi.SIGNATURES:
        assert hasattr(real, name.removesuffix("WithFlags")), name
    assert real.cuInit(0) == (real.CUresult.CUDA_SUCCESS,)
    assert real.cuDeviceGetCount() == (real.CUresult.CUDA_SUCCESS, 1)
    assert driver.calls == {"cuInit": 1, "cuDeviceGetCount": 1}


def test_lazy_work_runs_when_somebody_waits(driver: StandInDriver) -> None:
    device = Device()
    with device.current():
        block, stream = device.allocate(4), device.stream()
        source, target = device.pinned((1,), "float32"), device.pinned((1,), "float32")
        source.array[:] = 1
        stream.upload(source, block.address)
        source.array[:] = 2  # too early
        stream.download(block.address, target)
        assert np.isnan(target.array[0])
        stream.synchronize()
        assert target.array[0] == 2


@pytest.mark.parametrize("schedule", ["eager", 3])
def test_other_schedules_run_it_sooner(schedule: str | int, make_driver: Callable[..., StandInDriver]) -> None:
    make_driver(schedule)
    device = Device()
    with device.current():
        block, stream = device.allocate(4), device.stream()
        source, target = device.pinned((1,), "float32"), device.pinned((1,), "float32")
        for value in range(40):
            source.array[:] = value
            stream.upload(source, block.address)
        stream.download(block.address, target)
        if schedule != "eager":
            stream.synchronize()
        assert target.array[0] == 39


def test_a_broken_rule_is_noted_and_breaks_the_gpu(driver: StandInDriver) -> None:
    device = Device()
    with device.current():
        block, stream = device.allocate(512), device.stream()
        stream.move(block.address, block.address + 512, 8)
        with pytest.raises(BackendError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
            stream.synchronize()
    assert driver.mistakes.pop().startswith("a copy of 8 bytes")
    assert driver.mistakes == []


def _context(library: StandInTensorRt, folder: Path, device: Device, stream: int) -> tuple[Any, dict[str, int]]:
    """A context of the dense head for one view of 1 x 1 patches, ready to run."""
    plan = (folder / "dense_head.plan").read_bytes()
    runtime = library.Runtime(_Logger())
    engine = runtime.deserialize_cuda_engine(plan)
    assert engine is not None
    engine.runtime = runtime  # type: ignore[attr-defined]
    context = engine.create_execution_context(stand_in_values.ExecutionContextAllocationStrategy.USER_MANAGED)
    assert context is not None
    assert context.set_optimization_profile_async(0, stream)
    addresses = {}
    for name, tensor in engine._tensors.items():
        shape = tuple(axis if isinstance(axis, int) else 14 if "*" in axis else 1 for axis in tensor["shape"])
        addresses[name] = device.allocate(4 * int(np.prod(shape))).address
        if name in engine._inputs:
            assert context.set_input_shape(name, shape)
        assert context.set_tensor_address(name, addresses[name])
    memory = device.allocate(context.update_device_memory_size_for_shapes())
    context.set_device_memory(memory.address, memory.size)
    return context, addresses


class _Logger(stand_in_values.ILogger):
    def log(self, severity: Any, msg: str) -> None:
        pass


def test_a_recorded_graph_may_not_outlive_its_addresses(
    library: StandInTensorRt, plan_bundle: Path, driver: StandInDriver
) -> None:
    device = Device()
    with device.current():
        stream = device.stream()
        context, _ = _context(library, plan_bundle, device, stream.handle)
        with contextlib.suppress(ArithmeticError), stream.capture():
            assert not context.execute_async_v3(stream.handle)  # nothing was enqueued since its shapes were set
            raise ArithmeticError
        driver.broken = 0  # TensorRT-RTX may not be recorded at all
        if library.is_rtx:
            assert "recorded around TensorRT-RTX" in driver.mistakes.pop()
            return
        assert context.execute_async_v3(stream.handle)
        with stream.capture() as graph:
            assert context.execute_async_v3(stream.handle)
        stream.launch(graph)
        stream.synchronize()
        assert context.set_tensor_address("confidence", device.allocate(4096).address)
        stream.launch(graph)
        with pytest.raises(BackendError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
            stream.synchronize()
    assert "after its context was changed" in driver.mistakes.pop()


@pytest.mark.parametrize(
    ("change", "mistake"),
    [
        (lambda context, addresses: context.set_tensor_address("confidence", addresses["confidence"] + 4), "multiple"),
        (lambda context, addresses: context.set_tensor_address("confidence", addresses["mask_logits"]), "overlaps"),
        (lambda context, addresses: context.set_tensor_address("confidence", 512), "outside of its allocation"),
        (lambda context, addresses: context.set_device_memory(addresses["ray_directions"], 2**20), "outside"),
    ],
)
def test_bad_addresses_are_noticed(
    change: Callable[[Any, dict[str, int]], object],
    mistake: str,
    library: StandInTensorRt,
    plan_bundle: Path,
    driver: StandInDriver,
) -> None:
    device = Device()
    with device.current():
        stream = device.stream()
        context, addresses = _context(library, plan_bundle, device, stream.handle)
        change(context, addresses)
        assert context.execute_async_v3(stream.handle)
        with pytest.raises(BackendError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
            stream.synchronize()
    assert any(mistake in text for text in driver.mistakes)
    driver.mistakes.clear()


def test_it_is_the_stand_in_that_computes(device_engine: Engine, library: StandInTensorRt) -> None:
    plain = device_engine.predict(random_views(1))
    library.noise = 1.0
    noisy = device_engine.predict(random_views(1))
    assert np.abs(noisy[0]["conf"] - plain[0]["conf"]).min() > 0.5
    assert library.enqueued == {"image_encoder": 2, "geometry_encoder": 2, "aggregator": 2, "dense_head": 2}
