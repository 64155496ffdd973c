"""Rendered scenes on disk: made once by several processes, in shards, so that an interrupted run goes on where it was.

A shard is one ``.npz`` of ``SHARD`` scenes with all their views. Depth is stored in float16 (relative error below
5e-4, less than the network can resolve), which halves what a training run keeps in memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mapengine.calibration.scenes import MAX_VIEWS, render_scene
from mapengine.runtime.files import atomic_write

SHARD = 50
"""Scenes per file."""


@dataclass(frozen=True)
class SceneArrays:
    """N scenes of V views: what :class:`mapengine.calibration.scenes.RenderedScene` holds, stacked.

    ``images`` (N, V, H, W, 3) uint8, ``depth_z`` (N, V, H, W) float16 metres with 0 for none, ``intrinsics``
    (N, V, 3, 3) and ``poses`` (N, V, 4, 4) float32.
    """

    images: NDArray[np.uint8]
    depth_z: NDArray[np.float16]
    intrinsics: NDArray[np.float32]
    poses: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.images)


def render_shard(path: Path, first: int, count: int, width: int, height: int) -> Path:
    """Render the scenes of the seeds ``first`` to ``first + count - 1`` into one file; an existing file stays."""
    if path.exists():
        return path
    scenes = [render_scene(seed, MAX_VIEWS, width, height) for seed in range(first, first + count)]
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            images=np.stack([scene.images for scene in scenes]),
            depth_z=np.stack([scene.depth_z for scene in scenes]).astype(np.float16),
            intrinsics=np.stack([scene.intrinsics for scene in scenes]),
            poses=np.stack([scene.poses for scene in scenes]),
        )
    return path


def prepare_scenes(
    folder: Path,
    count: int,
    width: int,
    height: int,
    first_seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Render what is missing of ``count`` scenes.

    Args:
        folder: gets one file per ``SHARD`` scenes, named by seed and size.
        count: scenes; rounded up to whole shards.
        width, height: pixels.
        first_seed: seed of the first scene.
        workers: processes; by default one per processor.
        progress: called with the shards that are there and those wanted.

    Returns:
        The files, in the order of the seeds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = -(-count // SHARD)
    starts = [first_seed + SHARD * index for index in range(shards)]
    paths = [folder / f"scenes-{width}x{height}-{start:07d}.npz" for start in starts]
    missing = [(path, start) for path, start in zip(paths, starts, strict=True) if not path.exists()]
    done = shards - len(missing)
    if missing:
        with ProcessPoolExecutor(workers or os.cpu_count(), mp_context=get_context("spawn")) as pool:
            jobs = [pool.submit(render_shard, path, start, SHARD, width, height) for path, start in missing]
            for job in jobs:
                job.result()
                done += 1
                if progress:
                    progress(done, shards)
    return paths


def load_scenes(paths: list[Path]) -> SceneArrays:
    """All shards in memory: about 80 KB per view of 140x112 pixels."""
    parts: dict[str, list[NDArray[np.generic]]] = {"images": [], "depth_z": [], "intrinsics": [], "poses": []}
    for path in paths:
        with np.load(path) as shard:
            for name, arrays in parts.items():
                arrays.append(shard[name])
    return SceneArrays(**{name: np.concatenate(arrays) for name, arrays in parts.items()})
