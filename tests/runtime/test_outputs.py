"""Only what is asked for comes back, and it is what a call for everything gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mapengine.calibration.data.samples import sample_views
from mapengine.calibration.evaluation import ConstantDepth
from mapengine.runtime import Engine, InputError, Scene, Session
from mapengine.runtime.inputs.normalization import NORM_TYPES, denormalize_image, image_bytes, normalize_image
from mapengine.runtime.inputs.sources import read_views
from mapengine.runtime.options import OUTPUTS

from ..engine_views import SIZE, same, views_of
from ..refusals import refused, view


@pytest.mark.slow
@pytest.mark.parametrize("outputs", [("camera_poses",), ["mask", "pts3d"], {"conf", "img_no_norm"}, OUTPUTS])
def test_the_chosen_outputs_come_back_in_their_order(engine: Engine, outputs: Any) -> None:
    views = views_of(("kdp", ""), batch=2)
    everything = engine.infer(views)
    expected = [{name: found[name] for name in OUTPUTS if name in outputs} for found in everything]
    for found in (engine.infer(views, outputs=outputs), list(engine.infer_stream(views, outputs=outputs))):
        assert [list(prediction) for prediction in found] == [list(prediction) for prediction in expected]
        assert same(found, expected)


def test_a_session_and_a_network_of_another_kind_take_outputs(small: Engine) -> None:
    session = Session(small)
    session.add(views_of(("",))[0])
    assert [list(found) for found in session.infer(outputs=["depth_z"])] == [["depth_z"]]
    assert [list(found) for found in session.infer_stream(outputs=("conf", "mask"))] == [["conf", "mask"]]
    assert [list(found) for found in ConstantDepth().infer([view()], outputs=("intrinsics",))] == [["intrinsics"]]


@pytest.mark.parametrize("method", ["infer", "infer_stream"])
def test_outputs_that_there_are_not(small: Engine, method: str) -> None:
    call = getattr(small, method)
    refused(
        InputError, "outputs names 'points'|nearest is 'pts3d'|all: pts3d, ", lambda: call([view()], outputs=["points"])
    )
    refused(InputError, "outputs names 3|nearest", lambda: call([view()], outputs=("mask", 3)))
    for value in ("mask", (), 7):
        refused(InputError, "outputs is |give a list of names", lambda value=value: call([view()], outputs=value))
    refused(
        InputError,
        "'mask'|apply_mask is False|'non_ambiguous_mask'",
        lambda: call([view()], outputs=["mask"], apply_mask=False),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"apply_mask": False},
        {"mask_edges": False, "apply_confidence_mask": True},
        {"use_multiview_confidence": True},
    ],
    ids=str,
)
def test_a_scene_is_what_its_predictions_make(engine: Engine, options: dict[str, Any]) -> None:
    masks = [np.arange(60)[:, None] > np.zeros(80), None, None]  # of the first view, all but the uppermost row
    raw = read_views([sample.image for sample in sample_views(3, width=80, height=60)], masks=masks)
    scene = engine.reconstruct_views(raw, size=SIZE, **options)
    predictions = engine.infer(engine.preprocess(raw, size=SIZE), **options)
    expected = Scene.from_predictions(predictions, [one.name for one in raw])
    assert scene.names == expected.names
    assert scene.metric_scale == expected.metric_scale
    for name in ("points", "colors", "depth", "confidence", "mask", "intrinsics", "poses"):
        found, wanted = getattr(scene, name), getattr(expected, name)
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted, err_msg=name)


@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_bytes_outlast_normalisation(norm_type: str) -> None:
    image = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(16, 16, 3)
    np.testing.assert_array_equal(
        image_bytes(denormalize_image(normalize_image(image, norm_type), norm_type))[0], image
    )
    odd = np.array([np.nan, np.inf, -np.inf, -1, 2, 0.5], np.float32)
    assert image_bytes(odd).tolist() == [0, 255, 0, 0, 255, 128]
