"""Results that stay on the stand-in GPU, whose memory is host memory, so that real libraries can take them there."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mapengine.runtime import Engine, InputError
from mapengine.runtime.backends import dlpack
from mapengine.runtime.backends.cuda import driver as cuda
from mapengine.runtime.backends.cuda.device_array import DeviceArray, to_device
from mapengine.runtime.options import OUTPUTS

from ....random_views import assert_close
from ....stage_files import change_manifest
from .requests import given_views
from .stand_in_driver import StandInDriver

pytestmark = pytest.mark.slow  # its fixtures take seconds

VALUES = {
    "points": np.arange(24, dtype=np.float32).reshape(2, 4, 3),
    "mask": np.array([[True, False, True]]),
    "none": np.empty((0, 3), np.float32),
}


@pytest.fixture
def arrays(driver: StandInDriver) -> dict[str, DeviceArray]:
    return to_device(cuda.open_device(), VALUES)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """DLPack says of the stand-in's memory what it is: that of the host."""
    monkeypatch.setattr(dlpack, "CUDA", dlpack.CPU)


def of_interface(array: DeviceArray) -> np.ndarray:
    """The values as a consumer of ``__cuda_array_interface__`` finds them."""
    described: dict[str, Any] = array.__cuda_array_interface__
    assert (described["version"], described["strides"], described["stream"]) == (3, None, None)
    address, is_read_only = described["data"]
    assert not is_read_only
    dtype, shape = np.dtype(described["typestr"]), described["shape"]
    raw = (ctypes.c_byte * max(array.nbytes, 1)).from_address(address)
    return np.frombuffer(raw, np.uint8)[: array.nbytes].view(dtype).reshape(shape)


def test_infer_leaves_on_the_gpu_what_it_copies_to_the_host_otherwise(
    device_engine: Engine, driver: StandInDriver, small: Engine
) -> None:
    mask = np.random.default_rng(0).random((1, 28, 42)) > 0.3
    for kinds, batch, options in (
        ("igi", 1, {}),
        ("ig", 2, {"apply_confidence_mask": True}),
        ("iii", 1, {"apply_mask": False}),
        ("ii", 1, {"use_multiview_confidence": True}),
        ("ii", 1, {"outputs": ("pts3d", "mask")}),
    ):
        views = given_views(kinds, batch)
        if batch == 1:
            views[-1]["mask"] = mask
        expected = small.infer(views, **options)
        first = len(driver.copies)
        found = device_engine.infer(views, on_device=True, **options)
        if not options.get("use_multiview_confidence"):
            assert max(size for way, size in driver.copies[first:] if way == "down") <= 4  # the scale
        assert [list(view) for view in found] == [list(view) for view in expected]
        for got, want in zip(found, expected, strict=True):
            assert {name: (a.shape, a.dtype) for name, a in got.items()} == {
                name: (a.shape, a.dtype) for name, a in want.items()
            }
        device_engine.infer(given_views("gig"))  # which fills the buffers of the call anew
        assert_close([{name: array.numpy() for name, array in view.items()} for view in found], expected)
        for view in found:
            for array in view.values():
                np.testing.assert_array_equal(of_interface(array), array.numpy())


def test_an_old_bundle_brings_its_results_back_to_the_gpu(plan_bundle: Path, library: Any, small: Engine) -> None:
    change_manifest(plan_bundle, lambda document: document["stages"].pop("scene"))
    views = given_views("ig")
    found = Engine.load(plan_bundle, library.name, verify=False).infer(views, on_device=True)
    assert tuple(found[0]) == OUTPUTS
    assert_close([{name: array.numpy() for name, array in view.items()} for view in found], small.infer(views))


def test_on_a_processor_it_changes_nothing(small: Engine) -> None:
    views = given_views("i")
    plain, found = small.infer(views), small.infer(views, on_device=True)
    for name, array in found[0].items():
        assert type(array) is np.ndarray
        np.testing.assert_array_equal(array, plain[0][name])
    np.testing.assert_array_equal(np.from_dlpack(found[0]["pts3d"]), plain[0]["pts3d"])
    with pytest.raises(InputError, match="on_device is 'cuda'; it must be True or False"):
        small.infer(views, on_device="cuda")  # type: ignore[arg-type]


@pytest.mark.parametrize("take", [np.from_dlpack, torch.from_dlpack])
def test_other_libraries_take_it_without_a_copy(arrays: dict[str, DeviceArray], on_cpu: None, take: Any) -> None:
    for name, values in VALUES.items():
        taken = take(arrays[name])
        np.testing.assert_array_equal(np.asarray(taken), values)
        assert np.asarray(taken).dtype == values.dtype
        if values.size:
            address = taken.data_ptr() if take is torch.from_dlpack else taken.__array_interface__["data"][0]
            assert address == arrays[name].address


@pytest.mark.parametrize("take", [np.from_dlpack, torch.from_dlpack])
def test_what_was_taken_outlasts_the_array(
    arrays: dict[str, DeviceArray], driver: StandInDriver, on_cpu: None, take: Any
) -> None:
    taken = take(arrays["points"])
    for array in arrays.values():
        array.release()
    arrays.clear()
    gc.collect()
    assert len(driver.blocks) == 1
    np.testing.assert_array_equal(np.asarray(taken), VALUES["points"])
    del taken
    gc.collect()
    assert driver.blocks == {}


def test_a_capsule_that_nobody_takes_gives_the_memory_back(
    arrays: dict[str, DeviceArray], driver: StandInDriver
) -> None:
    capsule = arrays["points"].__dlpack__(stream=1, max_version=(1, 0))
    assert "dltensor" in repr(capsule)
    arrays.clear()
    gc.collect()
    assert len(driver.blocks) == 1
    del capsule
    gc.collect()
    assert driver.blocks == {}


def test_use_after_release_is_refused_in_a_sentence(arrays: dict[str, DeviceArray], driver: StandInDriver) -> None:
    points = arrays["points"]
    assert points.__dlpack_device__() == (2, 0)
    assert (points.ndim, points.nbytes) == (3, 96)
    assert "points, (2, 4, 3), float32, on NVIDIA" in repr(points)
    points.release()
    points.release()
    for use in (
        points.numpy,
        points.__dlpack__,
        points.__dlpack_device__,
        lambda: points.address,
        lambda: points.__cuda_array_interface__,
    ):
        with pytest.raises(InputError, match=r"^points was released and has no values any more; call infer again$"):
            use()
    assert repr(points) == "DeviceArray(points, (2, 4, 3), float32, released)"
    np.testing.assert_array_equal(arrays["mask"].numpy(), VALUES["mask"])  # of the same block


def test_another_device_or_a_copy_is_refused(arrays: dict[str, DeviceArray]) -> None:
    points = arrays["points"]
    points.__dlpack__(dl_device=(2, 0), copy=False)
    for options in ({"dl_device": (1, 0)}, {"copy": True}):
        with pytest.raises(BufferError, match="points is handed over where it is, without a copy"):
            points.__dlpack__(**options)  # type: ignore[arg-type]


def test_an_array_that_goes_away_while_a_graph_is_recorded_is_freed_afterwards(
    arrays: dict[str, DeviceArray], driver: StandInDriver
) -> None:
    device = cuda.open_device()
    with device.current():
        stream = device.stream()
        with stream.capture() as graph:
            arrays.clear()
            gc.collect()
            assert len(driver.blocks) == 1
        assert driver.blocks == {}
        assert graph.executable is not None
        graph.free()
        stream.free()


def test_what_does_not_fit_takes_the_memory_of_idle_contexts(
    device_engine: Engine, driver: StandInDriver, small: Engine
) -> None:
    views = given_views("ii")
    device_engine.infer(given_views("iiii"))
    device_engine.infer(views)
    expected = small.infer(views)
    driver.memory = sum(driver.blocks.values()) + 2**17  # not enough for the results as well
    try:
        found = device_engine.infer(views, on_device=True)
        assert_close([{name: array.numpy() for name, array in view.items()} for view in found], expected)
    finally:
        driver.memory = 2**30
