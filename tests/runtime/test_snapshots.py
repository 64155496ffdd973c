"""Nothing of a caller is kept by reference: a camera loop fills the same buffers for every frame."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mapengine.runtime import Engine, Scene, Session, preprocess_inputs
from mapengine.runtime.inputs.prepared import prepare_views
from mapengine.runtime.inputs.preprocess import preprocess_views
from mapengine.runtime.inputs.sources import read_views

from ..engine_views import in_torch, same, views_of
from ..random_views import random_views
from ..refusals import PIXELS, SMALL_DEPTH

FRAMES = 3
View = dict[str, Any]


def refill(buffers: View, view: View) -> None:
    """Write a frame into the buffers of the one before, as a camera's driver does."""
    for key, value in view.items():
        if isinstance(value, tuple):
            for buffer, part in zip(buffers[key], value, strict=True):
                buffer[...] = part
        elif isinstance(value, list):
            buffers[key][:] = value
        else:
            buffers[key][...] = value


def frames(form: str) -> list[View]:
    """Frames with image, depth, camera, pose and metric flags, as arrays or tensors; poses as matrices or pairs."""
    views = random_views(FRAMES)
    for index, view in enumerate(views):
        view["is_metric_scale"] = np.array([True])
        if form == "pair":
            view["camera_poses"] = (np.array([[0, 0, 0, 1.0]]), np.array([[0.5 * index, 0, 0]]))
        if form == "float64":
            view |= {key: view[key].astype(np.float64) for key in ("img", "depth_z", "intrinsics", "camera_poses")}
    return in_torch(views) if form == "tensors" else views


@pytest.mark.parametrize("form", ["matrix", "pair", "float64", "tensors"])
def test_a_session_keeps_its_frames_when_the_buffers_are_refilled(small: Engine, form: str) -> None:
    expected = small.infer(frames(form))
    session, buffers = Session(small), frames(form)[0]
    for view in frames(form):
        refill(buffers, view)
        session.add(buffers)
    refill(buffers, frames(form)[0])
    del buffers["depth_z"]  # and the dictionary is the caller's, too
    assert same(session.infer(), expected)


def test_encoded_views_keep_what_they_were_made_of(small: Engine) -> None:
    expected, buffers, encoded = small.infer(frames("matrix")), frames("matrix")[0], []
    for view in frames("matrix"):
        refill(buffers, view)
        encoded += small.encode([buffers])
    buffers["img"][...] = np.nan
    assert same(small.infer(encoded), expected)

    # Also what is said anew of an encoded view; its image is shared, for it is not the caller's.
    known = {key: buffers[key] for key in ("intrinsics", "depth_z")}
    again = small.encode([{**known, "img": view} for view in encoded])
    expected = small.infer(again)
    buffers["depth_z"][...] += 1
    buffers["intrinsics"][...] *= 2
    assert same(small.infer(again), expected)
    assert again[0].view["img"] is encoded[0].view["img"]


def test_an_update_of_a_session_is_kept(small: Engine) -> None:
    session = Session(small)
    for view in frames("matrix"):
        session.add(view)
    pose = np.eye(4, dtype=np.float32)[None]
    for frame in session.frames:
        pose[0, 0, 3] = frame
        session.update(frame, camera_poses=pose)
    assert [view.view["camera_poses"][0, 0, 3] for view in session.views] == [0, 1, 2]


@pytest.mark.parametrize("form", ["matrix", "pair", "float64", "tensors"])
def test_a_stream_is_of_the_views_at_its_call(small: Engine, form: str) -> None:
    views = frames(form)
    expected = small.infer(views)
    stream = small.infer_stream(views)
    for view in views:
        refill(view, frames(form)[0])
        view["img"][...] = 7
    views.clear()
    assert same(list(stream), expected)


def test_the_reference_streams_the_views_at_its_call() -> None:
    from mapengine.export import load_model

    model, views = load_model("preset:tiny"), random_views(1, "", 28, 28)
    expected, stream = model.infer(views), model.infer_stream(views)
    views[0]["img"][...] = 7
    assert same([{key: np.asarray(value) for key, value in view.items()} for view in stream], expected)


def test_preprocessed_views_are_not_of_the_arrays_that_came_in(small: Engine) -> None:
    size = small.manifest.requests.nearest_size(4 / 3) or (56, 42)
    image, depth, flag = PIXELS.copy(), SMALL_DEPTH.copy(), np.array([True])
    camera = np.array([[40, 0, 19.5], [0, 40, 14.5], [0, 0, 1]], np.float32)
    pose, shape = np.eye(4), [np.array([1, 2])]
    raw = {"img": image, "depth_z": depth, "intrinsics": camera, "camera_poses": pose, "is_metric_scale": flag}
    raw["true_shape"] = shape
    made = [
        *preprocess_inputs([raw], resize_mode="fixed_size", size=(42, 28)),
        *small.preprocess([raw], size=(42, 28)),
        *small.preprocess(read_views([image], camera, [pose], [depth], metric=True), size=(42, 28)),
        *preprocess_views(read_views([image], camera, [pose], [depth]), size),
    ]
    arrays = [value for view in made for value in view.values() if isinstance(value, np.ndarray)]
    for given, found in itertools.product((image, depth, flag, camera, pose), arrays):
        assert not np.shares_memory(given, found)
    assert made[0]["true_shape"] is not shape
    assert not np.shares_memory(made[0]["true_shape"][0], shape[0])


@pytest.mark.parametrize("camera", [np.array([40, 40, 19.5, 14.5], np.float32), np.eye(3, dtype=np.float32) * 20])
def test_views_that_were_read_keep_nothing_of_the_arrays(camera: np.ndarray) -> None:
    image, depth, pose = PIXELS.copy(), SMALL_DEPTH.copy(), np.eye(4)
    if camera.ndim == 2:
        camera[2, 2] = 1
    (view,) = read_views(image[None], camera, pose, depth)
    before = [np.array(value) for value in (view.image, view.intrinsics, view.pose, view.depth)]
    image[...], depth[...], pose[...], camera[...] = 0, 9, 9, 9
    for value, old in zip((view.image, view.intrinsics, view.pose, view.depth), before, strict=True):
        assert np.array_equal(np.asarray(value), old)


def test_a_scene_is_not_made_of_the_arrays_that_came_in(room_predictions: Callable[..., list[View]]) -> None:
    predictions, names = room_predictions(), ["a", "b"]
    scene = Scene.from_predictions(predictions, names)
    fields = {name: getattr(scene, name) for name in ("points", "colors", "depth", "confidence", "mask")}
    fields |= {"intrinsics": scene.intrinsics, "poses": scene.poses}
    copy = Scene(**fields, names=names)
    names[0] = "changed"
    assert scene.names == copy.names == ["a", "b"]
    for name, array in fields.items():
        assert not np.shares_memory(array, getattr(copy, name)), name
        for prediction in predictions:
            assert not any(np.shares_memory(array, value) for value in prediction.values()), name


def test_results_share_no_memory_with_each_other_or_what_came_in(engine: Engine) -> None:
    views = views_of(("kdp", "kdp"))
    for results in (engine.infer(views), list(engine.infer_stream(views)), engine.predict(views)):
        arrays = [value for result in results for value in result.values()]
        for one, other in itertools.combinations(arrays, 2):
            assert not np.shares_memory(one, other)
        for view, array in itertools.product(views, arrays):
            assert not any(np.shares_memory(array, value) for key, value in view.items() if key != "data_norm_type")


def test_a_call_that_ends_with_its_work_copies_no_image() -> None:
    views = random_views(1, "")
    assert np.shares_memory(prepare_views(views).images[0], views[0]["img"])
    assert not np.shares_memory(prepare_views(views, copy=True).images[0], views[0]["img"])
