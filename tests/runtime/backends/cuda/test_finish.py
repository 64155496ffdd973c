"""Post-processing as a stage on the stand-in GPU: the numbers of the host, and what crosses between the two."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mapengine.runtime import Engine, preprocess_inputs
from mapengine.runtime.inputs.sources import read_views
from mapengine.runtime.options import OUTPUTS

from ....random_views import assert_close, mixed_views
from ....stage_files import change_manifest
from .requests import given_views
from .stand_in_driver import StandInDriver

pytestmark = pytest.mark.slow  # its fixtures take seconds

PIXELS = 42 * 28
FLOAT = 4


def with_masks(kinds: str, batch: int = 1) -> list[dict[str, Any]]:
    views = given_views(kinds, batch)
    views[-1]["mask"] = np.random.default_rng(0).random((batch, 28, 42)) > 0.3
    return views


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"apply_mask": False},
        {"mask_edges": False, "apply_confidence_mask": True, "confidence_percentile": 37.5},
        {"edge_normal_threshold": 120.0, "edge_depth_threshold": 0.3},
        {"minibatch_size": 1},
        {"use_multiview_confidence": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("batch", [1, 2])
def test_infer_gives_what_the_host_gives(
    options: dict[str, Any], batch: int, device_engine: Engine, small: Engine
) -> None:
    for views in (given_views("igi", batch), with_masks("ig", batch), given_views("igi", batch)):
        expected = small.infer(views, **options)
        found = device_engine.infer(views, **options)
        assert [list(view) for view in found] == [list(view) for view in expected]
        for got, want in zip(found, expected, strict=True):
            for name, value in want.items():
                assert (got[name].shape, got[name].dtype) == (value.shape, value.dtype), name
        assert_close(found, expected)


def test_a_scene_and_a_stream_are_those_of_the_host(device_engine: Engine, small: Engine) -> None:
    images = [np.random.default_rng(i).integers(0, 256, (28, 42, 3), np.uint8) for i in range(3)]
    masks = [None, np.random.default_rng(3).random((28, 42)) > 0.4, None]
    for options in ({}, {"apply_mask": False}):
        scene, expected = (e.reconstruct(images, masks=masks, size=(42, 28), **options) for e in (device_engine, small))
        for name in ("points", "confidence", "mask", "colors", "poses", "intrinsics", "depth"):
            np.testing.assert_allclose(getattr(scene, name), getattr(expected, name), atol=1e-4, err_msg=name)
    views = given_views("ig")
    streamed = list(device_engine.infer_stream(views, dtype="float16", outputs=("mask", "pts3d")))
    assert_close(streamed, list(small.infer_stream(views, dtype="float16", outputs=("mask", "pts3d"))), 1e-2)


def test_a_bundle_without_the_stage_is_finished_on_the_host(
    plan_bundle: Path, library: Any, driver: StandInDriver, small: Engine
) -> None:
    change_manifest(plan_bundle, lambda document: document["stages"].pop("scene"))
    engine = Engine.load(plan_bundle, library.name, verify=False)
    assert_close(engine.infer(mixed_views(3)), small.infer(mixed_views(3)))
    assert "scene" not in library.enqueued


def test_images_go_up_as_bytes_unless_they_came_normalised(
    plan_bundle: Path, library: Any, driver: StandInDriver, small: Engine
) -> None:
    engine = Engine.load(plan_bundle, library.name, verify=False)
    images = [np.random.default_rng(i).integers(0, 256, (28, 42, 3), np.uint8) for i in range(4)]
    in_bytes = engine.prepare(read_views(images), size=(42, 28))
    normalised = preprocess_inputs([{"img": image} for image in images], resize_mode="fixed_size", size=(42, 28))
    expected = small.infer(normalised)
    for views, uploaded in (
        (in_bytes, [3 * 3 * PIXELS, 3 * PIXELS]),
        (normalised, [3 * 3 * FLOAT * PIXELS, 3 * FLOAT * PIXELS]),
        ([*in_bytes[:2], *normalised[2:]], [3 * 3 * FLOAT * PIXELS, 3 * FLOAT * PIXELS]),  # a chunk of three of both
        ([*normalised[:3], in_bytes[3]], [3 * 3 * FLOAT * PIXELS, 3 * PIXELS]),
    ):
        engine.infer(views)
        first = len(driver.copies)
        assert_close(engine.infer(views), expected)
        assert [size for way, size in copies(driver, first) if way == "up"] == uploaded
    change_manifest(plan_bundle, lambda document: document["stages"].pop("image_normalizer"))
    older = Engine.load(plan_bundle, library.name, verify=False)
    first = len(driver.copies)
    assert_close(older.infer(in_bytes), expected)
    assert [size for way, size in copies(driver, first) if way == "up"][:2] == [3 * 3 * FLOAT * PIXELS] * 1 + [
        3 * FLOAT * PIXELS
    ]


def copies(driver: StandInDriver, first: int) -> list[tuple[str, int]]:
    """Copies of pixels between host and GPU since entry ``first``: which way, and bytes."""
    return [entry for entry in driver.copies[first:] if entry[1] >= PIXELS]


@pytest.mark.parametrize(
    ("outputs", "per_pixel"),
    [
        (OUTPUTS, 3 * 4 * 3 + 4 + 4 + 1 + 4 + 4 + 1),  # all but the plain images, which the host has
        (("pts3d", "mask"), 12 + 1),
        (("mask",), 1),
        (("conf",), 4),
    ],
    ids=["all", "points and mask", "mask", "confidence"],
)
def test_only_what_is_asked_for_crosses(
    outputs: Any, per_pixel: int, device_engine: Engine, driver: StandInDriver
) -> None:
    views = given_views("iii")
    device_engine.infer(views, outputs=outputs)  # where the views count is known on the GPU afterwards
    first = len(driver.copies)
    device_engine.infer(views, outputs=outputs)
    found = copies(driver, first)
    up, down = (sum(size for way, size in found if way == wanted) for wanted in ("up", "down"))
    assert up == 3 * 3 * FLOAT * PIXELS  # the images
    assert down == 3 * per_pixel * PIXELS


def test_order_of_a_call(device_engine: Engine, library: Any, driver: StandInDriver) -> None:
    images = [np.random.default_rng(i).integers(0, 256, (28, 42, 3), np.uint8) for i in range(4)]
    device_engine.reconstruct(images, size=(42, 28))
    first, calls, launched = len(driver.copies), Counter(driver.calls), Counter(library.enqueued)
    device_engine.reconstruct(images, size=(42, 28))
    ways = [way for way, _ in driver.copies[first:]]
    # The options, and images of three views and of one; the scale, and for each of two chunks of two views points,
    # confidence, depth, mask, intrinsics and poses.
    assert ways == ["up"] * 3 + ["down"] * (1 + 2 * 6)
    assert [size for way, size in copies(driver, first) if way == "up"] == [3 * 3 * PIXELS, 3 * PIXELS]  # bytes
    expected = {"image_normalizer": 2, "image_encoder": 2, "aggregator": 1, "dense_head": 2, "scene": 2}
    assert Counter(library.enqueued) - launched == expected
    # For each chunk of images that page-locked memory is free, and for each chunk of results.
    assert (Counter(driver.calls) - calls)["cuEventSynchronize"] == 2 + 2
    assert (Counter(driver.calls) - calls)["cuStreamSynchronize"] == 0
