"""Plans with our own attention kernels between them, on the stand-in GPU: the real segments and the real kernels."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mapengine.export.attention.segments import Segment
from mapengine.runtime import Engine
from mapengine.runtime.backends.cuda.chain import Lifetime, SegmentChain, place
from mapengine.runtime.bundle.manifest import StageSpec
from mapengine.runtime.bundle.store import BundleWriter
from mapengine.runtime.errors import BackendError, IntegrityError, ManifestError
from mapengine.runtime.typed_json.codec import encode

from ....chain_graphs import cut, half_aggregator, write_chain
from ....interpreted_kernels import import_interpreted
from ....random_views import mixed_views
from ....stage_files import change_manifest
from .conftest import copy_bundle
from .stand_in_driver import StandInDriver
from .stand_in_tensorrt import StandInTensorRt, write_plan

pytest.importorskip("triton")
ATTENTION = "flash@0/int8@2/sparse:0.5@4"
COUNTS = {"dense-fp16-d32": 1, "int8-fp16-d32": 1, "sparse-fp16-d32": 1}
IN_8_BITS = "int8-fp8@0/sparse-int8:0.5@2/sparse-int8-fp8:0.5@4"
COUNTS_IN_8_BITS = {"int8-fp8-fp16-d32": 1, "sparse-int8-fp16-d32": 1, "sparse-int8-fp8-fp16-d32": 1}


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    import_interpreted()
    monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture(scope="module")
def chains(tiny_bundle: Path, plan_bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The bundles of plans, with the aggregator as a chain."""
    return _make_chains(ATTENTION, tiny_bundle, plan_bundles, tmp_path_factory)


@pytest.fixture(scope="module")
def chains_in_8_bits(tiny_bundle: Path, plan_bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same with the kernels that compute most in 8 bits."""
    return _make_chains(IN_8_BITS, tiny_bundle, plan_bundles, tmp_path_factory)


def _make_chains(
    kernels_of_blocks: str,
    network: Path,
    plan_bundles: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    import_interpreted()
    graphs = tmp_path_factory.mktemp("chain-graphs")
    half = half_aggregator(network, graphs)
    segments, attention = cut(network, half, graphs, kernels_of_blocks)
    found = {}
    for name, source in plan_bundles.items():
        found[name] = tmp_path_factory.mktemp("chains") / name
        write_chain(source, found[name], segments, attention, _write_segment)
    return found


def _write_segment(writer: BundleWriter, segment: Segment, spec: StageSpec) -> StageSpec:
    plan = writer.folder / f"{segment.path.stem}.plan"
    write_plan(plan, segment.path, encode(spec), 64)
    return replace(spec, file=writer.record(plan.name))


@pytest.fixture
def chain_bundle(library: StandInTensorRt, chains: dict[str, Path], tmp_path: Path) -> Path:
    return copy_bundle(chains[library.name], tmp_path / "chain-bundle")


@pytest.fixture
def load(library: StandInTensorRt, chain_bundle: Path) -> Callable[..., Engine]:
    return lambda **options: Engine.load(chain_bundle, library.name, **{"verify": False, **options})


def assert_near(found: Any, wanted: Any) -> None:
    """Half precision, INT8 scores and a choice of keys that is all of these few: against the float32 engine."""
    for ours, theirs in zip(found, wanted, strict=True):
        for key in ("pts3d", "cam_trans", "conf"):
            difference = np.abs(ours[key] - theirs[key]).max() / np.abs(theirs[key]).max()
            assert difference < 3e-2, (key, difference)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3, 5])
def test_a_chain_is_the_network(
    count: int, load: Callable[..., Engine], small: Engine, driver: StandInDriver, library: StandInTensorRt
) -> None:
    views = mixed_views(count)
    assert_near(load().predict(views), small.predict(views))
    assert {name: driver.kernels[name] for name in COUNTS} == COUNTS
    assert [library.enqueued[f"aggregator_{index}"] for index in range(4)] == [1, 1, 1, 1]


@pytest.mark.slow
def test_a_chain_with_attention_in_8_bits_is_the_network(
    chains_in_8_bits: dict[str, Path], library: StandInTensorRt, driver: StandInDriver, small: Engine, tmp_path: Path
) -> None:
    bundle = copy_bundle(chains_in_8_bits[library.name], tmp_path / "in-8-bits")
    engine = Engine.load(bundle, library.name, verify=False)
    for count in (1, 3, 1):
        assert_near(engine.predict(mixed_views(count)), small.predict(mixed_views(count)))
    assert {name: driver.kernels[name] // 3 for name in COUNTS_IN_8_BITS} == COUNTS_IN_8_BITS


@pytest.fixture(scope="module")
def chains_with_fewer_keys(
    few_keys_bundle: Path, plan_bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The bundles of plans, with the aggregator of the network that keeps fewer keys as a chain."""
    return _make_chains("int8@0/flash@4", few_keys_bundle, plan_bundles, tmp_path_factory)


@pytest.mark.slow
def test_a_chain_with_fewer_keys_is_its_network(
    few_keys_bundle: Path, chains_with_fewer_keys: dict[str, Path], library: StandInTensorRt, tmp_path: Path
) -> None:
    bundle = copy_bundle(chains_with_fewer_keys[library.name], tmp_path / "few-keys")
    engine = Engine.load(bundle, library.name, verify=False)
    host = Engine.load(few_keys_bundle, "onnxruntime", verify=False)
    for count in (1, 3):
        assert_near(engine.predict(mixed_views(count)), host.predict(mixed_views(count)))


@pytest.mark.slow
def test_from_its_second_run_on_a_chain_is_one_graph(
    load: Callable[..., Engine], library: StandInTensorRt, driver: StandInDriver
) -> None:
    engine, views = load(), mixed_views(3)
    wanted = engine.predict(views)
    engine.predict(views)
    calls, launched = dict(driver.calls), driver.launches
    found = engine.predict(views)
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(ours["pts3d"], theirs["pts3d"])
    launches = driver.calls["cuLaunchKernel"] - calls["cuLaunchKernel"]
    if library.is_rtx:  # it records its own launches, and nobody else may
        assert launches == 9
    else:
        assert launches == 0
        assert driver.launches > launched
    assert driver.kernels["dense-fp16-d32"] == 3


@pytest.mark.slow
def test_several_shapes_take_turns(load: Callable[..., Engine], small: Engine) -> None:
    engine = load()
    for count in (2, 5, 2, 1, 5, 5):
        assert_near(engine.predict(mixed_views(count)), small.predict(mixed_views(count)))


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["eager", 1, 2])
def test_the_order_in_which_the_gpu_works_does_not_matter(
    schedule: Any, chains: dict[str, Path], tmp_path: Path, small: Engine, make_driver: Any, make_library: Any
) -> None:
    make_library("tensorrt", make_driver(schedule))
    engine = Engine.load(copy_bundle(chains["tensorrt"], tmp_path / "bundle"), "tensorrt", verify=False)
    for _ in range(3):
        assert_near(engine.predict(mixed_views(3)), small.predict(mixed_views(3)))


@pytest.mark.slow
def test_everything_is_given_back(load: Callable[..., Engine], driver: StandInDriver) -> None:
    engine = load()
    engine.predict(mixed_views(2))
    modules = driver.calls["cuModuleLoadData"]
    del engine
    gc.collect()
    assert (driver.blocks, driver.pinned) == ({}, {})
    assert driver.calls["cuModuleUnload"] == modules == 10


@pytest.mark.slow
def test_a_kernel_that_fails(load: Callable[..., Engine], small: Engine, driver: StandInDriver) -> None:
    engine = load()
    driver.faults["cuLaunchKernel"] = 1
    with pytest.raises(BackendError, match=r"launch the kernel \S+ \(CUDA_ERROR_INVALID_VALUE\)"):
        engine.predict(mixed_views(2))
    assert_near(engine.predict(mixed_views(2)), small.predict(mixed_views(2)))


@pytest.mark.parametrize("file", ["aggregator_1.plan", "int8-fp16-d32.sm_89.cubin"])
def test_an_altered_part(file: str, load: Callable[..., Engine], chain_bundle: Path) -> None:
    with (chain_bundle / file).open("ab") as part:
        part.write(b"x")
    with pytest.raises(IntegrityError, match=file):
        load(verify=True)


def _aggregator(document: Any) -> Any:
    return document["stages"]["aggregator"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: _aggregator(d)["attention"].pop(), "must have one attention between each two segments"),
        (lambda d: _aggregator(d)["segments"].reverse(), "which nothing before it gives"),
        (lambda d: _aggregator(d)["attention"][0].update(query="x"), "reads 'x', which nothing before it gives"),
        (lambda d: _aggregator(d)["attention"][0].update(out="x"), "whose result no segment reads"),
        (lambda d: _aggregator(d)["attention"][0].update(threshold=0.5), "and null otherwise"),
        (lambda d: _aggregator(d)["attention"][1].update(kernel="sparse-int8"), "share above 0 .* for a sparse kernel"),
        (lambda d: _aggregator(d)["attention"][2].update(kernel="int8-fp8"), "and null otherwise"),
        (lambda d: _aggregator(d)["attention"][1].update(kernel="fp8"), "kernel"),
        (lambda d: _aggregator(d).update(file="a.plan", sha256="a" * 64, bytes=1), "must be null"),
        (lambda d: d["kernels"][0]["arguments"][0].update(type="*f8"), "type"),
        (lambda d: d["kernels"][0]["arguments"][0].update(value="length/0"), "must be a product such as 4"),
        (lambda d: d["kernels"][0]["grid"].pop(), r"grid must have 2 elements, not 1"),
    ],
)
def test_a_chain_that_does_not_hold(change: Any, message: str, load: Callable[..., Engine], chain_bundle: Path) -> None:
    change_manifest(chain_bundle, change)
    with pytest.raises(ManifestError, match=message):
        load()


def test_tensors_that_are_alive_together_have_places_of_their_own() -> None:
    numbers = np.random.default_rng(3)
    for _ in range(50):
        tensors = {}
        for index in range(12):
            first = int(numbers.integers(0, 8))
            last = first + int(numbers.integers(0, 4))
            tensors[f"t{index}"] = Lifetime(int(numbers.integers(1, 5000)), first, last)
        offsets, end = place(tensors)
        for name, one in tensors.items():
            assert offsets[name] % 256 == 0
            assert offsets[name] + one.size <= end
            for other, two in tensors.items():
                if name < other and one.first <= two.last and two.first <= one.last:
                    assert offsets[name] + one.size <= offsets[other] or offsets[other] + two.size <= offsets[name]
        step = max(sum(t.size for t in tensors.values() if t.first <= s <= t.last) for s in range(12))
        assert step <= end <= 2 * step + 256 * len(tensors)


def test_a_chain_of_equal_layers_takes_the_memory_of_two() -> None:
    tensors = {f"qkv{index}": Lifetime(3072, 2 * index, 2 * index + 1) for index in range(8)}
    tensors |= {f"out{index}": Lifetime(1024, 2 * index + 1, 2 * index + 2) for index in range(8)}
    _, end = place(tensors)
    assert end <= 2 * 4096


@pytest.mark.parametrize("share", [None, 0.25])
@pytest.mark.parametrize("views", [1, 3])
def test_kernels_are_told_the_tokens_of_a_view_and_the_keys(views: int, share: float | None) -> None:
    told: dict[str, Any] = {}
    kernels: Any = SimpleNamespace(workspace=lambda entry, *_: 0, enqueue=lambda *_, **given: told.update(given))
    attention = SimpleNamespace(extra_tokens=2, query="q", key="k", value="v", out="o", key_share=share)
    spec: Any = SimpleNamespace(inputs=(), outputs=(), segments=(), attention=(attention,))
    segment: Any = SimpleNamespace(tensors={}, context=lambda stream, axes: (None, 0))
    chain = SegmentChain("aggregator", spec, [segment, segment], kernels)
    joined, _ = chain.context(7, {"views": views, "patch_rows": 4, "patch_columns": 5})
    joined.attend(0, 7)
    assert told["view_tokens"] == 22
    assert told["length"] == views * 22 + 1  # the scale token is the last
    # Of all views but the first one 2 of 4 rows and 3 of 5 columns are kept.
    assert told["key_length"] == (told["length"] if share is None else 20 + (views - 1) * 6 + 2 * views + 1)
