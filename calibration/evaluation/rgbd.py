"""Real views with measured depth and poses as scenes to evaluate on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapengine.runtime.errors import InputError
from mapengine.runtime.inputs.formats.image_files import IMAGE_FILES
from mapengine.runtime.inputs.formats.seven_scenes import LAYOUT
from mapengine.runtime.inputs.formats.table import find_format
from mapengine.runtime.inputs.preprocess import preprocess_views
from mapengine.runtime.inputs.sources import open_views
from mapengine.runtime.inputs.stored_view import StoredView

from .evaluate import DEFAULT_SIZE, check_size

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class RgbdScene:
    """Consecutive views of a recording; see :class:`.truth.EvaluationScene`.

    ``mask`` is None: where a depth camera measured nothing there may still be a surface.
    """

    images: NDArray[np.uint8]
    depth_z: NDArray[np.float32]
    intrinsics: NDArray[np.float32]
    poses: NDArray[np.float64]
    seed: int
    mask: None = None


def load_rgbd(
    path: str | os.PathLike[str],
    size: tuple[int, int] = DEFAULT_SIZE,
    views_per_scene: int = 8,
    intrinsics: Any = None,
) -> list[RgbdScene]:
    """Read RGB-D views and bring them to one size as :func:`mapengine.runtime.preprocess_inputs` does.

    Args:
        path: what :func:`mapengine.runtime.inputs.sources.open_views` reads with intrinsics, depth and pose of every
            view: a recording, or a view list.
        size: width and height of the result, multiples of 14.
        views_per_scene: the views are cut into scenes of so many, in their order; the last scene may have fewer.
        intrinsics: of all images, for a recording without.

    Raises:
        InputError: no such folder, no views in it, or a view that lacks something; names the file or the view.
        ImageSizeError: a size that is no multiple of 14.
        ImageReadError: an image or a depth map is missing or cannot be read.
    """
    check_size(size)
    path = Path(path)
    listed = rgbd_views(path, intrinsics)
    return [
        read_scene(listed[start : start + views_per_scene], size, seed=start)
        for start in range(0, len(listed), views_per_scene)
    ]


def read_scene(listed: Sequence[StoredView], size: tuple[int, int], seed: int = 0) -> RgbdScene:
    """Read what :func:`rgbd_views` lists, and bring it to one size."""
    views = preprocess_views(listed, size, "identity")
    # Normalised by nothing, the image is exactly its 256 levels over 255.
    images = np.stack([np.rint(view["img"][0] * 255).astype(np.uint8).transpose(1, 2, 0) for view in views])
    depth, cameras = (np.concatenate([view[key] for view in views]) for key in ("depth_z", "intrinsics"))
    poses = np.concatenate([view["camera_poses"] for view in views])
    return RgbdScene(images, depth, cameras, poses, seed)


def rgbd_views(path: Path, intrinsics: Any = None) -> list[StoredView]:
    """Return the views of a recording, not yet read; arguments and errors as :func:`load_rgbd`."""
    if not path.exists():
        raise InputError(f"{path}: there is no such folder of RGB-D views; check the path")
    if find_format(path) is IMAGE_FILES:
        raise InputError(
            f"{path}: holds no RGB-D views; give a folder with views.json, with {LAYOUT}, or with rgb.txt, depth.txt "
            "and groundtruth.txt"
        )
    views = open_views(path, intrinsics)
    for index, view in enumerate(views):
        for key in ("intrinsics", "depth", "pose"):
            if getattr(view.files, key) is None:
                raise InputError(f"{path}: view {index}: has no {key}, which an evaluation needs; add it")
        if view.files.metric is False:
            raise InputError(f"{path}: view {index}: is not metric; an evaluation needs metres")
        if view.files.lens is not None and view.files.lens.fisheye:
            raise InputError(f"{path}: view {index}: has a fisheye lens; an evaluation needs a pinhole camera")
    return views
