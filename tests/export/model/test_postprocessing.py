"""The module of post-processing gives what NumPy gives, which is its twin."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mapengine.export.model.postprocessing import PostProcessed, PostProcessing, intrinsics_from_rays, percentile
from mapengine.runtime import geometry
from mapengine.runtime.options import InferOptions
from mapengine.runtime.postprocessing.predictions import confidence_mask, finish_view
from mapengine.runtime.postprocessing.scene_stage import READS, option_values

from ...goldens import MASKED_KEYS
from ...heads import make_heads
from ...postprocess_cases import CASES, FLIPS, golden_mask, golden_scene

GIVES = tuple(PostProcessed.__annotations__)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"apply_mask": False},
    {"mask_edges": False},
    {"apply_confidence_mask": True, "confidence_percentile": 33.3},
    {"edge_normal_threshold": 120.0, "edge_depth_threshold": 0.5},
]


def run_module(
    heads: dict[str, Any], image: Any, options: InferOptions, kept: Any = None, dtype: str = "float32"
) -> dict[str, Any]:
    shape = heads["confidence"].shape
    inputs = {name: heads[head] for name, head in READS.items()} | {
        "metric_scaling_factor": heads["scale"],
        "images": image,
        "options": option_values(options, shape[1] * shape[2], dtype),
    }
    tensors = {name: torch.from_numpy(np.asarray(value, dtype)) for name, value in inputs.items()}
    tensors["kept"] = torch.from_numpy(np.ones(shape, bool) if kept is None else kept)
    with torch.inference_mode():
        return {name: value.numpy() for name, value in PostProcessing("dinov2")(**tensors)._asdict().items()}


def assert_twins(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in set(GIVES) & set(expected):
        got, want = found[name], expected[name]
        assert (got.shape, got.dtype) == (want.shape, want.dtype), name
        if got.dtype == bool:
            np.testing.assert_array_equal(got, want, err_msg=name)
        else:
            limit = 1e-5 if name == "intrinsics" else 2e-6
            np.testing.assert_allclose(got, want, rtol=0, atol=limit * max(np.abs(want).max(), 1), err_msg=name)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["tag"])
def test_masks_are_those_of_the_reference(case: dict[str, Any]) -> None:
    options = InferOptions(**case["kwargs"])
    if options.use_multiview_confidence:
        return  # compares all views of a call, so it is no part of the module
    for view, (heads, image) in enumerate(zip(*golden_scene(case), strict=True)):
        found = run_module(heads, image, options)
        assert_twins(found, finish_view(heads, image, options))
        expected = golden_mask(case, view)
        if expected is not None:
            assert (found["mask"] != expected).mean() <= FLIPS


@pytest.mark.parametrize("kept", [False, True], ids=["everything counts", "a part counts"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options(options: dict[str, Any], kept: bool) -> None:
    heads = make_heads(batch=2)
    image = np.random.default_rng(0).standard_normal((2, 3, 28, 42)).astype(np.float32)
    mask = np.random.default_rng(1).random((2, 28, 42)) > 0.3 if kept else None
    chosen = InferOptions(**options)
    found = run_module(heads, image, chosen, mask)
    expected = finish_view(heads, image, chosen, kept=mask)
    assert_twins(found, expected)
    inside = expected.get("mask") if chosen.apply_mask else None if mask is None else mask[..., None]
    for name in MASKED_KEYS if inside is not None else ():
        assert not found[name][~np.broadcast_to(inside, found[name].shape)].any()


def test_in_double_precision() -> None:
    heads = {name: value.astype(np.float64) for name, value in make_heads().items()}
    image = np.random.default_rng(0).standard_normal((1, 3, 28, 42))
    options = InferOptions(apply_confidence_mask=True)
    assert_twins(run_module(heads, image, options, dtype="float64"), finish_view(heads, image, options))


def test_what_is_not_finite_outside_the_mask_is_zero() -> None:
    heads = make_heads()
    heads["mask_logits"][0, 3] = -1
    heads["depth_along_ray"][0, 3, ::2] = np.inf
    heads["depth_along_ray"][0, 3, 1::2] = np.nan
    found = run_module(heads, np.zeros((1, 3, 28, 42), np.float32), InferOptions(mask_edges=False))
    for name in MASKED_KEYS:
        assert not found[name][0, 3].any(), name


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_percentiles_are_exact(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 40))
    number = st.floats(1, 2.0**100, width=32)
    few = st.sampled_from([1.0, 1.5, float(np.nextafter(np.float32(1), np.float32(2))), 7.0, 3e30])
    values = np.array([data.draw(st.lists(number | few, min_size=count, max_size=count))], np.float32)
    percent = data.draw(st.floats(0, 100) | st.sampled_from([0.0, 10.0, 50.0, 100.0]))
    options = InferOptions(apply_confidence_mask=True, confidence_percentile=percent)
    *_, rank, fraction = torch.from_numpy(option_values(options, count))
    threshold = percentile(torch.from_numpy(values), rank, fraction).numpy()
    expected = confidence_mask(values[:, None], percent)[:, 0]
    np.testing.assert_array_equal(values > threshold, expected)


@pytest.mark.parametrize(("width", "height"), [(42, 28), (518, 392), (1190, 1022)])
@pytest.mark.parametrize("focal", [0.5, 1.0, 20.0])
def test_intrinsics_of_any_size_and_focal_length(width: int, height: int, focal: float) -> None:
    wanted = np.array([[[focal * width, 0, 0.4 * width], [0, focal * width, 0.55 * height], [0, 0, 1]]], np.float32)
    rays = geometry.rays_from_intrinsics(wanted, height, width)
    found = intrinsics_from_rays(torch.from_numpy(rays)).numpy()
    np.testing.assert_allclose(found, geometry.intrinsics_from_rays(rays), rtol=3e-4)


def test_rays_in_the_image_plane_or_all_equal() -> None:
    rays = np.zeros((1, 28, 42, 3), np.float32)
    rays[..., 2] = 1
    np.testing.assert_array_equal(
        intrinsics_from_rays(torch.from_numpy(rays)).numpy(), geometry.intrinsics_from_rays(rays)
    )
    turned = geometry.rays_from_intrinsics(np.diag([30, 30, 1]).astype(np.float32)[None], 28, 42)
    turned[:, 4:9, :, 2] = 0
    np.testing.assert_allclose(
        intrinsics_from_rays(torch.from_numpy(turned)).numpy(), geometry.intrinsics_from_rays(turned), atol=1e-4
    )
