"""What is refused before a plan runs, and what TensorRT's own refusals become."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mapengine.runtime import Engine
from mapengine.runtime.backends.cuda.driver import OutOfMemory
from mapengine.runtime.backends.cuda.stage import tensor_bytes
from mapengine.runtime.backends.tensorrt.plans import Plan
from mapengine.runtime.bundle.manifest import TensorSpec
from mapengine.runtime.bundle.stages import tensor_shape
from mapengine.runtime.bundle.store import BundleWriter
from mapengine.runtime.errors import (
    BackendError,
    BundleNotFoundError,
    DeviceError,
    IntegrityError,
    ManifestError,
    ParityError,
    ProfileError,
    VersionError,
)
from mapengine.runtime.typed_json.codec import encode

from ....random_views import assert_close, random_views
from ....stage_files import change_manifest
from .stand_in_driver import StandInDriver
from .stand_in_tensorrt import HEADER, StandInTensorRt

Change = Callable[[dict[str, Any]], None]


def change_plan(folder: Path, stage: str, content: bytes) -> None:
    """Replace a plan, and its hash in the manifest with it."""
    (folder / f"{stage}.plan").write_bytes(content)
    record = encode(BundleWriter(folder).record(f"{stage}.plan"))
    change_manifest(folder, lambda manifest: manifest["stages"][stage].update(record))


def change_tensors(folder: Path, stage: str, change: Change) -> None:
    """Change what the plan itself says of its tensors, but not what the manifest says."""
    header, body = (content := (folder / f"{stage}.plan").read_bytes())[:HEADER], json.loads(content[HEADER:])
    change(body["spec"])
    change_plan(folder, stage, header + json.dumps(body).encode())


@pytest.fixture
def load(library: StandInTensorRt, plan_bundle: Path) -> Callable[..., Engine]:
    return lambda **options: Engine.load(plan_bundle, library.name, **{"verify": False, **options})


# Before the library sees a plan


@pytest.mark.parametrize("verify", [True, False])
def test_an_altered_plan(
    load: Callable[..., Engine], library: StandInTensorRt, plan_bundle: Path, verify: bool
) -> None:
    """Plans are code, so there is no way to load one unverified."""
    path = plan_bundle / "aggregator.plan"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"aggregator.plan differs from the hash"):
        load(verify=verify)
    assert library.runtimes == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"version": "9.0", "minimum_version": "9.0", "maximum_version": "9.0"},
            VersionError,
            r"needs tensorrt\S* 9.0 or \w+, and \S+ is installed",
        ),
        (
            {"compute_capability": ["8.7", "12.0"]},
            DeviceError,
            "built for compute capability 8.7, 12.0, and this device has 8.9; build the bundle again on this device",
        ),
    ],
)
def test_another_version_or_device(
    change: dict[str, Any],
    error: type[Exception],
    message: str,
    load: Callable[..., Engine],
    library: StandInTensorRt,
    plan_bundle: Path,
) -> None:
    change_manifest(plan_bundle, lambda manifest: manifest["backends"][0].update(change))
    with pytest.raises(error, match=message):
        load()
    assert library.runtimes == 0


def test_the_other_library(plan_bundle: Path, library: StandInTensorRt) -> None:
    other = "tensorrt" if library.is_rtx else "tensorrt-rtx"
    with pytest.raises(VersionError, match=f"this bundle is for {library.name}, not for {other}"):
        Engine.load(plan_bundle, other)


# When it is loaded


def test_tensorrt_rtx_says_from_the_header_that_it_cannot_run_a_plan(
    load: Callable[..., Engine], library: StandInTensorRt, driver: StandInDriver
) -> None:
    library.invalid = 2 | 16
    if not library.is_rtx:  # has no such check
        load()
        return
    with pytest.raises(
        VersionError, match=r"image_normalizer.*\(unsupported cc, insufficient gpu memory\); build the bundle"
    ):
        load()
    assert library.alive == 0


@pytest.mark.parametrize("content", [b"", b"\0", b"no plan " * 100])
def test_what_is_no_plan(
    content: bytes, load: Callable[..., Engine], library: StandInTensorRt, plan_bundle: Path
) -> None:
    change_plan(plan_bundle, "dense_head", content)
    with pytest.raises((BackendError, VersionError, BundleNotFoundError), match=r"dense_head.*build the bundle again"):
        load()
    assert library.alive == 0  # the plans that were loaded before are given back


def test_a_plan_that_is_gone(load: Callable[..., Engine], plan_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Plan.__init__

    def remove_first(self: Plan, *arguments: Any) -> None:
        (plan_bundle / "aggregator.plan").unlink(missing_ok=True)
        original(self, *arguments)

    monkeypatch.setattr(Plan, "__init__", remove_first)
    with pytest.raises(BundleNotFoundError, match=r"lacks the file aggregator.plan"):
        load()


def test_the_librarys_words_are_in_the_error_and_in_the_log(
    load: Callable[..., Engine], library: StandInTensorRt, caplog: pytest.LogCaptureFixture
) -> None:
    library.refuse["deserialize_cuda_engine"] = "the plan is of platform linux_aarch64.\nmore"
    with pytest.raises(
        BackendError, match=r"cannot load the stage image_normalizer.*linux_aarch64\); build the bundle"
    ):
        load()
    (record,) = [record for record in caplog.records if "linux_aarch64" in record.message]
    assert (record.levelno, record.name.split(".")[0]) == (logging.ERROR, "mapengine")


def test_weights_that_do_not_fit(load: Callable[..., Engine], library: StandInTensorRt) -> None:
    library.refuse["deserialize_cuda_engine"] = "Error Code 1: Cuda Runtime (out of memory)"
    with pytest.raises(OutOfMemory, match=r"the GPU's memory is full.*close other programs"):
        load()


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec["inputs"][0].update(name="image"),
        lambda spec: spec["outputs"][0].update(dtype="float16"),
        lambda spec: spec["outputs"].append({"name": "more", "dtype": "float32", "shape": [1]}),
        lambda spec: spec["outputs"].pop(),
        lambda spec: spec["inputs"].extend(spec["outputs"][:1]) or spec["outputs"].pop(0),
    ],
)
def test_a_plan_with_other_tensors(change: Change, load: Callable[..., Engine], plan_bundle: Path) -> None:
    change_tensors(plan_bundle, "dense_head", change)
    with pytest.raises(ManifestError, match=r"the plan of dense_head has other tensors than the manifest says \(\w+"):
        load()


def test_an_output_that_is_larger_than_its_buffer(
    load: Callable[..., Engine], plan_bundle: Path, driver: StandInDriver
) -> None:
    change_tensors(plan_bundle, "dense_head", lambda spec: spec["outputs"][-1].update(shape=["views_in_chunk", 9999]))
    engine = load()
    with pytest.raises(BackendError, match=r"dense_head: cam_quats is not of shape \(1, 4\)"):
        engine.predict(random_views(1))
    assert driver.blocks == {}


@pytest.mark.slow
def test_the_golden_check_runs_on_the_gpu(load: Callable[..., Engine], library: StandInTensorRt) -> None:
    library.noise = 0.5
    with pytest.raises(ParityError, match=f"{library.name} .* on NVIDIA Stand-in 4000 .* gives wrong results"):
        load(verify=True)
    library.noise = 0.0
    load(verify=True)
    before = dict(library.enqueued)
    load(verify=True)  # remembered for this bundle, library and GPU
    assert library.enqueued == before


# When it runs


@pytest.mark.slow
def test_each_profile_serves_its_shapes(device_engine: Engine, small: Engine) -> None:
    """The stand-in refuses shapes outside of the chosen profile; the aggregator's first one ends at four views."""
    for count in (1, 4, 5, 8):
        assert_close(device_engine.predict(random_views(count)), small.predict(random_views(count)))


@pytest.mark.parametrize(("width", "height"), [(140, 28), (42, 126)])
def test_a_size_outside_of_every_profile(
    width: int, height: int, device_engine: Engine, library: StandInTensorRt, driver: StandInDriver
) -> None:
    views = random_views(2, width=width, height=height)
    with pytest.raises(ProfileError, match=r"not built for .*patch_rows \d+, patch_columns \d+.*--resolution"):
        device_engine.predict(views)
    assert (library.enqueued, driver.blocks) == ({}, {})


def test_too_many_views_are_refused_by_the_bundle(device_engine: Engine) -> None:
    with pytest.raises(ProfileError, match=r"9 views in one call, but this bundle was built for 1 to 8.*--views 1:4:9"):
        device_engine.predict(random_views(9))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("create_execution_context", "Error Code 2: Internal Error"),
        ("execute_async_v3", "enqueueV3: Error Code 7: Internal Error"),
    ],
)
def test_a_refusal_while_running(
    call: str, text: str, device_engine: Engine, small: Engine, library: StandInTensorRt, driver: StandInDriver
) -> None:
    library.refuse[call] = text
    with pytest.raises(BackendError, match=rf"{library.name} failed in the stage \w+: .*Internal Error"):
        device_engine.predict(random_views(2))
    assert (driver.blocks, driver.pinned) == ({}, {})
    library.refuse.clear()
    assert_close(device_engine.predict(random_views(2)), small.predict(random_views(2)))


def test_a_context_that_does_not_fit(device_engine: Engine, library: StandInTensorRt) -> None:
    library.refuse["create_execution_context"] = "Error Code 2: OutOfMemory (Requested size was 8589934592 bytes.)"
    with pytest.raises(OutOfMemory, match=r"the GPU's memory is full.*8589934592.*use fewer or smaller views"):
        device_engine.predict(random_views(2))


def test_shapes_and_sizes_of_tensors() -> None:
    spec = TensorSpec("x", "float16", ("views", "14*patch_rows", 3))
    axes = {"views": 2, "patch_rows": 5}
    assert tensor_shape(spec, axes) == (2, 70, 3)
    assert tensor_bytes(spec, axes) == 2 * 70 * 3 * 2
    large = TensorSpec("x", "float32", ("views", "patch_rows", 2**20))
    assert tensor_bytes(large, {"views": 2**12, "patch_rows": 5}) == 5 * 2**34  # no 32-bit arithmetic
