"""Fixtures that several packages' tests use."""

from __future__ import annotations

import gc
import math
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

from mapengine.runtime.bundle.manifest import (
    EVERY_STAGE,
    STAGES,
    AnySize,
    BackendInfo,
    FileRecord,
    GeometryParity,
    Golden,
    Manifest,
    ModelInfo,
    OutputParity,
    Parity,
    Range,
    ServedRequests,
    StageSpec,
    TensorSpec,
    Tolerance,
)
from mapengine.runtime.bundle.store import BundleWriter, write_bundle

from .stage_files import change_manifest, graph_bytes


def _use_one_processor() -> None:
    """Keep a worker of pytest-xdist on a processor of its own.

    Libraries start a thread per processor, and those of all workers would wait for each other.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker.startswith("gw") and hasattr(os, "sched_setaffinity"):
        processors = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {processors[int(worker.removeprefix("gw")) % len(processors)]})


_use_one_processor()  # before a library asks how many processors there are


def _keep_bytecode() -> None:
    """Let this process and those that tests start keep their bytecode, whatever the environment says.

    They start hundreds, and each would compile every module of the package again, which is half of its start.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False


_keep_bytecode()


def _hear_ctrl_c() -> None:
    """Let Ctrl+C end what tests start, also in the background, where shells have commands ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


_hear_ctrl_c()

# How fast values are drawn and examples run depends on what else the machine does, and says nothing of the code.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, the networks of full size and the end-to-end runs: nobody waits for them then."""
    items.sort(key=lambda item: ("test_full_size" not in item.name, item.path.parent != Path(__file__).parent))


def pytest_collection_finish() -> None:
    """Leave out of the search for garbage what is there before the first test: with PyTorch's it takes half a second.

    Python searches now and then by itself, too.
    """
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let extension modules find what they made when they end; Triton's complains at length otherwise."""
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """What tests write need not outlast a loss of power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # which refuses what is not open, too
        yield


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's own cache."""
    monkeypatch.setenv("MAPENGINE_CACHE", str(tmp_path_factory.getbasetemp() / "mapengine-cache"))


_INPUTS = (TensorSpec("x", "float32", ("views", 3, "height", "width")), TensorSpec("flags", "bool", ("views",)))
_OUTPUTS = (TensorSpec("y", "float32", ("views", "patches", 48)), TensorSpec("scale", "float32", ()))


def _make_manifest(record: Callable[[str], FileRecord]) -> Manifest:
    """A valid manifest whose file records come from ``record(name)``."""
    stages = {
        name: StageSpec(
            file=record(f"{name}.onnx"),
            data=(record(f"{name}.onnx.data"),) if name == "aggregator" else (),
            inputs=_INPUTS,
            outputs=_OUTPUTS,
            opset=20,
            optimization_profiles=({"views": Range(1, 4, 32)},),
        )
        for name in EVERY_STAGE
    }
    return Manifest(
        created_by="0.1.0",
        tools={"torch": "2.13.0", "onnx": "1.23.2"},
        model=ModelInfo(
            id="preset:tiny",
            revision=None,
            config={"adaptor": {"vmax": math.inf, "vmin": -math.inf, "indices": [7, 11]}, "name": "mapanything"},
            weights_sha256="0" * 64,
            parameters=123456,
            data_norm_type="dinov2",
            embed_dim=48,
            dim=48,
            extra_tokens=1,
        ),
        precision="fp32",
        reduced_precision=None,
        quantization=None,
        attention="mha",
        format="onnx",
        backends=(BackendInfo("onnxruntime", "1.32.0", "1.22"), BackendInfo("openvino", "2026.4.1", "2026.0")),
        requests=ServedRequests(Range(1, 4, 32), AnySize(14, 518), {"image_encoder": 4}),
        stages=stages,
        golden=Golden(record("golden.npz"), {"depth_z": Tolerance(1e-4, 1e-3)}),
        parity=Parity(
            ("image_2v",),
            {"depth_z": OutputParity(1e-6, 2e-6)},
            GeometryParity(1e-6, 0.0, 1e-4, 1e-6, 0.0),
            "onnxruntime 1.32.0 on CPU",
        ),
    )


def _fill_bundle(writer: BundleWriter) -> Manifest:
    for name in EVERY_STAGE:
        data = "aggregator.onnx.data" if name == "aggregator" else ""
        (writer.folder / f"{name}.onnx").write_bytes(graph_bytes(_INPUTS, _OUTPUTS, data=data))
    (writer.folder / "aggregator.onnx.data").write_bytes(b"weights" * 1000)
    writer.golden({"in": np.arange(6, dtype=np.float32), "out": np.ones((2, 3), bool)})
    return writer.write_manifest(_make_manifest(writer.record)).manifest


@pytest.fixture(scope="session")
def manifest() -> Manifest:
    """A valid manifest; the files that it names do not exist."""
    return _make_manifest(lambda name: FileRecord(name, "a" * 64, 10))


@pytest.fixture(scope="session")
def fill_bundle() -> Callable[[BundleWriter], Manifest]:
    """Writes stage files (graphs without nodes), golden arrays and the manifest through a ``BundleWriter``."""
    return _fill_bundle


@pytest.fixture
def bundle_folder(tmp_path: Path) -> Path:
    """A valid bundle of graphs without nodes, in a folder of its own."""
    with write_bundle(tmp_path / "bundle") as writer:
        _fill_bundle(writer)
    return tmp_path / "bundle"


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of a test run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def shared_traces(shared_folder: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    """No two tests trace the same stage, nor does the next run unless the network's code has changed."""
    from .shared_traces import share_traces  # here, because most tests need no PyTorch

    cache = getattr(request.config, "cache", None)
    with pytest.MonkeyPatch.context() as patch:
        share_traces(patch, shared_folder / "traces" if cache is None else cache.mkdir("traces"))
        yield


@pytest.fixture(scope="session")
def shared_kernels(shared_folder: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    """No two builds in the tests' own processes compile the same kernel, nor does the next run of the same code."""
    from .shared_kernels import share_kernels

    cache = getattr(request.config, "cache", None)
    with pytest.MonkeyPatch.context() as patch:
        share_kernels(patch, shared_folder / "kernels" if cache is None else cache.mkdir("kernels"))
        yield


@pytest.fixture(scope="session")
def shared_plan_folder(shared_folder: Path, request: pytest.FixtureRequest) -> Path:
    """Where compiled plans are kept, for a process that a test starts."""
    cache = getattr(request.config, "cache", None)
    return shared_folder / "plans" if cache is None else cache.mkdir("plans")


@pytest.fixture
def shared_plans(shared_plan_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No two builds of the tests that use this compile the same plan, nor does the next run of the same code."""
    from .shared_plans import share_plans

    share_plans(monkeypatch, shared_plan_folder)


@pytest.fixture(scope="session")
def tiny_bundle(shared_folder: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A real bundle of ``preset:tiny``, built once and shared by all worker processes. Copy it before changing it."""
    bundle = shared_folder / "tiny-bundle"
    if not bundle.is_dir():  # a build appears complete, in one step
        request.getfixturevalue("shared_traces")
        from mapengine.export import build_engine, load_model
        from mapengine.export.graphs.tracing import export_stages

        model = load_model("preset:tiny")
        # Every other worker begins with the last stage: two do not wait for each other's traces.
        reverse = os.environ.get("PYTEST_XDIST_WORKER", "gw0")[-1] in "13579"
        for stage in reversed(STAGES) if reverse else STAGES:
            export_stages(model, tmp_path_factory.mktemp("trace"), stages=[stage])
        with FileLock(f"{bundle}.lock"):
            if not bundle.is_dir():
                build_engine(model, bundle)
    return bundle


@pytest.fixture(scope="session")
def few_keys_bundle(shared_folder: Path, request: pytest.FixtureRequest) -> Path:
    """A real bundle of ``preset:tiny`` that keeps a quarter of the keys in block 0 and half of them in block 4."""
    bundle = shared_folder / "few-keys-bundle"
    if not bundle.is_dir():
        request.getfixturevalue("shared_traces")
        from mapengine.export import build_engine, load_model

        with FileLock(f"{bundle}.lock"):
            if not bundle.is_dir():
                build_engine(load_model("preset:tiny"), bundle, attention="native:kv=0.25@0/mha:kv=0.5@4")
    return bundle


@pytest.fixture(scope="session")
def made_engine(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bundle and the samples that ``make engine`` leaves behind, but of a smaller network.

    The bundle serves what the default one serves, no other size.
    """
    from mapengine.calibration.data.samples import write_samples

    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(tiny_bundle, folder / "build" / "engine")
    change_manifest(folder / "build" / "engine", lambda document: document["profile"].update(sizes=[[140, 112]]))
    write_samples(folder / "build" / "samples")
    return folder
