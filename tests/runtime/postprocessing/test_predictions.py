"""Post-processing against the reference's vectors, its options and its invariants."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapengine.runtime import geometry
from mapengine.runtime.errors import DataNormTypeError, InputError
from mapengine.runtime.inputs.normalization import denormalize_image
from mapengine.runtime.options import InferOptions
from mapengine.runtime.postprocessing import predictions as postprocess
from mapengine.runtime.postprocessing.predictions import finish_predictions, finish_view, forward_outputs

ROOT = Path(__file__).parents[3]
DATA = ROOT / "tests" / "data"
GOLDEN = np.load(DATA / "postprocess.npz")
CASES = json.loads((DATA / "postprocess.json").read_text())
FLIPS = 0.005  # share of mask pixels that rounding may flip

Outputs = dict[str, np.ndarray]


def golden_scene(case: dict[str, Any]) -> tuple[list[Outputs], list[np.ndarray]]:
    predictions, images = [], []
    for view in range(case["views"]):
        prefix = f"{case['scene']}.raw.{view}."
        prediction = {key.removeprefix(prefix): GOLDEN[key] for key in GOLDEN.files if key.startswith(prefix)}
        prediction["pts3d_cam"] = prediction["ray_directions"] * prediction["depth_along_ray"]
        predictions.append(prediction)
        images.append(np.zeros((case["batch"], 3, case["height"], case["width"]), np.float32))
    return predictions, images


def make_heads(seed: int = 0, batch: int = 1, height: int = 28, width: int = 42) -> Outputs:
    """Plausible outputs of the heads."""
    rng = np.random.default_rng(seed)
    k = np.tile(np.array([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1]], np.float32), (batch, 1, 1))
    size = (batch, height, width)
    quaternion = rng.standard_normal((batch, 4))
    return {
        "ray_directions": geometry.rays_from_intrinsics(k, height, width),
        "depth_along_ray": (2 + (rng.random(size) > 0.95) + 0.01 * rng.random(size)).astype(np.float32)[..., None],
        "confidence": (1 + rng.random(size)).astype(np.float32),
        "mask_logits": (rng.standard_normal(size) + 2).astype(np.float32),
        "cam_trans": rng.standard_normal((batch, 3)).astype(np.float32),
        "cam_quats": (quaternion / np.linalg.norm(quaternion, axis=-1, keepdims=True)).astype(np.float32),
        "scale": rng.uniform(0.5, 2, (batch, 1)).astype(np.float32),
    }


def make_prediction(seed: int = 0, batch: int = 1) -> tuple[Outputs, np.ndarray]:
    heads = make_heads(seed, batch)
    image = np.random.default_rng(seed).standard_normal((batch, 3, 28, 42)).astype(np.float32)
    return forward_outputs(**heads), image


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["tag"])
def test_matches_the_reference(case: dict[str, Any]) -> None:
    predictions, images = golden_scene(case)
    compared = set()
    for view, result in enumerate(finish_predictions(predictions, images, InferOptions(**case["kwargs"]))):
        assert sorted(result) == case["out_keys"]
        for key, value in result.items():
            name = f"{case['tag']}.out.{view}.{key}"
            if name not in GOLDEN.files:
                continue
            expected = GOLDEN[name]
            compared.add(key)
            assert (value.shape, value.dtype) == (expected.shape, expected.dtype)
            if key == "mask":
                assert (value != expected).mean() <= FLIPS
            else:
                np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5 * abs(expected).max())
        if case["mask_frac"][view] is not None:
            assert abs(result["mask"].mean() - case["mask_frac"][view]) <= FLIPS
    assert compared or case["kwargs"] == {"apply_mask": False}


@pytest.mark.parametrize("name", ["img_1v", "img_2v", "calib_2v", "depth_2v", "pose_1v", "pose_3v", "all_2v"])
def test_matches_the_reference_after_the_network(name: str) -> None:
    stored = np.load(DATA / "v11_tiny" / "cases" / f"{name}.npz")
    count = 1 + max(int(key.split(".")[1]) for key in stored.files if key.startswith("fwd."))
    differ, total = 0, 0
    for view in range(count):
        prefix = f"fwd.{view}."
        prediction = {key.removeprefix(prefix): stored[key] for key in stored.files if key.startswith(prefix)}
        result = finish_view(prediction, stored[f"in.{view}.img"])
        mask = stored[f"inf.{view}.mask"]
        differ, total = differ + int((result["mask"] != mask).sum()), total + mask.size
        np.testing.assert_allclose(result["camera_poses"], stored[f"inf.{view}.camera_poses"], atol=1e-5)
        # The reference solves in float32; noisy rays of a random network make that worth about 1e-4.
        expected = stored[f"inf.{view}.intrinsics"]
        np.testing.assert_allclose(result["intrinsics"], expected, rtol=1e-3, atol=2e-4 * abs(expected).max())
        for key in ("pts3d", "pts3d_cam", "depth_along_ray"):
            np.testing.assert_array_equal(result[key], prediction[key] * result["mask"])
        np.testing.assert_array_equal(result["depth_z"], prediction["pts3d_cam"][..., 2:] * result["mask"])
    assert differ / total <= FLIPS


def test_forward_outputs_of_the_reference() -> None:
    """Undo the scale of golden outputs and assemble them again."""
    stored = np.load(DATA / "v11_tiny" / "cases" / "batch2_2v.npz")
    for view in range(2):
        expected = {key.split(".")[2]: stored[key] for key in stored.files if key.startswith(f"fwd.{view}.")}
        scale = expected["metric_scaling_factor"]
        result = forward_outputs(
            expected["ray_directions"],
            expected["depth_along_ray"] / scale[:, :, None, None],
            expected["conf"],
            expected["non_ambiguous_mask_logits"],
            expected["cam_trans"] / scale,
            expected["cam_quats"],
            scale,
        )
        assert result.keys() == expected.keys()
        for key, value in result.items():
            assert (value.shape, value.dtype) == (expected[key].shape, expected[key].dtype)
            np.testing.assert_allclose(value, expected[key], rtol=1e-5, atol=2e-6, err_msg=key)


def test_nothing_that_was_given_is_changed() -> None:
    heads = make_heads(batch=2)
    before = copy.deepcopy(heads)
    prediction = forward_outputs(**heads)
    kept = copy.deepcopy(prediction)
    image = np.zeros((2, 3, 28, 42), np.float32)
    options = InferOptions(apply_confidence_mask=True, use_multiview_confidence=True)
    finish_predictions([prediction, prediction], [image, image], options)
    for given_, copy_ in ((heads, before), (prediction, kept)):
        assert given_.keys() == copy_.keys()
        for key, value in given_.items():
            np.testing.assert_array_equal(value, copy_[key])


def test_no_infinity_or_nan_survives_outside_the_mask() -> None:
    heads = make_heads()
    heads["depth_along_ray"][0, 3, 4], heads["depth_along_ray"][0, 5, 6] = np.inf, np.nan
    heads["mask_logits"][0, 3, 4] = heads["mask_logits"][0, 5, 6] = -1
    with np.errstate(invalid="ignore"):
        prediction = forward_outputs(**heads)
    result = finish_view(prediction, np.zeros((1, 3, 28, 42), np.float32))
    assert all(np.isfinite(value).all() for value in result.values())


def test_overwriting_gives_the_same_in_the_given_arrays() -> None:
    prediction, image = make_prediction(batch=2)
    expected = finish_view(prediction, image)
    own = copy.deepcopy(prediction)
    result = finish_view(own, image, overwrite=True)
    assert result.keys() == expected.keys()
    for key, value in result.items():
        np.testing.assert_array_equal(value, expected[key])
    assert all(result[key] is own[key] for key in ("pts3d", "pts3d_cam", "depth_along_ray"))


@pytest.mark.parametrize(("height", "width"), [(14, 14), (14, 1400), (1022, 1022)])
def test_every_size_gives_finite_results(height: int, width: int) -> None:
    prediction = forward_outputs(**make_heads(height=height, width=width))
    image = np.zeros((1, 3, height, width), np.float32)
    result = finish_view(prediction, image, InferOptions(apply_confidence_mask=True))
    assert all(np.isfinite(value).all() for value in result.values())
    np.testing.assert_allclose(result["intrinsics"][0, 0, 0], width, rtol=1e-3)


def test_samples_of_a_batch_do_not_influence_each_other() -> None:
    prediction, image = make_prediction(batch=3)
    together = finish_view(prediction, image, InferOptions(apply_confidence_mask=True))
    for sample in range(3):
        alone = {key: value[sample : sample + 1] for key, value in prediction.items()}
        result = finish_view(alone, image[sample : sample + 1], InferOptions(apply_confidence_mask=True))
        for key, value in result.items():
            np.testing.assert_allclose(value, together[key][sample : sample + 1], rtol=1e-6, atol=1e-6, err_msg=key)


def test_the_image_without_normalisation() -> None:
    image = np.zeros((1, 3, 14, 14), np.float32)
    image[0, :, 0, 0], image[0, :, 0, 1] = 100, -100
    result = denormalize_image(image)
    assert result.shape == (1, 14, 14, 3)
    np.testing.assert_allclose(result[0, 1, 1], (0.485, 0.456, 0.406), rtol=1e-6)
    np.testing.assert_array_equal(result[0, 0, :2], [[1, 1, 1], [0, 0, 0]])


def test_the_confidence_percentile_is_strict() -> None:
    confidence = np.arange(1, 1 + 14 * 14, dtype=np.float32).reshape(1, 14, 14)
    assert postprocess.confidence_mask(confidence, 0).sum() == 14 * 14 - 1
    assert postprocess.confidence_mask(confidence, 50).sum() == 7 * 14
    assert postprocess.confidence_mask(confidence, 100).sum() == 0
    assert postprocess.confidence_mask(np.ones_like(confidence), 10).sum() == 0


def test_confidence_of_a_very_large_image() -> None:
    # torch.quantile refuses more than 2**24 elements.
    confidence = np.zeros((1, 4100, 4100), np.float16)
    confidence[0, :410] = 1
    assert postprocess.confidence_mask(confidence, 50).sum() == 410 * 4100


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.booleans(), st.floats(0, 100))
def test_masks_are_subsets_and_masked_points_are_zero(
    seed: int, mask_edges: bool, apply_confidence: bool, percentile: float
) -> None:
    prediction, image = make_prediction(seed)
    options = InferOptions(
        mask_edges=mask_edges, apply_confidence_mask=apply_confidence, confidence_percentile=percentile
    )
    result = finish_view(prediction, image, options)
    mask = result["mask"][..., 0]
    assert not (mask & ~result["non_ambiguous_mask"]).any()
    loose = finish_view(prediction, image, InferOptions(mask_edges=False))["mask"][..., 0]
    assert not (mask & ~loose).any()
    np.testing.assert_array_equal(loose, result["non_ambiguous_mask"])
    plain = finish_view(prediction, image, InferOptions(apply_mask=False))
    for key in ("pts3d", "pts3d_cam", "depth_along_ray", "depth_z"):
        assert not result[key][~mask].any()
        np.testing.assert_array_equal(result[key][mask], plain[key][mask])
    assert all(np.isfinite(value).all() for value in result.values())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_points_poses_depth_and_intrinsics_agree(seed: int) -> None:
    prediction, image = make_prediction(seed, batch=2)
    result = finish_view(prediction, image, InferOptions(apply_mask=False))
    pose, cam = result["camera_poses"].astype(float), result["pts3d_cam"].astype(float)
    world = np.einsum("bij,bhwj->bhwi", pose[:, :3, :3], cam) + pose[:, None, None, :3, 3]
    np.testing.assert_allclose(result["pts3d"], world, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(cam, axis=-1)[..., None], result["depth_along_ray"], rtol=1e-5)
    np.testing.assert_array_equal(result["depth_z"][..., 0], result["pts3d_cam"][..., 2])
    projected = np.einsum("bij,bhwj->bhwi", result["intrinsics"].astype(float), cam)
    projected = projected[..., :2] / projected[..., 2:]
    v, u = np.mgrid[:28, :42]
    np.testing.assert_allclose(projected, np.broadcast_to(np.stack([u, v], -1), projected.shape), atol=1e-3)


def test_unknown_normalisation_and_wrong_count() -> None:
    prediction, image = make_prediction()
    with pytest.raises(DataNormTypeError, match=r"'croco'.*dinov2"):
        finish_predictions([prediction], [image], data_norm_type="croco")
    with pytest.raises(InputError, match="1 predictions but 2 images"):
        finish_predictions([prediction], [image, image])
