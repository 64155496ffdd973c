"""What people hold (files, folders, recordings, arrays, Pillow images) as views that are read when they are needed."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import InputError
from ..system.threads import in_order
from .formats.table import find_views
from .formats.values import camera_matrix, is_one_camera, pose_matrix, shape_of
from .formats.view_files import ReadOptions, ViewFiles
from .formats.view_lists import NO_CAMERA
from .images import image_suffixes
from .raw_view import RawView
from .stored_view import StoredView

_DEFAULTS = ReadOptions()


def open_views(
    images: Any,
    intrinsics: Any = None,
    poses: Any = None,
    depths: Any = None,
    metric: bool | Sequence[bool | None] | None = None,
    depth_scale: float | Sequence[float | None] | None = None,
    masks: Any = None,
    options: ReadOptions = _DEFAULTS,
) -> list[StoredView]:
    """Find the views of one call, without reading their images. V is the number of views.

    Args:
        images: whatever :mod:`.formats.table` has a format for (a folder, a recording, a video, a pattern, a view
            list), a file, an image, or a sequence of these: paths, Pillow images (EXIF orientation is applied to both),
            arrays (H, W, 3) of uint8 or of floats in 0..1 or 0..255.
        intrinsics: one camera for all views, or one (or None) per view, as :func:`.formats.values.camera_matrix` takes
            it. Pixels of the upright image, pixel centres at integers. What is given here and below comes in the place
            of what a recording brings.
        poses: one (or None) per view: camera-to-world in OpenCV axes, as :func:`.formats.values.pose_matrix` takes it.
        depths: one (or None) per view: (H, W) float metres with 0 where there is none, or a file for ``read_depth``.
            A view with depth needs intrinsics. A map that is smaller than the image is enlarged.
        metric: whether the depth and poses are in metres, for all or per view; None: upstream's default, yes, but for
            formats that have no scale.
        depth_scale: metres per stored unit of depth files, for all or per view; None: see ``read_depth``.
        masks: one (or None) per view, a file or (H, W), white or True where the view counts; or a folder with an image
            of the name of each.
        options: which views are taken, and what of them.

    Returns:
        V views, with float32 intrinsics and depth and float64 poses; the name is that of the file, or ``view 0``.

    Raises:
        InputError: numbers of entries that differ, a wrong shape, values that cannot be right; names view and key.
        ImageReadError: a file that cannot be found.
    """
    intrinsics = options.intrinsics if intrinsics is None else intrinsics
    masks = options.masks if masks is None else masks
    shared = intrinsics if is_one_camera(intrinsics) else None
    views = find_views(_sources(images), replace(options, intrinsics=intrinsics, masks=masks))
    count, one = len(views), len(views) == 1
    cameras = [shared] * count if shared is not None else _per_view(intrinsics, count, "intrinsics")
    pose_list = _per_view(poses, count, "poses", ((4, 4), (3, 4)) if one else (), shared_path=one)
    depth_list = _per_view(depths, count, "depths", shared_ndim=2 if one else None, shared_path=one)
    mask_list = _masks(masks, views)
    metric_list = _flags(metric, count)
    scales = _per_view(depth_scale, count, "depth_scale", shared_shapes=((),))
    result = []
    for index, view in enumerate(views):
        where = f"view {index}"
        changes: dict[str, Any] = {}
        if metric_list[index] is not None:
            changes["metric"] = metric_list[index]
        if cameras[index] is not None:
            matrix = camera_matrix(cameras[index], f"{where}: intrinsics")
            changes |= {"intrinsics": matrix, "lens": None, "camera_size": None}
        if depth_list[index] is not None:
            changes |= {"depth": depth_list[index], "depth_scale": None, "points": None}
        if scales[index] is not None:
            changes["depth_scale"] = scales[index]
        if pose_list[index] is not None:
            changes["pose"] = pose_matrix(pose_list[index], f"{where}: pose")
        if mask_list[index] is not None:
            changes["mask"] = mask_list[index]
        view = _given(replace(view, **changes), options)
        if view.depth is not None and view.intrinsics is None:
            raise InputError(f"{where}: {NO_CAMERA}; give its intrinsics or leave the depth out")
        name = view.name or (Path(view.image).name if isinstance(view.image, str | os.PathLike) else where)
        result.append(StoredView(view, where, name, options.depth_resize))
    return result


def read_views(images: Any, *known: Any, **more: Any) -> list[RawView]:
    """Read the views of one call at their full size; arguments and errors as :func:`open_views`.

    No array of the caller is kept, who may fill it anew before the views are used.

    Raises:
        ImageReadError: an image or depth file that cannot be read.
    """

    def read(view: StoredView) -> RawView:
        result = view.read()
        return replace(result, image=result.image.copy()) if isinstance(result.image, np.ndarray) else result

    return list(in_order(read, open_views(images, *known, **more)))


def _given(view: ViewFiles, options: ReadOptions) -> ViewFiles:
    """A view with what the network gets of it. Intrinsics stay where depth needs them: infer ignores them then."""
    if not options.gives("depth"):
        view = replace(view, depth=None, depth_scale=None, points=None)
    if not options.gives("poses"):
        view = replace(view, pose=None)
    if not options.gives("intrinsics") and view.depth is None and view.points is None:
        # The lens stays: its image is undistorted all the same, unless it is a fisheye's, which keeps its image.
        keeps = view.lens is not None and not view.lens.fisheye
        view = view if keeps else replace(view, intrinsics=None, lens=None)
    return view


def _masks(masks: Any, views: Sequence[ViewFiles]) -> list[Any]:
    """One mask (or None) per view, of a list or of a folder."""
    if not isinstance(masks, str | os.PathLike) or not Path(masks).is_dir():
        return _per_view(masks, len(views), "masks", shared_ndim=2 if len(views) == 1 else None, shared_path=True)
    folder = Path(masks)
    found = [_mask_in(folder, view) for view in views]
    if not any(found):
        raise InputError(
            f"{folder}: holds no mask for any view; name masks as their images, such as {_mask_name(views[0])}"
        )
    return found


def _mask_name(view: ViewFiles) -> Path:
    name = view.name or (str(view.image) if isinstance(view.image, str | os.PathLike) else "")
    return Path(name if name and not Path(name).is_absolute() else Path(name).name)


def _mask_in(folder: Path, view: ViewFiles) -> Path | None:
    """The mask of a view's name, with the ending of its image, another one, or both (as COLMAP has it)."""
    name = _mask_name(view)
    for stem in (name, Path(name.name)):
        for file in (folder / stem, *(folder / f"{stem}{end}" for end in (".png", ".jpg"))):
            if file.is_file():
                return file
        near = folder / stem.parent
        others = near.glob(f"{glob.escape(stem.stem)}.*") if near.is_dir() else ()
        for file in sorted(others):
            if file.suffix.lower() in image_suffixes():
                return file
    return None


def _sources(images: Any) -> list[Any]:
    """What is given, one by one."""
    if isinstance(images, str | os.PathLike | Image.Image) or getattr(images, "ndim", None) == 3:
        return [images]
    if getattr(images, "ndim", 4) != 4:
        raise InputError(f"images has shape {tuple(images.shape)}; give (H, W, 3), (V, H, W, 3) or a list of images")
    # A set has no first image, and the first is the reference view.
    if isinstance(images, Mapping | bytes | Set) or not isinstance(images, Iterable):
        raise InputError(f"images is a {type(images).__name__}; give paths, Pillow images, arrays or a folder")
    sources = list(images)
    if not sources:
        raise InputError("there are no images; give at least one")
    return sources


def _per_view(
    values: Any,
    count: int,
    name: str,
    shared_shapes: tuple[tuple[int, ...], ...] = (),
    shared_ndim: int | None = None,
    shared_path: bool = False,
) -> list[Any]:
    """One entry per view; a single value of a shared shape (or one file) stands for all views."""
    if values is None:
        return [None] * count
    if isinstance(values, str | os.PathLike):
        if shared_path:
            return [values] * count
        raise InputError(f"{name} is a {type(values).__name__}; give a list with one entry (or None) per view")
    shape = shape_of(values)
    if shape is not None and (shape in shared_shapes or len(shape) == shared_ndim):
        return [values] * count
    if isinstance(values, Mapping) or not isinstance(values, Iterable) or shape == ():
        raise InputError(f"{name} is a {type(values).__name__}; give a list with one entry (or None) per view")
    entries = list(values)
    if len(entries) != count:
        raise InputError(f"{name} has {len(entries)} entries for {count} images; give one (or None) per view")
    return entries


def _flags(metric: Any, count: int) -> list[bool | None]:
    entries: list[Any] = [metric] * count
    if not isinstance(metric, bool | np.bool_):
        entries = _per_view(metric, count, "metric")
    for index, flag in enumerate(entries):
        if flag is not None and not isinstance(flag, bool | np.bool_):
            raise InputError(f"view {index}: metric is {flag!r}; give True, False or None")
    return entries
