"""Training batches are what inference would make of the same views."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mapengine.calibration.scenes.cameras import measure_overlap
from mapengine.export.training.batch import Sampler, _mirrored, _shrunk, make_batch
from mapengine.export.training.config import InputMix
from mapengine.export.training.dataset import SceneArrays
from mapengine.runtime import preprocess_inputs
from mapengine.runtime.pipeline import geometry_inputs
from mapengine.runtime.views import prepare_views

EVERYTHING = InputMix(geometry=1, rays=1, depth=1, pose=1, per_view=1, sparse=0, metric=1)
NOTHING = InputMix(geometry=0)


def arrays(scenes: SceneArrays, index: int, views: int) -> tuple[np.ndarray, ...]:
    part = index, slice(0, views)
    return scenes.images[part], scenes.depth_z[part].astype(np.float32), scenes.intrinsics[part], scenes.poses[part]


def test_inputs_are_those_of_inference(scenes: SceneArrays) -> None:
    images, depth_z, intrinsics, poses = arrays(scenes, 3, 4)
    batch = make_batch(images[None], depth_z[None], intrinsics[None], poses[None], EVERYTHING, np.random.default_rng(0))
    raw = [
        {"img": i, "depth_z": d, "intrinsics": k, "camera_poses": p}
        for i, d, k, p in zip(images, depth_z, intrinsics, poses, strict=True)
    ]
    height, width = depth_z.shape[1:]
    prepared = prepare_views(preprocess_inputs(raw, resize_mode="fixed_size", size=(width, height)))
    expected = geometry_inputs([g for g in prepared.geometry if g is not None], 1, height, width)
    assert set(batch.inputs) == set(expected)
    for name, value in expected.items():
        assert batch.inputs[name].numpy() == pytest.approx(value, abs=2e-4), name
    assert batch.images[0].numpy() == pytest.approx(np.concatenate(prepared.images), abs=1e-5)


def test_targets_are_in_the_frame_of_view_0(scenes: SceneArrays) -> None:
    images, depth_z, intrinsics, poses = arrays(scenes, 5, 3)
    batch = make_batch(images[None], depth_z[None], intrinsics[None], poses[None], NOTHING, np.random.default_rng(0))
    targets = batch.targets
    assert targets.quaternions[0, 0].abs().numpy() == pytest.approx([0, 0, 0, 1], abs=1e-6)
    assert targets.translations[0, 0].numpy() == pytest.approx(np.zeros(3), abs=1e-6)
    relative = np.linalg.inv(poses[0].astype(np.float64)) @ poses[2]
    assert targets.translations[0, 2].numpy() == pytest.approx(relative[:3, 3], abs=1e-5)
    assert (targets.rays * targets.depth[..., None])[0, 1, ..., 2].numpy() == pytest.approx(depth_z[1], abs=1e-4)
    assert not any(x.any() for x in batch.inputs.values())


def test_mirrored_views_still_fit_together(scenes: SceneArrays) -> None:
    images, depth_z, intrinsics, poses = arrays(scenes, 7, 2)
    flipped = _mirrored(images, depth_z, intrinsics, poses)

    def overlap(depth: np.ndarray, k: np.ndarray, pose: np.ndarray) -> float:
        return measure_overlap(depth[0], pose[0], k[0], depth[1], pose[1], k[1])

    before, after = overlap(depth_z, intrinsics, poses), overlap(flipped[1], flipped[2], flipped[3])
    assert before > 0.2
    assert after == pytest.approx(before, abs=0.01)
    assert overlap(flipped[1], flipped[2], poses) < before - 0.05  # mirrored maps with the old poses do not fit
    assert np.linalg.det(flipped[3][:, :3, :3]) == pytest.approx(1, abs=1e-4)


def test_shrunk_views_keep_their_rays() -> None:
    intrinsics = np.array([[[40.0, 0, 13.3], [0, 40, 14.1], [0, 0, 1]]], np.float32)
    images = np.arange(28 * 28 * 3, dtype=np.uint32).reshape(1, 28, 28, 3) % 251
    small, depth, camera = _shrunk(images.astype(np.uint8), np.ones((1, 28, 28), np.float32), intrinsics, 2)
    assert small.shape == (1, 14, 14, 3)
    assert depth.shape == (1, 14, 14)
    # Pixel i of the small image is the middle of the pixels 2 i and 2 i + 1.
    i = np.arange(14)
    assert (i - camera[0, 0, 2]) / camera[0, 0, 0] == pytest.approx((2 * i + 0.5 - 13.3) / 40, abs=1e-5)
    assert small[0, 3, 4].astype(int) == pytest.approx(images[0, 6:8, 8:10].mean(axis=(0, 1)), abs=0.51)


def test_batches_are_named_by_seed_rank_and_step(scenes: SceneArrays) -> None:
    def images(seed: int, rank: int, step: int) -> torch.Tensor:
        return Sampler(scenes, InputMix(), seed, rank).batch(step, 2, 2).images

    assert torch.equal(images(0, 0, 5), images(0, 0, 5))
    for other in ((1, 0, 5), (0, 1, 5), (0, 0, 6)):
        assert not torch.equal(images(0, 0, 5), images(*other))


def test_the_mix_is_what_it_says(scenes: SceneArrays) -> None:
    mix = InputMix(geometry=0.6, rays=0.5, depth=0.5, pose=0.5, per_view=0.8, sparse=1, sparse_share=(0.1, 0.1))
    sampler = Sampler(scenes, mix, 0)
    flags = torch.cat([sampler.batch(step, 25, 4).inputs["modality_flags"].reshape(25, 4, 5) for step in range(12)])
    rays, depth, depth_scale, pose, pose_scale = flags.unbind(-1)
    assert rays.mean().item() == pytest.approx(0.6 * 0.5 * 0.8, abs=0.04)
    assert depth.mean().item() == pytest.approx(0.6 * 0.5 * 0.8, abs=0.04)
    assert bool((depth_scale <= depth).all())
    assert bool((pose_scale <= pose).all())
    assert bool((pose[:, :1] >= pose).all())  # no pose without the reference's
    assert not sampler.batch(0, 8, 1).inputs["modality_flags"][:, 3:].any()
    inputs = sampler.batch(1, 25, 4).inputs
    given = inputs["depth"][inputs["modality_flags"][:, 1] > 0] != 0
    assert given.float().mean().item() == pytest.approx(0.1, abs=0.03)


def test_depth_that_is_given_is_the_truth(scenes: SceneArrays) -> None:
    mix = InputMix(geometry=1, depth=1, rays=0, pose=0, per_view=1, sparse=1, metric=1)
    batch = Sampler(scenes, mix, 3).batch(0, 4, 2)
    logged, factor = batch.inputs["depth"][..., 0], torch.exp(batch.inputs["depth_log_scale"])[:, :, None]
    restored = torch.expm1(logged) * factor
    target = batch.targets.depth.flatten(0, 1)
    given = logged > 0
    assert given.any()
    assert restored[given].numpy() == pytest.approx(target[given].numpy(), rel=1e-3)
