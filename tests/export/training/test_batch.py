"""Training batches are what inference would make of the same views."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch

from mapengine.calibration.scenes.cameras import measure_overlap
from mapengine.export.training.batch import Sampler, make_batch, mirrored_cameras, shrunk
from mapengine.export.training.config import InputMix
from mapengine.export.training.dataset import SceneStore
from mapengine.runtime import preprocess_inputs
from mapengine.runtime.backends.host_pipeline import geometry_inputs
from mapengine.runtime.inputs.normalization import norm_constants
from mapengine.runtime.inputs.prepared import prepare_views

pytestmark = pytest.mark.slow  # its fixtures take seconds

EVERYTHING = InputMix(geometry=1, rays=1, depth=1, pose=1, per_view=1, sparse=0, metric=1)
NOTHING = InputMix(geometry=0)


def arrays(scenes: SceneStore, index: int, views: int) -> tuple[Any, ...]:
    """Images and depth (V, ...) as tensors, intrinsics and poses as arrays."""
    part = index, slice(0, views)
    return scenes.images[part], scenes.depth_z[part].float(), scenes.intrinsics[part], scenes.poses[part]


def test_inputs_are_those_of_inference(scenes: SceneStore) -> None:
    images, depth_z, intrinsics, poses = arrays(scenes, 3, 4)
    batch = make_batch(images[None], depth_z[None], intrinsics[None], poses[None], EVERYTHING, np.random.default_rng(0))
    raw = [
        {"img": i.numpy(), "depth_z": d.numpy(), "intrinsics": k, "camera_poses": p}
        for i, d, k, p in zip(images, depth_z, intrinsics, poses, strict=True)
    ]
    height, width = depth_z.shape[1:]
    prepared = prepare_views(preprocess_inputs(raw, resize_mode="fixed_size", size=(width, height)))
    expected = geometry_inputs([g for g in prepared.geometry if g is not None], 1, height, width)
    assert set(batch.inputs) == set(expected)
    for name, value in expected.items():
        assert batch.inputs[name].numpy() == pytest.approx(value, abs=2e-4), name
    assert batch.images[0].numpy() == pytest.approx(np.concatenate(prepared.images), abs=1e-5)


def test_targets_are_in_the_frame_of_view_0(scenes: SceneStore) -> None:
    images, depth_z, intrinsics, poses = arrays(scenes, 5, 3)
    batch = make_batch(images[None], depth_z[None], intrinsics[None], poses[None], NOTHING, np.random.default_rng(0))
    targets = batch.targets
    assert targets.quaternions[0, 0].abs().numpy() == pytest.approx([0, 0, 0, 1], abs=1e-6)
    assert targets.translations[0, 0].numpy() == pytest.approx(np.zeros(3), abs=1e-6)
    relative = np.linalg.inv(poses[0].astype(np.float64)) @ poses[2]
    assert targets.translations[0, 2].numpy() == pytest.approx(relative[:3, 3], abs=1e-5)
    assert (targets.rays * targets.depth[..., None])[0, 1, ..., 2].numpy() == pytest.approx(
        depth_z[1].numpy(), abs=1e-4
    )
    assert not any(x.any() for x in batch.inputs.values())


def test_mirrored_views_still_fit_together(scenes: SceneStore) -> None:
    _, depth_z, intrinsics, poses = arrays(scenes, 7, 2)
    depth = depth_z.numpy()
    mirrored = depth[..., ::-1]
    turned_intrinsics, turned = mirrored_cameras(intrinsics, poses, depth.shape[2])

    def overlap(depth: np.ndarray, k: np.ndarray, pose: np.ndarray) -> float:
        return measure_overlap(depth[0], pose[0], k[0], depth[1], pose[1], k[1])

    before, after = overlap(depth, intrinsics, poses), overlap(mirrored, turned_intrinsics, turned)
    assert before > 0.2
    assert after == pytest.approx(before, abs=0.01)
    assert overlap(mirrored, turned_intrinsics, poses) < before - 0.05  # mirrored maps with the old poses do not fit
    assert np.linalg.det(turned[:, :3, :3]) == pytest.approx(1, abs=1e-4)


def test_shrunk_views_keep_their_rays() -> None:
    intrinsics = np.array([[[40.0, 0, 13.3], [0, 40, 14.1], [0, 0, 1]]], np.float32)
    images = np.arange(28 * 28 * 3, dtype=np.uint32).reshape(1, 28, 28, 3) % 251
    small, depth, camera = shrunk(torch.tensor(images, dtype=torch.uint8), torch.ones(1, 28, 28), intrinsics, 2)
    assert small.shape == (1, 14, 14, 3)
    assert depth.shape == (1, 14, 14)
    # Pixel i of the small image is the middle of the pixels 2 i and 2 i + 1.
    i = np.arange(14)
    assert (i - camera[0, 0, 2]) / camera[0, 0, 0] == pytest.approx((2 * i + 0.5 - 13.3) / 40, abs=1e-5)
    assert small[0, 3, 4].numpy().astype(int) == pytest.approx(images[0, 6:8, 8:10].mean(axis=(0, 1)), abs=0.51)


def test_drawn_views_are_stored_ones_mirrored_and_recoloured(scenes: SceneStore) -> None:
    batch = Sampler(scenes, NOTHING, 4).batch(0, 12, 2)
    stored = {}
    for flipped in (False, True):
        images = scenes.images.flip(3) if flipped else scenes.images
        depth = scenes.depth_z.flip(3) if flipped else scenes.depth_z
        for index in range(len(scenes)):
            for view in range(scenes.images.shape[1]):
                stored[flipped, index, view] = images[index, view], depth[index, view].float()
    mean, std = (np.asarray(x)[:, None, None] for x in norm_constants("dinov2"))
    seen = set()
    for sample in range(12):
        for view in range(2):
            colours = np.rint((batch.images[sample, view].numpy() * std + mean) * 255).astype(np.uint8)
            target = batch.targets
            found = [
                (flipped, sorted_equal)
                for (flipped, _, _), (image, depth) in stored.items()
                if torch.allclose(target.depth[sample, view] * target.rays[sample, view, ..., 2], depth, rtol=1e-4)
                and (sorted_equal := _recolouring(image.numpy(), colours)) is not None
            ]
            assert len(found) == 1
            seen.add(found[0])
    assert {flipped for flipped, _ in seen} == {False, True}
    assert len({colours for _, colours in seen}) > 2


def _recolouring(stored: np.ndarray, drawn: np.ndarray) -> tuple[int, ...] | None:
    """The order of the channels of ``stored`` (H, W, 3) that gives ``drawn`` (3, H, W)."""
    for order in permutations(range(3)):
        if np.array_equal(stored[..., list(order)].transpose(2, 0, 1), drawn):
            return order
    return None


def test_batches_are_named_by_seed_rank_and_step(scenes: SceneStore) -> None:
    def images(seed: int, rank: int, step: int) -> torch.Tensor:
        return Sampler(scenes, InputMix(), seed, rank).batch(step, 2, 2).images

    assert torch.equal(images(0, 0, 5), images(0, 0, 5))
    for other in ((1, 0, 5), (0, 1, 5), (0, 0, 6)):
        assert not torch.equal(images(0, 0, 5), images(*other))


def test_the_mix_is_what_it_says(scenes: SceneStore) -> None:
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


def test_depth_that_is_given_is_the_truth(scenes: SceneStore) -> None:
    mix = InputMix(geometry=1, depth=1, rays=0, pose=0, per_view=1, sparse=1, metric=1)
    batch = Sampler(scenes, mix, 3).batch(0, 4, 2)
    logged, factor = batch.inputs["depth"][..., 0], torch.exp(batch.inputs["depth_log_scale"])[:, :, None]
    restored = torch.expm1(logged) * factor
    target = batch.targets.depth.flatten(0, 1)
    given = logged > 0
    assert given.any()
    assert restored[given].numpy() == pytest.approx(target[given].numpy(), rel=1e-3)
