"""Requests of arrays: tensors become the views of ``infer``, and its predictions tensors."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from mapengine.runtime import InputError
from mapengine.runtime.inputs.normalization import normalize_image
from mapengine.serving.triton.requests import engine_views, options_of_request, result_tensors
from mapengine.serving.triton.settings import Limits

V, H, W = 3, 14, 28
LIMITS = Limits(4, H * W, 10**6)


def request(**more: Any) -> dict[str, Any]:
    images = np.random.default_rng(0).integers(0, 256, (V, H, W, 3), np.uint8)
    return {"images": images, **{name: np.asarray(value) for name, value in more.items()}}


def test_tensors_become_views_with_one_sample_each() -> None:
    depth, poses = np.ones((V, H, W), np.float32), np.stack([np.eye(4)] * V)
    given = request(depth_z=depth, camera_poses=poses, is_metric_scale=[True, False, True])
    views = engine_views(given, LIMITS, "dinov2")
    for index, view in enumerate(views):
        assert set(view) == {"img", "data_norm_type", "depth_z", "camera_poses", "is_metric_scale"}
        assert np.array_equal(view["img"], normalize_image(given["images"][index]))
        assert (view["depth_z"].shape, view["camera_poses"].shape) == ((1, H, W), (1, 4, 4))
        assert view["is_metric_scale"].tolist() == [index != 1]


def test_views_bring_what_their_flags_say() -> None:
    intrinsics = np.stack([np.diag([20.0, 20, 1]).astype(np.float32)] * V)
    rays = np.broadcast_to(np.float32([0, 0, 1]), (V, H, W, 3))
    given = request(
        intrinsics=intrinsics,
        has_intrinsics=[True, False, False],
        ray_directions=rays,
        has_ray_directions=[False, True, False],
    )
    known = [set(view) - {"img", "data_norm_type"} for view in engine_views(given, LIMITS, "dinov2")]
    assert known == [{"intrinsics"}, {"ray_directions"}, set()]


@pytest.mark.parametrize(
    ("more", "limits", "sentence"),
    [
        ({"intrinsics": np.zeros((2, 3, 3))}, LIMITS, "intrinsics has 2 entries for 3 images; give one per view"),
        ({"mask": np.zeros((4, H, W), bool)}, LIMITS, "mask has 4 entries for 3 images"),
        ({"has_depth_z": [True] * V}, LIMITS, "has_depth_z is given without depth_z; give both, or neither"),
        ({}, Limits(2, H * W, 10**6), "the request has 3 views, and this model takes at most 2; give fewer views"),
        ({}, Limits(4, 100, 10**6), "images has 28x14 pixels, and this model takes at most 100 of an image"),
        (
            {},
            Limits(4, H * W, 100),
            "the request has 3528 bytes, and this model takes at most 100; give fewer",
        ),
    ],
)
def test_a_request_that_does_not_fit_gets_a_sentence(more: dict[str, Any], limits: Limits, sentence: str) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        engine_views(request(**more), limits, "dinov2")


def test_parameters_are_options_of_infer() -> None:
    given = {"apply_mask": False, "confidence_percentile": "12.5", "minibatch_size": 2, "amp_dtype": "fp16"}
    assert options_of_request(given) == {**given, "confidence_percentile": 12.5}
    assert options_of_request({"edge_depth_threshold": 0.5, "priority": 1}) == {"edge_depth_threshold": 0.5}


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"apply_maks": True}, "there is no option 'apply_maks'; the nearest is 'apply_mask'"),
        ({"confidence_percentile": "much"}, "confidence_percentile is 'much'; it must be a number, between 0 and 100"),
        ({"confidence_percentile": "nan"}, "confidence_percentile is nan"),
        ({"apply_mask": 1}, "apply_mask is 1; it must be True or False"),
        ({"outputs": "pts3d"}, "there is no option 'outputs'"),
    ],
)
def test_parameters_that_are_none_get_the_sentence_of_infer(parameters: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        options_of_request(parameters)


def test_predictions_become_tensors_in_the_order_of_views() -> None:
    predictions = [{"conf": np.full((1, H, W), i, np.float32), "cam_trans": np.full((1, 3), i)} for i in range(V)]
    tensors = result_tensors(predictions, ("cam_trans", "conf", "mask"))
    assert list(tensors) == ["cam_trans", "conf"]
    assert tensors["conf"].shape == (V, H, W)
    assert tensors["cam_trans"][:, 0].tolist() == [0, 1, 2]
