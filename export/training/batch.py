"""From stored scenes to training batches: which views, which inputs they bring, and what is to be predicted.

Only NumPy computes here: a batch is made in a thread beside the training step, and a second thread of PyTorch
operations would bring a second pool of processor threads that spin against the first.

Inputs are made by the runtime's own functions (:mod:`mapengine.runtime.geometry`), so that the network is trained on
exactly what inference will give it. N = B * V counts views sample-major: entry ``b * V + v``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mapengine.runtime import geometry
from mapengine.runtime.normalization import norm_constants
from mapengine.runtime.views import MODALITIES

from .config import InputMix
from .dataset import SceneArrays

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Targets:
    """Ground truth of B samples of V views, in the frame of each sample's view 0 and in metres.

    ``rays`` (B, V, H, W, 3) unit, ``depth`` (B, V, H, W) along the ray with 0 for none, ``quaternions`` (B, V, 4) xyzw
    and ``translations`` (B, V, 3) camera-to-world.
    """

    rays: Tensor
    depth: Tensor
    quaternions: Tensor
    translations: Tensor


@dataclass(frozen=True)
class Batch:
    """``images`` (B, V, 3, H, W) normalised; ``inputs`` as ``encode_geometry`` takes them with leading dimension N."""

    images: Tensor
    inputs: dict[str, Tensor]
    targets: Targets

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        targets = Targets(*(x.to(device, non_blocking=True) for x in vars(self.targets).values()))
        inputs = {name: x.to(device, non_blocking=True) for name, x in self.inputs.items()}
        return Batch(self.images.to(device, non_blocking=True), inputs, targets)


class Sampler:
    """Draws batches; batch ``step`` of process ``rank`` is the same however often a run is interrupted."""

    def __init__(self, scenes: SceneArrays, mix: InputMix, seed: int, rank: int = 0) -> None:
        self._scenes, self._mix, self._seed, self._rank = scenes, mix, seed, rank

    def batch(self, step: int, samples: int, views: int, shrink: int = 1) -> Batch:
        """A batch of ``samples`` x ``views``, at 1 / ``shrink`` of the stored size."""
        rng = np.random.default_rng((self._seed, self._rank, step))
        scenes = self._scenes
        total = scenes.images.shape[1]
        picked = rng.integers(len(scenes), size=samples)
        order = np.stack([_view_order(rng, total)[:views] for _ in range(samples)])
        images = scenes.images[picked[:, None], order]
        depth_z = scenes.depth_z[picked[:, None], order].astype(np.float32)
        intrinsics = scenes.intrinsics[picked[:, None], order]
        poses = scenes.poses[picked[:, None], order]
        for sample in range(samples):
            if rng.random() < 0.5:
                parts = (images[sample], depth_z[sample], intrinsics[sample], poses[sample])
                images[sample], depth_z[sample], intrinsics[sample], poses[sample] = _mirrored(*parts)
            images[sample] = images[sample][..., rng.permutation(3)]  # any colour may be any other
        if shrink > 1:
            images, depth_z, intrinsics = _shrunk(images, depth_z, intrinsics, shrink)
        return make_batch(images, depth_z, intrinsics, poses, self._mix, rng)


def _view_order(rng: np.random.Generator, views: int) -> NDArray[np.intp]:
    """Half of the samples keep the scene's view 0, with which all others overlap, as their reference."""
    order = rng.permutation(views)
    if rng.random() < 0.5:
        order = np.concatenate([[0], order[order != 0]])
    return order


def _mirrored(
    images: NDArray[np.uint8], depth_z: Array, intrinsics: Array, poses: Array
) -> tuple[NDArray[np.uint8], Array, Array, Array]:
    """Views of the world with left and right exchanged."""
    flip = np.diag([-1, 1, 1, 1]).astype(np.float32)
    turned = np.asarray(flip @ poses @ flip, np.float32)
    intrinsics = intrinsics.copy()
    intrinsics[:, 0, 2] = images.shape[2] - 1 - intrinsics[:, 0, 2]
    return images[:, :, ::-1], depth_z[:, :, ::-1], intrinsics, turned


def _shrunk(
    images: NDArray[np.uint8], depth_z: Array, intrinsics: Array, factor: int
) -> tuple[NDArray[np.uint8], Array, Array]:
    """Mean colours of blocks of pixels, and the depth of the pixel at the middle of each block."""
    *lead, height, width, _ = images.shape
    blocks = images.reshape(*lead, height // factor, factor, width // factor, factor, 3)
    images = np.rint(blocks.mean(axis=(-4, -2), dtype=np.float32)).astype(np.uint8)
    depth_z = depth_z[..., factor // 2 :: factor, factor // 2 :: factor]
    intrinsics = intrinsics.copy()
    intrinsics[..., :2, 2] -= np.float32((factor - 1) / 2)  # the middle of the first block becomes pixel 0
    intrinsics[..., :2, :] /= np.float32(factor)
    return images, depth_z, intrinsics


def make_batch(
    images: NDArray[np.uint8],
    depth_z: Array,
    intrinsics: Array,
    poses: Array,
    mix: InputMix,
    rng: np.random.Generator,
) -> Batch:
    """Targets of stacked views (B, V, ...), and inputs drawn from ``mix``."""
    samples, views, height, width, _ = images.shape
    count = samples * views
    rays = geometry.rays_from_intrinsics(intrinsics.reshape(count, 3, 3), height, width)
    distance = geometry.depth_along_ray(depth_z.reshape(count, height, width), rays)  # (N, H, W, 1)
    quaternions, translations = geometry.split_pose_matrix(poses.reshape(count, 4, 4))
    quaternions, translations = _relative(
        quaternions.reshape(samples, views, 4), translations.reshape(samples, views, 3)
    )
    mean, std = (np.asarray(x, np.float32) for x in norm_constants("dinov2"))
    normalized = np.empty((samples, views, 3, height, width), np.float32)
    for channel in range(3):
        part = normalized[:, :, channel]
        np.multiply(images[..., channel], 1 / (255 * std[channel]), out=part, dtype=np.float32)
        part -= mean[channel] / std[channel]
    targets = Targets(
        torch.from_numpy(rays.reshape(samples, views, height, width, 3)),
        torch.from_numpy(distance.reshape(samples, views, height, width)),
        torch.from_numpy(quaternions),
        torch.from_numpy(translations),
    )
    flags, sparse = _draw_mix(samples, views, mix, rng)
    inputs = _inputs(rays, distance, quaternions, translations, flags, sparse, rng)
    return Batch(
        torch.from_numpy(normalized), {name: torch.from_numpy(value) for name, value in inputs.items()}, targets
    )


def _relative(quaternions: Array, translations: Array) -> tuple[Array, Array]:
    """(B, V, 4) and (B, V, 3) in the frame of view 0, quaternions with w >= 0."""
    rotation, translation = geometry.relative_pose(
        np.broadcast_to(quaternions[:, :1], quaternions.shape),
        np.broadcast_to(translations[:, :1], translations.shape),
        quaternions,
        translations,
    )
    return rotation.astype(np.float32), translation.astype(np.float32)


def _draw_mix(
    samples: int, views: int, mix: InputMix, rng: np.random.Generator
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Flags (B, V, 5) in the order of ``MODALITIES``, and the share of depth that each sample (B,) keeps."""
    flags = np.zeros((samples, views, len(MODALITIES)), bool)
    rays, depth, depth_scale, pose, pose_scale = range(len(MODALITIES))
    has_any = rng.random(samples) < mix.geometry
    for modality, probability in ((rays, mix.rays), (depth, mix.depth), (pose, mix.pose)):
        given = has_any & (rng.random(samples) < probability)
        flags[:, :, modality] = given[:, None] & (rng.random((samples, views)) < mix.per_view)
    # Poses are relative to view 0: without its pose there are none.
    flags[:, 0, pose] |= flags[:, :, pose].any(axis=1)
    if views == 1:
        flags[:, :, pose] = False  # a single pose says nothing
    flags[:, :, depth_scale] = flags[:, :, depth] & (rng.random(samples) < mix.metric)[:, None]
    flags[:, :, pose_scale] = flags[:, :, pose] & (rng.random(samples) < mix.metric)[:, None]
    low, high = mix.sparse_share
    share = np.where(rng.random(samples) < mix.sparse, low + (high - low) * rng.random(samples), 1)
    return flags, share.astype(np.float32)


def _inputs(
    rays: Array,
    distance: Array,
    quaternions: Array,
    translations: Array,
    flags: NDArray[np.bool_],
    share: NDArray[np.float32],
    rng: np.random.Generator,
) -> dict[str, Array]:
    samples, views, _ = flags.shape
    count = samples * views
    flat = flags.reshape(count, -1)
    given = distance * flat[:, 1, None, None, None]
    for sample in np.flatnonzero((share < 1) & flags[:, :, 1].any(axis=1)):
        block = given[sample * views : (sample + 1) * views]
        block *= rng.random(block.shape, np.float32) < share[sample]
    # A view whose depth is all missing gives no depth.
    flat[:, 1] &= given.reshape(count, -1).any(axis=1)
    flat[:, 2] &= flat[:, 1]
    normalized, factor = geometry.normalize_depth(given)
    posed = flags[:, :, 3]
    moved = np.where(posed[..., None], translations, 0).transpose(1, 0, 2)  # (V, B, 3)
    directions, lengths = geometry.normalize_translations(moved.astype(np.float32))
    log_length = np.log(lengths + np.float32(geometry.EPSILON))
    return {
        "ray_directions": rays * flat[:, 0, None, None, None],
        "depth": geometry.log_normalize(normalized),
        "depth_log_scale": np.where(flat[:, 2], np.log(factor + np.float32(geometry.EPSILON)), 0)[:, None].astype(
            np.float32
        ),
        "rotation": (quaternions * posed[..., None]).reshape(count, 4).astype(np.float32),
        "translation": directions.transpose(1, 0, 2).reshape(count, 3).astype(np.float32),
        "translation_log_scale": np.where(flat[:, 4], np.repeat(log_length, views), 0)[:, None].astype(np.float32),
        "modality_flags": flat.astype(np.float32),
    }
