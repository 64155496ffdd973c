"""From stored scenes to training batches: which views, which inputs they bring, and what is to be predicted.

What is drawn and what has a few numbers per view is computed by NumPy; what has a value per pixel is computed by
PyTorch on the device that trains, where the scenes are. Both are tested to be what inference makes of the same views
(:mod:`mapengine.runtime.geometry`).

N = B * V counts views sample-major: entry ``b * V + v``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mapengine.runtime import geometry
from mapengine.runtime.inputs.normalization import norm_constants
from mapengine.runtime.inputs.prepared import MODALITIES

from .config import InputMix
from .dataset import SceneStore

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


class Sampler:
    """Draws batches; batch ``step`` of process ``rank`` is the same however often a run is interrupted."""

    def __init__(self, scenes: SceneStore, mix: InputMix, seed: int, rank: int = 0) -> None:
        self._scenes, self._mix, self._seed, self._rank = scenes, mix, seed, rank

    def batch(self, step: int, samples: int, views: int, shrink: int = 1) -> Batch:
        """Draw a batch of ``samples`` x ``views``, at 1 / ``shrink`` of the stored size."""
        rng = np.random.default_rng((self._seed, self._rank, step))
        scenes, device = self._scenes, self._scenes.images.device
        picked = rng.integers(len(scenes), size=samples)[:, None]
        order = np.stack([_view_order(rng, scenes.images.shape[1])[:views] for _ in range(samples)])
        mirrored = rng.random(samples) < 0.5
        colours = np.stack([rng.permutation(3) for _ in range(samples)])  # any colour may be any other
        scene, view = on_device(picked, device), on_device(order, device)
        images = _recoloured(scenes.images[scene, view], on_device(colours, device))
        depth_z = scenes.depth_z[scene, view].float()
        flip = on_device(mirrored, device)[:, None, None, None]
        images = torch.where(flip[..., None], images.flip(3), images)
        depth_z = torch.where(flip, depth_z.flip(3), depth_z)
        intrinsics, poses = scenes.intrinsics[picked, order], scenes.poses[picked, order]
        intrinsics[mirrored], poses[mirrored] = mirrored_cameras(intrinsics[mirrored], poses[mirrored], images.shape[3])
        if shrink > 1:
            images, depth_z, intrinsics = shrunk(images, depth_z, intrinsics, shrink)
        return make_batch(images, depth_z, intrinsics, poses, self._mix, rng)


def on_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Copy a small array to a device, without waiting for what the device still has to do."""
    return torch.from_numpy(array).to(device, non_blocking=True)


def _view_order(rng: np.random.Generator, views: int) -> NDArray[np.intp]:
    """Draw the order of views. Half of the samples keep the scene's view 0, with which all others overlap, as
    reference."""
    order = rng.permutation(views)
    if rng.random() < 0.5:
        order = np.concatenate([[0], order[order != 0]])
    return order


def _recoloured(images: Tensor, colours: Tensor) -> Tensor:
    """Return images (B, V, H, W, 3) whose channel c is channel ``colours[b, c]`` of before."""
    rows = torch.arange(len(images), device=images.device)[:, None]
    return images.permute(0, 4, 1, 2, 3)[rows, colours].permute(0, 2, 3, 4, 1)


def mirrored_cameras(intrinsics: Array, poses: Array, width: int) -> tuple[Array, Array]:
    """Return intrinsics (..., 3, 3) and poses (..., 4, 4) of the world with left and right exchanged."""
    flip = np.diag([-1, 1, 1, 1]).astype(np.float32)
    intrinsics = intrinsics.copy()
    intrinsics[..., 0, 2] = width - 1 - intrinsics[..., 0, 2]
    return intrinsics, np.asarray(flip @ poses @ flip, np.float32)


def shrunk(images: Tensor, depth_z: Tensor, intrinsics: Array, factor: int) -> tuple[Tensor, Tensor, Array]:
    """Return mean colours of blocks of pixels, and the depth of the pixel at the middle of each block."""
    *lead, height, width, _ = images.shape
    blocks = images.reshape(*lead, height // factor, factor, width // factor, factor, 3)
    images = blocks.float().mean(dim=(-4, -2)).round().to(torch.uint8)
    depth_z = depth_z[..., factor // 2 :: factor, factor // 2 :: factor]
    intrinsics = intrinsics.copy()
    intrinsics[..., :2, 2] -= np.float32((factor - 1) / 2)  # the middle of the first block becomes pixel 0
    intrinsics[..., :2, :] /= np.float32(factor)
    return images, depth_z, intrinsics


def make_batch(
    images: Tensor, depth_z: Tensor, intrinsics: Array, poses: Array, mix: InputMix, rng: np.random.Generator
) -> Batch:
    """Make the targets of stacked views (B, V, ...), and inputs drawn from ``mix``."""
    samples, views, height, width, _ = images.shape
    device = images.device
    rays = _rays(on_device(intrinsics.reshape(-1, 3, 3), device), height, width)
    distance = depth_z.reshape(-1, height, width) / rays[..., 2]
    quaternions, translations = geometry.split_pose_matrix(poses.reshape(-1, 4, 4))
    quaternions, translations = _relative(
        quaternions.reshape(samples, views, 4), translations.reshape(samples, views, 3)
    )
    mean, std = (on_device(np.array(x, np.float32), device)[:, None, None] for x in norm_constants("dinov2"))
    normalized = (images.permute(0, 1, 4, 2, 3) / 255.0 - mean) / std
    targets = Targets(
        rays.reshape(samples, views, height, width, 3),
        distance.reshape(samples, views, height, width),
        on_device(quaternions, device),
        on_device(translations, device),
    )
    flags, share = _draw_mix(samples, views, mix, rng)
    inputs = _map_inputs(rays, distance, flags, share, rng) | _pose_inputs(quaternions, translations, flags, device)
    return Batch(normalized, inputs, targets)


def _rays(intrinsics: Tensor, height: int, width: int) -> Tensor:
    """Compute ray directions as :func:`mapengine.runtime.geometry.rays_from_intrinsics`, (N, H, W, 3)."""
    columns, rows = (torch.arange(size, device=intrinsics.device) for size in (width, height))
    x = (columns - intrinsics[:, 0, 2, None]) / intrinsics[:, 0, 0, None]
    y = (rows - intrinsics[:, 1, 2, None]) / intrinsics[:, 1, 1, None]
    z = (x.square()[:, None] + y.square()[:, :, None] + 1).rsqrt()
    return torch.stack([z * x[:, None], z * y[:, :, None], z], -1)


def _relative(quaternions: Array, translations: Array) -> tuple[Array, Array]:
    """Move poses (B, V, 4) and (B, V, 3) into the frame of view 0."""
    rotation, translation = geometry.relative_pose(
        np.broadcast_to(quaternions[:, :1], quaternions.shape),
        np.broadcast_to(translations[:, :1], translations.shape),
        quaternions,
        translations,
    )
    return rotation.astype(np.float32), translation.astype(np.float32)


def _draw_mix(samples: int, views: int, mix: InputMix, rng: np.random.Generator) -> tuple[NDArray[np.bool_], Array]:
    """Draw flags (B, V, 5) in the order of ``MODALITIES``, and the share of depth that each sample (B,) keeps."""
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


def _map_inputs(
    rays: Tensor, distance: Tensor, flags: NDArray[np.bool_], share: Array, rng: np.random.Generator
) -> dict[str, Tensor]:
    """Return inputs with a value per pixel, and the flags of all."""
    device, views = rays.device, flags.shape[1]
    flat = on_device(flags.reshape(len(rays), -1).copy(), device)
    noise = torch.rand(
        distance.shape, device=device, generator=torch.Generator(device).manual_seed(int(rng.integers(2**62)))
    )
    kept = on_device(np.repeat(share, views), device)[:, None, None]
    given = distance * (flat[:, 1, None, None] & (noise < kept))
    count = (given > 0).sum((1, 2))
    # A view whose depth is all missing gives no depth.
    flat[:, 1] &= count > 0
    flat[:, 2] &= flat[:, 1]
    factor = (given.sum((1, 2)) / (count + geometry.EPSILON)).clamp(min=geometry.EPSILON)  # as geometry.normalize_depth
    return {
        "ray_directions": rays * flat[:, 0, None, None, None],
        "depth": torch.log1p(given / factor[:, None, None])[..., None],
        "depth_log_scale": torch.where(flat[:, 2], torch.log(factor + geometry.EPSILON), 0)[:, None],
        "modality_flags": flat.float(),
    }


def _pose_inputs(
    quaternions: Array, translations: Array, flags: NDArray[np.bool_], device: torch.device
) -> dict[str, Tensor]:
    """Return inputs with a few values per view."""
    samples, views, _ = flags.shape
    posed = flags[:, :, 3]
    moved = np.where(posed[..., None], translations, 0).transpose(1, 0, 2)  # (V, B, 3)
    directions, lengths = geometry.normalize_translations(moved.astype(np.float32))
    log_length = np.log(lengths + np.float32(geometry.EPSILON))
    inputs = {
        "rotation": (quaternions * posed[..., None]).reshape(-1, 4),
        "translation": directions.transpose(1, 0, 2).reshape(-1, 3),
        "translation_log_scale": np.where(flags[:, :, 4], log_length[:, None], 0).reshape(samples * views, 1),
    }
    return {name: on_device(value.astype(np.float32), device) for name, value in inputs.items()}
