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
from mapengine.runtime.inputs.preprocess import preprocess_views
from mapengine.runtime.inputs.view_lists import ViewFiles, load_view_list, read_listed_views

from ..data.recordings import VIEW_LIST, recorded_views
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
    path: str | os.PathLike[str], size: tuple[int, int] = DEFAULT_SIZE, views_per_scene: int = 8
) -> list[RgbdScene]:
    """Read RGB-D views and bring them to one size as :func:`mapengine.runtime.preprocess_inputs` does.

    Args:
        path: a folder with ``views.json``, or that file, as
            :func:`mapengine.runtime.inputs.view_lists.load_view_list` reads it,
            every view with intrinsics, depth and pose; or a folder laid out like 7-Scenes, as
            :func:`mapengine.calibration.data.recordings.recorded_views` reads it.
        size: width and height of the result, multiples of 14.
        views_per_scene: the views are cut into scenes of so many, in their order; the last scene may have fewer.

    Raises:
        InputError: no such folder, no views in it, or a view that lacks something; names the file or the view.
        ImageSizeError: a size that is no multiple of 14.
        ImageReadError: an image or a depth map is missing or cannot be read.
    """
    check_size(size)
    path = Path(path)
    listed = _listed_views(path)
    scenes = []
    for start in range(0, len(listed), views_per_scene):
        views = preprocess_views(read_listed_views(listed[start : start + views_per_scene]), size, "identity")
        # Normalised by nothing, the image is exactly its 256 levels over 255.
        images = np.stack([np.rint(view["img"][0] * 255).astype(np.uint8).transpose(1, 2, 0) for view in views])
        depth, intrinsics = (np.concatenate([view[key] for view in views]) for key in ("depth_z", "intrinsics"))
        poses = np.concatenate([view["camera_poses"] for view in views])
        scenes.append(RgbdScene(images, depth, intrinsics, poses, seed=start))
    return scenes


def _listed_views(path: Path) -> Sequence[ViewFiles]:
    view_list = path / VIEW_LIST if path.is_dir() else path
    if path.is_dir() and not view_list.is_file():
        return recorded_views(path)
    if not path.exists():
        raise InputError(f"{path}: there is no such folder of RGB-D views; check the path")
    views = load_view_list(view_list)
    for index, view in enumerate(views):
        for key in ("intrinsics", "depth", "pose"):
            if getattr(view, key) is None:
                raise InputError(f"{view_list}: view {index}: has no {key}, which an evaluation needs; add it")
        if view.metric is False:
            raise InputError(f"{view_list}: view {index}: is not metric; an evaluation needs metres")
    return views
