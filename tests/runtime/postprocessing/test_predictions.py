"""Post-processing against the reference's vectors, its options and its invariants."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapengine.runtime.errors import DataNormTypeError, InputError
from mapengine.runtime.inputs.normalization import denormalize_image
from mapengine.runtime.options import OUTPUTS, InferOptions
from mapengine.runtime.postprocessing import predictions
from mapengine.runtime.postprocessing.predictions import (
    FORWARD_OUTPUTS,
    finish_predictions,
    finish_view,
    forward_outputs,
    heads_of,
    needed_heads,
)

from ...heads import Outputs, make_heads
from ...postprocess_cases import CASES, DATA, FLIPS, GOLDEN, golden_scene


def make_view(seed: int = 0, batch: int = 1) -> tuple[Outputs, np.ndarray]:
    """Outputs of the heads, and the image."""
    image = np.random.default_rng(seed).standard_normal((batch, 3, 28, 42)).astype(np.float32)
    return make_heads(seed, batch), image


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
        result = finish_view(heads_of(prediction), stored[f"in.{view}.img"])
        mask = stored[f"inf.{view}.mask"]
        differ, total = differ + int((result["mask"] != mask).sum()), total + mask.size
        np.testing.assert_allclose(result["camera_poses"], stored[f"inf.{view}.camera_poses"], atol=1e-5)
        # The reference solves in float32; noisy rays of a random network make that worth about 1e-4.
        expected = stored[f"inf.{view}.intrinsics"]
        np.testing.assert_allclose(result["intrinsics"], expected, rtol=1e-3, atol=2e-4 * abs(expected).max())
        prediction["depth_z"] = prediction["pts3d_cam"][..., 2:]
        for key in ("pts3d", "pts3d_cam", "depth_along_ray", "depth_z"):
            expected = prediction[key] * result["mask"]
            np.testing.assert_allclose(result[key], expected, rtol=1e-5, atol=2e-6, err_msg=key)
            assert not result[key][~result["mask"][..., 0]].any()
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
    image = np.zeros((2, 3, 28, 42), np.float32)
    options = InferOptions(apply_confidence_mask=True, use_multiview_confidence=True)
    for result in finish_predictions([heads, heads], [image, image], options):
        for key in ("pts3d", "pts3d_cam", "depth_along_ray", "depth_z"):
            result[key][...] = 7  # of the caller's own
    assert heads.keys() == before.keys()
    for key, value in heads.items():
        np.testing.assert_array_equal(value, before[key])


@pytest.mark.parametrize("key", ["depth_along_ray", "ray_directions"])
def test_no_infinity_or_nan_survives_outside_the_mask(key: str) -> None:
    heads = make_heads()
    heads[key][0, 3, 4], heads[key][0, 5, 6] = np.inf, np.nan
    heads["mask_logits"][0, 3, 4] = heads["mask_logits"][0, 5, 6] = -1
    result = finish_view(heads, None, outputs=("pts3d", "pts3d_cam", "depth_along_ray", "depth_z"))
    for value in result.values():
        assert np.isfinite(value).all()
        assert not value[0, 3, 4].any()


@pytest.mark.parametrize("key", ["cam_trans", "cam_quats", "scale"])
def test_a_pose_that_is_not_finite_leaves_no_points_outside_the_mask(key: str) -> None:
    heads = make_heads()
    heads[key][0, 0] = np.nan
    heads["mask_logits"][0, 3, 4] = -1
    result = finish_view(heads, None, outputs=("pts3d", "pts3d_cam", "depth_along_ray", "depth_z"))
    for value in result.values():
        assert not value[0, 3, 4].any()


def test_results_are_written_into_the_arrays_that_were_given() -> None:
    heads, image = make_view(batch=2)
    expected = finish_view(heads, image)
    own = {key: np.full_like(value, 1) for key, value in expected.items()}
    result = finish_view(heads, image, into=own)
    assert list(result) == list(expected)
    for key, value in result.items():
        assert value is own[key]
        np.testing.assert_array_equal(value, expected[key])


CALLS = [
    InferOptions(),
    InferOptions(apply_mask=False),
    InferOptions(mask_edges=False),
    InferOptions(mask_edges=False, apply_confidence_mask=True),
    InferOptions(use_multiview_confidence=True, apply_confidence_mask=True),
]


@pytest.mark.parametrize("options", CALLS, ids=["default", "no mask", "no edges", "confidence", "multi-view"])
def test_each_output_alone_is_what_it_is_among_all(options: InferOptions) -> None:
    """Made of no more than the heads' outputs that it is said to need."""
    views, images = zip(*(make_view(seed) for seed in (0, 1)), strict=True)
    everything = list(finish_predictions(views, images, options))
    assert list(everything[0]) == [name for name in OUTPUTS if name != "mask" or options.apply_mask]
    for name in everything[0]:
        needed = needed_heads(options, (name,))
        some = [{key: value for key, value in heads.items() if key in needed} for heads in views]
        for alone, all_of_it in zip(finish_predictions(some, images, options, (name,)), everything, strict=True):
            assert list(alone) == [name]
            np.testing.assert_array_equal(alone[name], all_of_it[name], err_msg=name)


@pytest.mark.parametrize("apply_mask", [True, False])
def test_where_a_view_does_not_count_there_is_nothing(apply_mask: bool) -> None:
    heads, image = make_view()
    kept = np.random.default_rng(3).random((1, 28, 42)) > 0.5
    options = InferOptions(apply_mask=apply_mask)
    whole, result = finish_view(heads, image, options), finish_view(heads, image, options, kept=kept)
    expected = whole["mask"][..., 0] if apply_mask else whole["non_ambiguous_mask"]
    np.testing.assert_array_equal(result["mask"][..., 0], expected & kept)
    for key in ("pts3d", "pts3d_cam", "depth_along_ray", "depth_z"):
        np.testing.assert_array_equal(result[key], np.where(kept[..., None], whole[key], 0))


def test_few_outputs_need_few_of_the_heads() -> None:
    assert needed_heads(InferOptions(), ("camera_poses",)) == {"cam_trans", "cam_quats", "scale"}
    assert needed_heads(InferOptions(), ("img_no_norm",)) == set()
    assert needed_heads(InferOptions(mask_edges=False), ("mask",)) == {"mask_logits"}
    assert needed_heads(InferOptions(), OUTPUTS) == set(make_heads())
    assert list(forward_outputs(**make_heads())) == list(FORWARD_OUTPUTS)


@pytest.mark.parametrize(("threads", "small"), [(1, 1), (3, 1), (3, predictions.SMALL_PIXELS)])
def test_threads_change_no_number(threads: int, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions, "SMALL_PIXELS", small)
    views, images = zip(*(make_view(seed) for seed in range(11)), strict=True)
    found = finish_predictions(views, images, threads=threads)
    for heads, image, result in zip(views, images, found, strict=True):
        for key, value in finish_view(heads, image).items():
            np.testing.assert_array_equal(result[key], value, err_msg=key)


def test_small_views_are_finished_eight_by_eight_by_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    views, images = zip(*(make_view(seed) for seed in range(11)), strict=True)
    taken = iter(views)
    monkeypatch.setattr(predictions, "in_order", pytest.fail)
    found = finish_predictions(taken, images)
    next(found)
    assert len(list(taken)) == 3


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(14, 14), (14, 1400), (1022, 1022)])
def test_every_size_gives_finite_results(height: int, width: int) -> None:
    heads = make_heads(height=height, width=width)
    image = np.zeros((1, 3, height, width), np.float32)
    result = finish_view(heads, image, InferOptions(apply_confidence_mask=True))
    assert all(np.isfinite(value).all() for value in result.values())
    np.testing.assert_allclose(result["intrinsics"][0, 0, 0], width, rtol=1e-3)


def test_samples_of_a_batch_do_not_influence_each_other() -> None:
    prediction, image = make_view(batch=3)
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
    assert predictions.confidence_mask(confidence, 0).sum() == 14 * 14 - 1
    assert predictions.confidence_mask(confidence, 50).sum() == 7 * 14
    assert predictions.confidence_mask(confidence, 100).sum() == 0
    assert predictions.confidence_mask(np.ones_like(confidence), 10).sum() == 0


@pytest.mark.slow
def test_confidence_of_a_very_large_image() -> None:
    # torch.quantile refuses more than 2**24 elements.
    confidence = np.zeros((1, 4100, 4100), np.float16)
    confidence[0, :410] = 1
    assert predictions.confidence_mask(confidence, 50).sum() == 410 * 4100


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.booleans(), st.floats(0, 100))
def test_masks_are_subsets_and_masked_points_are_zero(
    seed: int, mask_edges: bool, apply_confidence: bool, percentile: float
) -> None:
    prediction, image = make_view(seed)
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
    prediction, image = make_view(seed, batch=2)
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
    prediction, image = make_view()
    with pytest.raises(DataNormTypeError, match=r"'croco'.*dinov2"):
        list(finish_predictions([prediction], [image], data_norm_type="croco"))
    with pytest.raises(InputError, match="1 predictions but 2 images"):
        list(finish_predictions([prediction], [image, image]))
    with pytest.raises(InputError, match="2 predictions but 1 images"):
        list(finish_predictions([prediction] * 2, [image]))
