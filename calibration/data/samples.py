"""Sample views: one rendered scene that training never sees, to try an engine with and to test with.

They stand in for photographs: exact depth, intrinsics and poses, no file to download, the same bits on every machine.
"""

from __future__ import annotations

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mapengine.runtime.errors import InputError
from mapengine.runtime.writing.folders import atomic_folder

from ..scenes import MAX_VIEWS, RenderedScene, render_scene

SAMPLE_SEED = 1_000_046
"""A table top with things on it. Depth in every pixel from 0.4 to 3 m; room for eight views."""

SAMPLE_VIEWS = 4

SAMPLE_SIZE = (560, 448)
"""Width and height in pixels: four times the size that small networks are trained at."""


@dataclass(frozen=True, eq=False)
class SampleView:
    """One view of a rendered scene.

    Attributes:
        image: (H, W, 3) uint8.
        depth_z: (H, W) float32, z in the camera in metres, 0 where there is none.
        intrinsics: (3, 3) float32, pixel centres at integers.
        pose: (4, 4) float32, camera-to-world.
    """

    image: NDArray[np.uint8]
    depth_z: NDArray[np.float32]
    intrinsics: NDArray[np.float32]
    pose: NDArray[np.float32]


def sample_scene(
    count: int = SAMPLE_VIEWS, width: int = SAMPLE_SIZE[0], height: int = SAMPLE_SIZE[1], seed: int = SAMPLE_SEED
) -> RenderedScene:
    """Render the scene of the samples; errors as :func:`mapengine.calibration.scenes.render_scene`."""
    return render_scene(seed, count, width, height)


def sample_views(
    count: int = SAMPLE_VIEWS, width: int = SAMPLE_SIZE[0], height: int = SAMPLE_SIZE[1], seed: int = SAMPLE_SEED
) -> list[SampleView]:
    """Return the views of :func:`sample_scene` one by one; any number of them.

    A scene has eight different views: beyond the eighth they come again from the first one on.

    Raises:
        InputError: ``count`` below 1, or a size that cannot be rendered.
    """
    if count < 1:
        raise InputError(f"sample views: the number of views must be at least 1, not {count}")
    scene = _kept_scene(min(count, MAX_VIEWS), width, height, seed)
    different = [
        SampleView(*(part.copy() for part in parts))
        for parts in zip(scene.images, scene.depth_z, scene.intrinsics, scene.poses, strict=True)
    ]
    return [different[index % MAX_VIEWS] for index in range(count)]


@functools.lru_cache(maxsize=8)
def _kept_scene(count: int, width: int, height: int, seed: int) -> RenderedScene:
    """Return a scene that the cases of a build, and the next build, ask for again; nobody else changes it."""
    return sample_scene(count, width, height, seed)


def sample_names(count: int) -> list[str]:
    """Return what :func:`write_samples` writes into its folder itself."""
    return ["views.json", "depth", *(f"sample_{index}.png" for index in range(count))]


def write_samples(
    folder: str | os.PathLike[str],
    count: int = SAMPLE_VIEWS,
    width: int = SAMPLE_SIZE[0],
    height: int = SAMPLE_SIZE[1],
    seed: int = SAMPLE_SEED,
) -> list[Path]:
    """Write ``sample_0.png``, ``depth/sample_0.png`` (16 bit, millimetres, 0: none), ... and ``views.json``.

    The depth maps have a folder of their own, so that ``folder`` itself is a folder of photographs.

    Returns:
        The paths of the images. ``views.json`` names image, intrinsics, depth and pose of each view in the form that
        :func:`mapengine.runtime.inputs.formats.view_lists.load_view_list` reads.

    Raises:
        InputError: as :func:`mapengine.calibration.scenes.render_scene`.
        OutputError: the folder could not be written.
    """
    entries = []
    with atomic_folder(folder, "samples", sample_names(count)) as temporary:
        scene = sample_scene(count, width, height, seed)
        (temporary / "depth").mkdir()
        for index in range(count):
            name = f"sample_{index}"
            Image.fromarray(scene.images[index]).save(temporary / f"{name}.png")
            millimetres = np.rint(scene.depth_z[index] * 1000.0).astype(np.uint16)
            Image.fromarray(millimetres).save(temporary / "depth" / f"{name}.png")
            entries.append(
                {
                    "image": f"{name}.png",
                    "intrinsics": [[round(float(x), 6) for x in row] for row in scene.intrinsics[index]],
                    "depth": f"depth/{name}.png",
                    "pose": [[round(float(x), 8) for x in row] for row in scene.poses[index]],
                }
            )
        (temporary / "views.json").write_text(json.dumps({"views": entries}, indent=1) + "\n", encoding="utf-8")
    return [Path(folder) / str(entry["image"]) for entry in entries]
