"""Plans on the stand-in GPU give what the stages give in ONNX Runtime, for any request, and leave nothing behind."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mapengine.runtime import Engine
from mapengine.runtime.backends.contract import ChunkSizes
from mapengine.runtime.backends.cuda.driver import OutOfMemory
from mapengine.runtime.errors import BackendError
from mapengine.runtime.inputs.prepared import network_inputs, prepare_views

from ....random_views import assert_close, mixed_views, random_views
from .requests import LIBRARIES, MakeDriver, MakeLibrary, forward, given_views
from .stand_in_driver import StandInDriver
from .stand_in_tensorrt import StandInTensorRt

pytestmark = pytest.mark.slow  # its fixtures take seconds

# Numbers


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("chunks", [ChunkSizes(1, 1, 1), ChunkSizes(2, 3, 2), ChunkSizes(8, 8, 8)], ids=str)
def test_encoded_views_and_streams_give_the_numbers_of_the_host(
    name: str,
    batch: int,
    chunks: ChunkSizes,
    small: Engine,
    plan_bundles: dict[str, Path],
    make_driver: MakeDriver,
    make_library: MakeLibrary,
) -> None:
    driver = make_driver("lazy")
    make_library(name, driver)
    engine = Engine.load(plan_bundles[name], name, verify=False)
    views = given_views("gigig", batch)
    prepared = prepare_views(views)
    expected = forward(small, views)
    encoded = engine.pipeline.encode(prepared.images, chunks)
    for known in (encoded, [encoded[0], None, None, encoded[3], None], [None] * 4 + encoded[4:]):
        for _ in range(2):
            given = [replace(view, features=part) for view, part in zip(prepared.views, known, strict=True)]
            assert_close(engine.pipeline.forward(network_inputs(given), chunks), expected)
    stream = engine.pipeline.stream(prepared, chunks)
    next(stream)
    stream.close()  # left before its end
    assert_close(forward(engine, views, chunks), expected)
    engine.pipeline.close()
    assert (driver.blocks, driver.pinned, driver.handles) == ({}, {}, {})


@pytest.mark.slow
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kinds=st.text("ig", min_size=1, max_size=8),
    batch=st.integers(1, 2),
    chunks=st.builds(ChunkSizes, st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    schedule=st.one_of(st.sampled_from(["lazy", "eager"]), st.integers(0, 2**32)),
    name=st.sampled_from(LIBRARIES),
    calls=st.integers(1, 3),
)
def test_any_request_gives_the_numbers_of_the_host(
    kinds: str,
    batch: int,
    chunks: ChunkSizes,
    schedule: str | int,
    name: str,
    calls: int,
    small: Engine,
    plan_bundles: dict[str, Path],
    make_driver: MakeDriver,
    make_library: MakeLibrary,
) -> None:
    driver = make_driver(schedule)
    make_library(name, driver)
    engine = Engine.load(plan_bundles[name], name, verify=False)
    views = given_views(kinds, batch)
    expected = forward(small, views)
    for _ in range(calls):  # plain, recorded, replayed
        assert_close(forward(engine, views, chunks), expected)
    engine.pipeline.close()
    assert (driver.blocks, driver.pinned, driver.handles) == ({}, {}, {})


def test_every_mix_of_inputs(device_engine: Engine, small: Engine) -> None:
    assert_close(forward(device_engine, mixed_views(5)), forward(small, mixed_views(5)))


def test_infer_gives_the_same(device_engine: Engine, small: Engine) -> None:
    options: dict[str, Any] = {"memory_efficient_inference": False, "use_multiview_confidence": True}
    assert_close(device_engine.infer(mixed_views(4), **options), small.infer(mixed_views(4), **options), 1e-4)


def test_sizes_and_counts_in_turn(device_engine: Engine, small: Engine) -> None:
    """What one shape left in buffers, contexts and graphs is no input of the next."""
    requests = [given_views(kinds, width=width) for kinds, width in (("gig", 42), ("g", 42), ("gig", 70), ("iii", 42))]
    expected = [forward(small, views) for views in requests]
    for _ in range(3):
        for views, numbers in zip(requests, expected, strict=True):
            assert_close(forward(device_engine, views), numbers)


def test_results_belong_to_the_caller(device_engine: Engine) -> None:
    first = forward(device_engine, random_views(3))
    kept = [{key: value.copy() for key, value in view.items()} for view in first]
    for view in first:
        for value in view.values():
            value[...] = 0  # writable, and no buffer of the engine
    again = forward(device_engine, random_views(3))
    assert all(np.array_equal(view[key], old[key]) for view, old in zip(again, kept, strict=True) for key in old)


def test_inputs_are_not_changed(device_engine: Engine) -> None:
    views = random_views(2)
    before = [view["img"].copy() for view in views]
    forward(device_engine, views)
    assert all(np.array_equal(view["img"], old) for view, old in zip(views, before, strict=True))


# What is launched


def test_geometry_is_encoded_for_the_views_that_have_it_in_full_chunks(
    device_engine: Engine, library: StandInTensorRt
) -> None:
    forward(device_engine, given_views("iiii"))
    assert "geometry_encoder" not in library.enqueued
    forward(device_engine, given_views("gigigigi"))  # the profile takes two at once
    assert library.enqueued["geometry_encoder"] == 2


def test_chunks_are_those_of_the_profile_or_smaller(device_engine: Engine, library: StandInTensorRt) -> None:
    forward(device_engine, given_views("i" * 8))
    assert library.enqueued == {"image_encoder": 3, "aggregator": 1, "dense_head": 4, "scene": 4}
    library.enqueued.clear()
    forward(device_engine, given_views("i" * 8), ChunkSizes(99, 99, 99))  # more than a plan takes at once
    assert library.enqueued == {"image_encoder": 3, "aggregator": 1, "dense_head": 4, "scene": 4}
    library.enqueued.clear()
    forward(device_engine, given_views("i" * 8), ChunkSizes(2, 2, 1))
    assert library.enqueued == {"image_encoder": 4, "aggregator": 1, "dense_head": 8, "scene": 8}


def test_tensorrt_is_replayed_as_graphs_from_the_second_launch_on(
    driver: StandInDriver, make_library: MakeLibrary, plan_bundles: dict[str, Path]
) -> None:
    library = make_library("tensorrt", driver)
    engine = Engine.load(plan_bundles["tensorrt"], verify=False)
    views = given_views("iiiii")  # image encoder 3 and 2, aggregator, dense head and scene 2, 2 and 1
    launches, contexts = [], []
    for _ in range(4):
        forward(engine, views)
        launches.append(driver.launches)
        contexts.append(library.contexts)
    assert launches == [2, 11, 20, 29]  # the second of the two chunks of two was one already
    assert contexts == [7] * 4  # one per stage and number of views
    assert driver.calls["cuGraphInstantiateWithFlags"] == 7  # nothing is recorded twice


def test_tensorrt_rtx_keeps_graphs_of_its_own(
    driver: StandInDriver, make_library: MakeLibrary, plan_bundles: dict[str, Path]
) -> None:
    library = make_library("tensorrt-rtx", driver)
    engine = Engine.load(plan_bundles["tensorrt-rtx"], verify=False)
    for _ in range(4):
        forward(engine, given_views("igigg"))
    assert (driver.launches, library.recaptures) == (0, 0)


@pytest.mark.parametrize("function", ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiateWithFlags"])
def test_what_cannot_be_recorded_runs_as_before(
    function: str, small: Engine, driver: StandInDriver, make_library: MakeLibrary, plan_bundles: dict[str, Path]
) -> None:
    make_library("tensorrt", driver)
    engine = Engine.load(plan_bundles["tensorrt"], verify=False)
    views = given_views("gi")
    for _ in range(4):
        driver.faults[function] = 901
        assert_close(forward(engine, views), forward(small, views))
    assert driver.launches == 3 * 4  # one of five stages was not recorded: that was tried once
    assert driver.calls["cuStreamBeginCapture"] == 5


def test_the_host_works_on_a_view_while_the_gpu_computes_the_next(device_engine: Engine, driver: StandInDriver) -> None:
    waiting: list[bool] = []
    for _ in device_engine.infer_stream(random_views(6)):
        streams = [thing for thing in driver.handles.values() if hasattr(thing, "queue")]
        waiting.append(any(stream.queue for stream in streams))
    assert waiting == [True] * 4 + [False] * 2  # chunks of two: the next one is queued, until the last


def test_only_what_is_asked_for_comes_back_from_the_gpu(
    device_engine: Engine, driver: StandInDriver, small: Engine
) -> None:
    views = random_views(2)
    copies = {}
    for outputs in (("camera_poses",), ("conf", "img_no_norm"), None):
        before = driver.calls.get("cuMemcpyDtoHAsync", 0)
        found = device_engine.infer(views, outputs=outputs)
        copies[outputs] = driver.calls["cuMemcpyDtoHAsync"] - before
        assert_close(found, small.infer(views, outputs=outputs))
    # The scale, and what is asked for; but plain images are the host's.
    assert list(copies.values()) == [1 + 1, 1 + 1, 1 + 13]


# Progress


def test_progress_is_that_of_the_host(device_engine: Engine, small: Engine) -> None:
    calls: dict[str, list[tuple[str, int, int]]] = {"host": [], "gpu": []}
    chunks = ChunkSizes(3, 2, 2)
    forward(small, mixed_views(5), chunks, lambda *call: calls["host"].append(call))
    forward(device_engine, mixed_views(5), chunks, lambda *call: calls["gpu"].append(call))
    assert calls["gpu"] == calls["host"]


def test_progress_counts_the_samples_of_a_batch(device_engine: Engine) -> None:
    calls: list[tuple[str, int, int]] = []
    forward(device_engine, random_views(3, "k", batch=2), None, lambda *call: calls.append(call))
    for stage, total in (("image_encoder", 6), ("geometry_encoder", 6), ("aggregator", 6), ("dense_head", 6)):
        mine = [call[1:] for call in calls if call[0] == stage]
        assert [done for done, _ in mine] == sorted({done for done, _ in mine})
        assert mine[-1] == (total, total)


def test_progress_is_told_when_the_gpu_has_finished(device_engine: Engine, library: StandInTensorRt) -> None:
    """Not when work was put into a queue: nothing runs on this GPU before somebody waits."""
    seen: list[bool] = []
    forward(
        device_engine,
        random_views(5, "k"),
        None,
        lambda stage, done, total: seen.append(library.enqueued.get(stage, 0) > 0),
    )
    assert all(seen)


# Memory


def test_nothing_is_left_when_an_engine_goes_away(
    driver: StandInDriver, library: StandInTensorRt, plan_bundle: Path
) -> None:
    engine = Engine.load(plan_bundle, verify=False)
    forward(engine, given_views("gi"))
    assert driver.blocks
    assert library.alive == 6 + 5  # plans, and contexts of the stages that ran: the images were normalised
    del engine
    gc.collect()
    assert (driver.blocks, driver.pinned, driver.handles, library.alive) == ({}, {}, {}, 0)


def test_shapes_that_come_once_do_not_pile_up(device_engine: Engine, driver: StandInDriver) -> None:
    blocks = []
    for columns in (1, 2, 3, 4, 5, 6, 7, 8, 9):
        forward(device_engine, random_views(2, "", width=14 * columns))
        blocks.append(len(driver.blocks))
    assert blocks[3] == blocks[-1] == 4 * blocks[0]
    assert len(driver.handles) < 4 * 10


def test_steady_use_allocates_nothing(device_engine: Engine, driver: StandInDriver) -> None:
    views = given_views("gigii")
    for _ in range(2):
        forward(device_engine, views)
    before = {name: count for name, count in driver.calls.items() if "Alloc" in name or "Create" in name}
    for _ in range(3):
        forward(device_engine, views)
    assert {name: driver.calls[name] for name in before} == before


def test_a_request_that_does_not_fit_says_so_and_the_next_runs(
    library: StandInTensorRt, driver: StandInDriver, device_engine: Engine, small: Engine
) -> None:
    forward(device_engine, random_views(1))
    driver.memory = sum(driver.blocks.values()) + 1000
    with pytest.raises(OutOfMemory, match="use fewer or smaller views in one call"):
        forward(device_engine, random_views(8, width=126))
    assert (driver.blocks, driver.pinned) == ({}, {})  # what waited for its next call went first
    assert_close(forward(device_engine, random_views(1)), forward(small, random_views(1)))


def test_two_shapes_of_which_one_fits_at_a_time(driver: StandInDriver, device_engine: Engine, small: Engine) -> None:
    requests = [random_views(4, width=126), random_views(5, width=112)]
    needed = []
    for views in requests:
        forward(device_engine, views)
        needed.append(sum(driver.blocks.values()))
    driver.memory = max(needed[0], needed[1] - needed[0]) + 4096
    for _ in range(2):
        for views in requests:
            assert_close(forward(device_engine, views), forward(small, views))


def test_two_calls_at_once_with_memory_for_one(driver: StandInDriver, device_engine: Engine, small: Engine) -> None:
    views = random_views(4)
    expected = forward(small, views)
    forward(device_engine, views)
    driver.memory = sum(driver.blocks.values()) + 1000
    start = threading.Barrier(3)

    def call(index: int) -> None:
        start.wait()
        for _ in range(3):
            assert_close(forward(device_engine, views), expected)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(call, range(3)))


def test_more_geometry_than_before_grows_the_memory_of_all_contexts(
    device_engine: Engine, small: Engine, driver: StandInDriver
) -> None:
    """What was recorded with the old memory is recorded again."""
    sizes = []
    for kinds in ("iii", "iii", "iii", "gii", "gii", "ggg", "gig", "ggg", "iii"):
        views = given_views(kinds)
        assert_close(forward(device_engine, views), forward(small, views))
        sizes.append(max(driver.blocks.values()))
    assert sizes[2] < sizes[3] < sizes[5] == sizes[-1]


def test_a_failed_call_is_not_waited_for(
    device_engine: Engine, driver: StandInDriver, library: StandInTensorRt
) -> None:
    library.refuse["execute_async_v3"] = "enqueueV3: Internal Error"
    with pytest.raises(BackendError):
        forward(device_engine, random_views(1))
    driver.memory = 10_000
    with ThreadPoolExecutor(1) as pool, pytest.raises(OutOfMemory):
        pool.submit(forward, device_engine, random_views(1)).result(60)
