"""Rendered scenes on disk: made once by several processes, in shards, so that an interrupted run goes on where it was.

A shard is one ``.npz`` of ``SHARD`` scenes with all their views. Depth is stored in float16 (relative error below
5e-4, less than the network can resolve), which halves what a training run keeps in memory.

Training may begin while scenes are still rendered: :class:`SceneStore` grows, and batches are drawn from what it has.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from concurrent.futures import as_completed
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mapengine.calibration.scenes import MAX_VIEWS, render_scene
from mapengine.runtime.system.children import WorkerPool
from mapengine.runtime.system.machine import usable_processors
from mapengine.runtime.writing.files import write_npz

SHARD = 50
"""Scenes per file."""


def render_shard(path: Path, first: int, count: int, width: int, height: int) -> Path:
    """Render the scenes of the seeds ``first`` to ``first + count - 1`` into one file; an existing file stays."""
    if path.exists():
        return path
    scenes = [render_scene(seed, MAX_VIEWS, width, height) for seed in range(first, first + count)]
    arrays = {
        "images": np.stack([scene.images for scene in scenes]),
        "depth_z": np.stack([scene.depth_z for scene in scenes]).astype(np.float16),
        "intrinsics": np.stack([scene.intrinsics for scene in scenes]),
        "poses": np.stack([scene.poses for scene in scenes]),
    }
    write_npz(path, "rendered scenes", arrays)
    return path


class SceneStore:
    """Scenes in the memory of the device that trains; appended to while others read.

    Attributes:
        images: (N, V, H, W, 3) uint8, on the device.
        depth_z: (N, V, H, W) float16 metres with 0 for none, on the device.
        intrinsics: (N, V, 3, 3) float32.
        poses: (N, V, 4, 4) float32, camera to world.
    """

    def __init__(self, capacity: int, width: int, height: int, device: torch.device | str = "cpu") -> None:
        """Make room for ``capacity`` scenes of ``MAX_VIEWS`` views: about 80 KB per view of 140x112 pixels."""
        views, self._device = MAX_VIEWS, torch.device(device)
        self.images = torch.empty((capacity, views, height, width, 3), dtype=torch.uint8, device=device)
        self.depth_z = torch.empty((capacity, views, height, width), dtype=torch.float16, device=device)
        self.intrinsics: NDArray[np.float32] = np.zeros((capacity, views, 3, 3), np.float32)
        self.poses: NDArray[np.float32] = np.zeros((capacity, views, 4, 4), np.float32)
        self._filled = 0

    def __len__(self) -> int:
        """Return how many scenes are there."""
        return self._filled

    def append(self, path: Path) -> None:
        """Read a shard; what does not fit is left out. One thread may append while others read."""
        with np.load(path) as shard:
            start, stop = self._filled, min(self._filled + len(shard["poses"]), len(self.poses))
            count = stop - start
            # A stream of its own, so that the copy does not wait for the training steps that are queued.
            stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
            with torch.cuda.stream(stream) if stream else nullcontext():
                self.images[start:stop].copy_(torch.from_numpy(shard["images"][:count]))
                self.depth_z[start:stop].copy_(torch.from_numpy(shard["depth_z"][:count]))
            if stream:
                stream.synchronize()
            self.intrinsics[start:stop] = shard["intrinsics"][:count]
            self.poses[start:stop] = shard["poses"][:count]
        self._filled = stop  # last, for those who read meanwhile


class SceneFeed:
    """Appends files to a store from a thread, while the context is open."""

    def __init__(self, store: SceneStore, files: Generator[Path], first_scenes: int) -> None:
        """Start rendering, and return once ``first_scenes`` are there."""
        self._store, self._files = store, files
        self._closed = threading.Event()
        self._error: Exception | None = None
        while len(store) < first_scenes:
            store.append(next(files))
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        """Stop rendering; raises what went wrong in the thread."""
        self._closed.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            for path in self._files:
                self._store.append(path)
                if self._closed.is_set():
                    break
        except Exception as error:
            self._error = error
        finally:
            self._files.close()  # the processes that render end, too


def render_scenes(
    folder: Path, count: int, width: int, height: int, first_seed: int = 0, workers: int | None = None
) -> Generator[Path]:
    """Yield the files of ``count`` scenes, each as soon as it is there; those that are missing are rendered.

    Args:
        folder: gets one file per ``SHARD`` scenes, named by seed and size.
        count: scenes; rounded up to whole shards.
        width, height: pixels.
        first_seed: seed of the first scene.
        workers: processes; by default one per processor.

    Yields:
        The files that were there in the order of the seeds, then the others in the order in which they are rendered.
    """
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(first_seed, first_seed + count, SHARD)
    files = {start: folder / f"scenes-{width}x{height}-{start:07d}.npz" for start in starts}
    missing = {start: path for start, path in files.items() if not path.exists()}
    yield from (path for start, path in files.items() if start not in missing)
    if missing:
        with WorkerPool(workers or usable_processors()) as pool:
            jobs = [pool.submit(render_shard, path, start, SHARD, width, height) for start, path in missing.items()]
            yield from (job.result() for job in as_completed(jobs))
