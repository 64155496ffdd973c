"""Graphs in ONNX Runtime on the stand-in GPU give what they give on a processor, alone and with our own kernels."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mapengine.export import compile_engine
from mapengine.export.attention.segments import Segment
from mapengine.runtime import Engine
from mapengine.runtime.backends import onnxruntime_cuda, registry
from mapengine.runtime.backends.contract import ChunkSizes
from mapengine.runtime.backends.cuda import driver as cuda
from mapengine.runtime.bundle.manifest import StageSpec
from mapengine.runtime.bundle.store import Bundle, BundleWriter
from mapengine.runtime.errors import BackendError, BackendUnavailableError, IntegrityError, ManifestError, VersionError
from mapengine.runtime.inputs.prepared import prepare_views
from mapengine.runtime.postprocessing.predictions import forward_outputs

from ....chain_graphs import cut, half_bundle, write_chain
from ....interpreted_kernels import import_interpreted
from ....random_views import assert_close, mixed_views, random_views
from ....stage_files import change_manifest
from .conftest import copy_bundle
from .requests import MakeDriver, call_from_threads, forward, given_views
from .stand_in_driver import StandInDriver
from .stand_in_onnxruntime import StandInOnnxRuntime
from .test_chain import assert_near

pytestmark = pytest.mark.slow  # its fixtures take seconds

NAME = "onnxruntime-cuda"
MakeLibrary = Callable[[StandInDriver], StandInOnnxRuntime]


@pytest.fixture
def make_library(monkeypatch: pytest.MonkeyPatch) -> MakeLibrary:
    def make(gpu: StandInDriver) -> StandInOnnxRuntime:
        library = StandInOnnxRuntime(gpu)
        monkeypatch.setattr(onnxruntime_cuda, "import_library", lambda name: library)
        monkeypatch.setattr(onnxruntime_cuda, "driver_problem", lambda: None)
        return library

    return make


@pytest.fixture
def library(driver: StandInDriver, make_library: MakeLibrary) -> StandInOnnxRuntime:
    return make_library(driver)


@pytest.fixture(scope="session")
def cuda_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network in float32 for ONNX Runtime on a GPU, made from the bundle for processors."""
    out = tmp_path_factory.mktemp("cuda") / "bundle"
    compile_engine(tiny_bundle, out, backend=NAME)
    return out


@pytest.fixture
def engine(library: StandInOnnxRuntime, cuda_bundle: Path) -> Engine:
    return Engine.load(cuda_bundle, NAME, verify=False)


def test_the_bundle_says_what_it_is_for(cuda_bundle: Path, tiny_bundle: Path) -> None:
    manifest, source = Bundle.open(cuda_bundle).manifest, Bundle.open(tiny_bundle).manifest
    assert manifest.format == "onnx-cuda"
    (served,) = manifest.backends
    assert (served.name, served.compute_capability, served.maximum_version) == (NAME, None, None)
    assert manifest.parity == source.parity  # of the same graphs: no GPU was here
    assert [tensor.name for tensor in manifest.stages["geometry_encoder"].outputs] == ["features"]
    with pytest.raises(VersionError, match="this bundle is for onnxruntime-cuda, not for onnxruntime"):
        Engine.load(cuda_bundle, "onnxruntime")


@pytest.mark.slow
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kinds=st.text("ig", min_size=1, max_size=6),
    batch=st.integers(1, 2),
    chunks=st.builds(ChunkSizes, st.integers(1, 7), st.integers(1, 7), st.integers(1, 7)),
    schedule=st.one_of(st.sampled_from(["lazy", "eager"]), st.integers(0, 2**32)),
    calls=st.integers(1, 3),
)
def test_any_request_gives_the_numbers_of_the_host(
    kinds: str,
    batch: int,
    chunks: ChunkSizes,
    schedule: str | int,
    calls: int,
    small: Engine,
    cuda_bundle: Path,
    make_driver: MakeDriver,
    make_library: MakeLibrary,
) -> None:
    driver = make_driver(schedule)
    make_library(driver)
    engine = Engine.load(cuda_bundle, NAME, verify=False)
    views = given_views(kinds, batch)
    expected = forward(small, views)
    for _ in range(calls):  # plain, recorded, replayed
        assert_close(forward(engine, views, chunks), expected)
    del engine
    gc.collect()
    assert (driver.blocks, driver.pinned) == ({}, {})
    assert len(driver.handles) == 1  # the process's stream, which libraries may outlive an engine in


def test_shapes_in_turn(engine: Engine, small: Engine) -> None:
    requests = [given_views(kinds, width=width) for kinds, width in (("gig", 42), ("g", 42), ("gig", 70), ("iii", 42))]
    expected = [forward(small, views) for views in requests]
    for _ in range(3):
        for views, numbers in zip(requests, expected, strict=True):
            assert_close(forward(engine, views), numbers)


@pytest.mark.parametrize("schedule", ["lazy", "eager", 11])
def test_threads_share_the_stream_and_not_the_recording(
    schedule: str | int, small: Engine, cuda_bundle: Path, make_driver: MakeDriver, make_library: MakeLibrary
) -> None:
    make_library(make_driver(schedule))
    engine = Engine.load(cuda_bundle, NAME, verify=False)
    call_from_threads(engine, small)


def test_streams_of_one_thread_may_interleave(engine: Engine, small: Engine) -> None:
    views = random_views(3)
    expected = forward(small, views)
    one, two = (engine.pipeline.stream(prepare_views(views)) for _ in range(2))
    for number, (first, second) in enumerate(zip(one, two, strict=True)):
        assert_close([forward_outputs(**first)], expected[number : number + 1])
        assert_close([forward_outputs(**second)], expected[number : number + 1])


def test_runs_are_not_recorded(engine: Engine, library: StandInOnnxRuntime, driver: StandInDriver) -> None:
    for _ in range(3):
        engine.predict(mixed_views(3))
    assert library.enqueued["aggregator"] == 3
    assert (driver.launches, driver.calls.get("cuStreamBeginCapture", 0)) == (0, 0)


def test_a_refusal_has_the_librarys_words(engine: Engine, library: StandInOnnxRuntime, small: Engine) -> None:
    views = random_views(2)
    library.refuse = "[ONNXRuntimeError] : 1 : FAIL : CUDNN failure 8\nsecond line"
    with pytest.raises(BackendError, match=r"^onnxruntime failed in the stage image_encoder: .*CUDNN failure 8; build"):
        engine.predict(views)
    library.refuse = "Failed to allocate memory for requested buffer of size 123"
    with pytest.raises(BackendError, match="because the GPU's memory is full; use fewer or smaller views"):
        engine.predict(views)
    library.refuse = None
    assert_close(forward(engine, views), forward(small, views))


def test_other_tensors_than_the_manifest_says(
    library: StandInOnnxRuntime, cuda_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rename(document: Any) -> None:
        document["stages"]["image_encoder"]["inputs"][0]["dtype"] = "float16"

    changed = copy_bundle(cuda_bundle, tmp_path / "changed")
    change_manifest(changed, rename)
    with pytest.raises(IntegrityError, match=r"image_encoder\.onnx has the input 'images' float32 .*'images' float16"):
        Engine.load(changed, NAME, verify=False)
    # What the library itself says of the graph is compared as well.
    monkeypatch.setattr(Bundle, "check_graphs", lambda self: None)
    with pytest.raises(ManifestError, match=r"graph of image_encoder has other tensors .*\(images\)"):
        Engine.load(changed, NAME, verify=False)


def test_what_is_missing(
    library: StandInOnnxRuntime, cuda_bundle: Path, driver: StandInDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.loads = False
    with pytest.raises(BackendUnavailableError, match=r"cannot load its CUDA libraries; .*mapengine\[cuda\]"):
        Engine.load(cuda_bundle, NAME, verify=False)
    library.has_provider = False
    with pytest.raises(BackendUnavailableError, match=r"is for processors only; run: pip uninstall onnxruntime, "):
        Engine.load(cuda_bundle, NAME, verify=False)
    monkeypatch.setattr(onnxruntime_cuda, "driver_problem", lambda: "the NVIDIA driver finds no GPU")
    with pytest.raises(BackendUnavailableError, match="needs an NVIDIA GPU, and the NVIDIA driver finds no GPU; run"):
        Engine.load(cuda_bundle, NAME, verify=False)


def test_it_is_available_where_a_gpu_and_the_package_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "driver_problem", lambda: None)
    for there in (True, False):
        monkeypatch.setattr(registry, "has_cuda", lambda there=there: there)
        assert (NAME in registry.available_backends()) is there
    monkeypatch.setattr(cuda, "driver_problem", lambda: "no driver")
    monkeypatch.setattr(registry, "has_cuda", lambda: True)
    assert NAME not in registry.available_backends()


@pytest.fixture(scope="module")
def half_bundles(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same in half precision, for processors and for a GPU."""
    folder = tmp_path_factory.mktemp("half")
    source = half_bundle(tiny_bundle, folder / "source")
    compile_engine(source, folder / "bundle", backend=NAME, attention="native")
    return source, folder / "bundle"


def test_half_precision(library: StandInOnnxRuntime, half_bundles: tuple[Path, Path], small: Engine) -> None:
    engine = Engine.load(half_bundles[1], NAME, verify=False)
    for count in (1, 3, 2, 3):
        assert_near(engine.predict(mixed_views(count)), small.predict(mixed_views(count)))


@pytest.fixture(scope="module")
def chain_bundle(half_bundles: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the aggregator as graphs with our kernels between them."""
    pytest.importorskip("triton")
    import_interpreted()
    source, bundle = half_bundles
    graphs = tmp_path_factory.mktemp("graphs")
    segments, attention = cut(source, source / "aggregator.onnx", graphs, "flash@0/int8@2/sparse:0.5@4")

    def write_segment(writer: BundleWriter, segment: Segment, spec: StageSpec) -> StageSpec:
        shutil.copyfile(segment.path, writer.folder / segment.path.name)
        return replace(spec, file=writer.record(segment.path.name))

    folder = tmp_path_factory.mktemp("chain") / "bundle"
    write_chain(bundle, folder, segments, attention, write_segment)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["lazy", "eager", 1])
def test_a_chain_is_the_network(
    schedule: str | int,
    chain_bundle: Path,
    small: Engine,
    make_driver: MakeDriver,
    make_library: MakeLibrary,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    driver = make_driver(schedule)
    library = make_library(driver)
    engine = Engine.load(chain_bundle, NAME, verify=False)
    for count in (3, 2, 3, 3):
        assert_near(engine.predict(mixed_views(count)), small.predict(mixed_views(count)))
    assert [library.enqueued[f"aggregator_{index}"] for index in range(4)] == [4, 4, 4, 4]
    assert driver.kernels["int8-fp16-d32"] == 4
