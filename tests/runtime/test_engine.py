"""The engine against the PyTorch reference, its options, and what loading refuses."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from mapengine.export import load_model
from mapengine.runtime import Engine, InputError, ProfileError
from mapengine.runtime.errors import (
    ImageSizeError,
    ViewMismatchError,
)

from ..engine_views import MIXES, SIZE, close, in_torch, same, views_of


@pytest.fixture(scope="module")
def reference() -> Iterator[Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load_model("preset:tiny")
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("mix", MIXES.values(), ids=list(MIXES))
def test_infer_equals_the_reference(engine: Engine, reference: Any, mix: tuple[str, ...]) -> None:
    views = views_of(mix)
    found, expected = engine.infer(views), reference.infer(in_torch(views))
    assert len(found) == len(expected) == len(mix)
    for got, want in zip(found, expected, strict=True):
        assert list(got) == list(want)
        masks = [p["mask"] for p in (got, {"mask": want["mask"].numpy()})]
        both = masks[0] & masks[1]
        assert (masks[0] != masks[1]).mean() < 0.01  # a pixel at a threshold may fall on either side
        for key, value in want.items():
            value = value.numpy()
            assert isinstance(got[key], np.ndarray)
            assert (key, got[key].shape, got[key].dtype) == (key, value.shape, value.dtype)
            if value.dtype != bool:
                inside = both if key in ("pts3d", "pts3d_cam", "depth_z", "depth_along_ray") else True
                largest = np.abs(value).max()
                assert np.abs((got[key] - value) * inside).max() <= 1e-4 * largest, key


@pytest.mark.slow
@pytest.mark.parametrize("mix", [("", ""), ("kdp", "", "kp")], ids=["images", "mixed"])
def test_the_samples_of_a_batch_do_not_mix(engine: Engine, mix: tuple[str, ...]) -> None:
    views = views_of(mix, batch=2)
    together = engine.predict(views)
    for sample in range(2):
        alone = engine.predict(
            [{k: v[sample : sample + 1] if isinstance(v, np.ndarray) else v for k, v in view.items()} for view in views]
        )
        for got, want in zip(together, alone, strict=True):
            for key in ("pts3d", "conf", "cam_quats", "metric_scaling_factor"):
                np.testing.assert_allclose(
                    got[key][sample], want[key][0], rtol=1e-4, atol=1e-5 * np.abs(want[key]).max()
                )
    assert together[0]["pts3d"].shape == (2, SIZE[1], SIZE[0], 3)
    assert not np.allclose(together[0]["conf"][0], together[0]["conf"][1])


@pytest.mark.parametrize("mix", [("kdp", "p"), ("q", "q"), ("r", "")], ids=["kdp", "pairs", "rays"])
def test_torch_tensors_in_numpy_out(small: Engine, mix: tuple[str, ...]) -> None:
    views = views_of(mix)
    found = small.infer(in_torch(views))
    assert all(type(value) is np.ndarray for prediction in found for value in prediction.values())
    assert same(found, small.infer(views))


def test_the_callers_dictionaries_are_not_modified(small: Engine) -> None:
    views = views_of(("kdp", "q", "r"))
    before = copy.deepcopy(views)
    for prediction in small.infer(views):
        for value in prediction.values():
            value[...] = 0  # what comes back shares no memory with what went in
    for view, old in zip(views, before, strict=True):
        assert list(view) == list(old)
        for key, value in old.items():
            parts = zip(view[key], value, strict=True) if isinstance(value, tuple) else [(view[key], value)]
            for now, then in parts:
                np.testing.assert_array_equal(now, then)


@pytest.mark.slow
def test_calls_leave_nothing_behind(small: Engine) -> None:
    plain, full = views_of(("", "")), views_of(("kdp", "kdp"))
    first = small.infer(plain)
    with pytest.raises(InputError):
        small.infer([{**plain[0], "depth_z": full[0]["depth_z"]}], ignore_depth_inputs=True)
    small.infer(full, ignore_pose_inputs=True, use_multiview_confidence=True)
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002 - the global generator is what must not be touched
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    assert same(first, small.infer(plain))
    assert torch.equal(states[0], torch.get_rng_state())
    np.testing.assert_array_equal(states[1], np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "kept"),
    [("calibration", ("p", "p")), ("depth", ("kp", "kp")), ("pose", ("kd", "kd"))],
)
def test_an_ignored_input_counts_as_absent(small: Engine, option: str, kept: tuple[str, ...]) -> None:
    given = ("kdp", "kdp") if option != "calibration" else ("kp", "kp")
    ignored = small.infer(views_of(given), **{f"ignore_{option}_inputs": True})
    assert same(ignored, small.infer(views_of(kept)))
    assert not same(ignored, small.infer(views_of(given)))


def test_all_inputs_ignored_are_plain_images(small: Engine) -> None:
    options = {f"ignore_{name}_inputs": True for name in ("calibration", "depth", "pose")}
    assert same(small.infer(views_of(("kdp", "kdp")), **options), small.infer(views_of(("", ""))))


@pytest.mark.slow
def test_ignored_scales_are_not_metric_scales(small: Engine) -> None:
    views = views_of(("kdp", "kdp"))
    options = {"ignore_depth_scale_inputs": True, "ignore_pose_scale_inputs": True}
    both = small.infer(views, **options)
    assert same(both, small.infer(views_of(("kdpm", "kdpm"))))
    for option in options:
        one = small.infer(views, **{option: True})
        assert not same(one, both)
        assert not same(one, small.infer(views))


@pytest.mark.slow
def test_mask_options(small: Engine) -> None:
    views = views_of(("", ""))
    plain, bare = small.infer(views), small.infer(views, apply_mask=False)
    assert set(plain[0]) - set(bare[0]) == {"mask"}
    shares = {
        name: np.mean([p["mask"].mean() for p in small.infer(views, **options)])
        for name, options in {
            "default": {},
            "no edges": {"mask_edges": False},
            "confident": {"mask_edges": False, "apply_confidence_mask": True},
            "more confident": {"mask_edges": False, "apply_confidence_mask": True, "confidence_percentile": 60},
            "strict": {"edge_normal_threshold": 0.5, "edge_depth_threshold": 0.001},
        }.items()
    }
    assert shares["strict"] < shares["default"] < shares["no edges"]
    assert shares["more confident"] < 0.5 < shares["confident"] < shares["no edges"]
    for masked, whole in zip(plain, bare, strict=True):
        mask = masked["mask"]
        assert not masked["pts3d"][~mask[..., 0]].any()
        assert np.array_equal(masked["depth_z"][mask], whole["depth_z"][mask])
        assert whole["pts3d"].all(axis=-1).all()


@pytest.mark.slow
def test_multiview_confidence_replaces_confidence(small: Engine) -> None:
    views = views_of(("", "", ""))
    plain = small.infer(views)
    loose = small.infer(views, use_multiview_confidence=True, multiview_conf_depth_abs_thresh=1e6)
    strict = small.infer(views, use_multiview_confidence=True, multiview_conf_depth_rel_thresh=0.0)
    for a, b, c in zip(plain, loose, strict, strict=True):
        assert not np.array_equal(a["conf"], b["conf"])
        assert b["conf"].min() >= 0
        assert b["conf"].max() <= 1
        assert c["conf"].sum() < b["conf"].sum()
    alone = small.infer(views[:1], use_multiview_confidence=True)
    np.testing.assert_array_equal(alone[0]["conf"], 1)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"minibatch_size": n} for n in (1, 2, 3, 5, 100, np.int64(2))])
def test_minibatch_size_does_not_change_results(engine: Engine, options: dict[str, Any]) -> None:
    views = views_of(("kdp", "", "p", "k", ""))
    close(engine.infer(views, apply_mask=False, **options), engine.infer(views, apply_mask=False))


@pytest.mark.slow
def test_memory_efficiency_and_amp_do_not_change_results(engine: Engine) -> None:
    views = views_of(("kdp", "", "p"))
    expected = engine.infer(views, apply_mask=False)
    close(engine.infer(views, apply_mask=False, memory_efficient_inference=False), expected)
    for amp in ("fp16", "bf16", "fp32"):
        assert same(engine.infer(views, apply_mask=False, amp_dtype=amp), expected)
    assert same(engine.infer(views, apply_mask=False, use_amp=False), expected)


def test_progress_counts_every_stage_up_to_its_end(small: Engine) -> None:
    calls: list[tuple[str, int, int]] = []
    small.infer(views_of(("kdp", "", "p")), progress=lambda *call: calls.append(call))
    last = {stage: (done, total) for stage, done, total in calls}
    assert last == {"image_encoder": (3, 3), "geometry_encoder": (2, 2), "aggregator": (3, 3), "dense_head": (3, 3)}
    assert [call for call in calls if call[0] == "dense_head"] == [("dense_head", n, 3) for n in (1, 2, 3)]


def test_requests_outside_the_profile(small: Engine) -> None:
    view = views_of(("",))[0]
    with pytest.raises(ProfileError, match=r"33 views .* built for 1 to 32; build it with --views 1:4:33"):
        small.infer([view] * 33)
    with pytest.raises(ProfileError, match=r"532x14 .*sides from 14 to 518 .*--resolution 532x14"):
        small.infer([{**view, "img": np.zeros((1, 3, 14, 532), np.float32)}])
    with pytest.raises(ImageSizeError, match=r"83x56 pixels .* multiples of 14"):
        small.infer([{**view, "img": view["img"][..., 1:]}])
    with pytest.raises(ViewMismatchError, match=r"view 1: img .* view 0"):
        small.infer([view, {**view, "img": view["img"][..., 14:]}])
