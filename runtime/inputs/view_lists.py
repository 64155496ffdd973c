"""What people hold (files, folders, arrays, a JSON list) as the views that ``preprocess_inputs`` takes."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import ImageReadError, InputError
from ..system.threads import in_order
from ..typed_json.codec import Fail, decode
from ..typed_json.fields import Text
from ..typed_json.text import Document, parse_json
from .images import IMAGE_EXTENSIONS
from .values import camera_matrix, check_camera, number_matrix, read_view_depth, read_view_image

Array = NDArray[Any]

_NO_CAMERA = "has a depth map but no intrinsics"
_LARGEST_LIST = 64 * 1024 * 1024
_FileName = Annotated[str, Text("the path of a file", r"[^\0]+", printable=False)]
_Numbers = tuple[Any, ...]


@dataclass(frozen=True)
class _View:
    """One view as its JSON object has it; the names are those of :class:`ViewFiles`."""

    image: _FileName
    intrinsics: _FileName | _Numbers | None = None
    depth: _FileName | None = None
    depth_scale: float | None = None
    pose: _FileName | _Numbers | None = None
    metric: bool | None = None

    def check_fields(self, fail: Fail) -> None:
        """Refuse parts without what they need."""
        if self.depth_scale is not None and self.depth is None:
            fail("", "has a depth_scale but no depth")
        if self.depth is not None and self.intrinsics is None:
            fail("", f"{_NO_CAMERA}, which it needs")


@dataclass(frozen=True)
class ViewFiles:
    """One view of a view list.

    Attributes:
        image: path of the image.
        intrinsics: (3, 3) float32 pixels of the upright image, pixel centres at integers, or None.
        depth: path of the depth map, or None.
        depth_scale: metres per stored unit of the depth map; None: millimetres for integers, metres for floats.
        pose: (4, 4) float64 camera-to-world in OpenCV axes, or None.
        metric: whether depth and pose are in metres; None: yes.
    """

    image: Path
    intrinsics: Array | None = None
    depth: Path | None = None
    depth_scale: float | None = None
    pose: Array | None = None
    metric: bool | None = None


def load_view_list(path: str | os.PathLike[str]) -> list[ViewFiles]:
    """Read a JSON list of views, or an object ``{"views": [...]}``.

    Each view is an object with ``image`` and, if known, ``intrinsics`` (3x3 list, ``[fx, fy, cx, cy]``, or a text file
    with 3x3 numbers), ``depth`` (file) and ``depth_scale``, ``pose`` (4x4 list or a text file, camera-to-world) and
    ``metric`` (bool). Paths are relative to the JSON file. A key with null counts as absent. The files of images and
    depth must exist; they are read later, by :func:`view_list_inputs`.

    Raises:
        InputError: not such a list; the message names view and key.
        ImageReadError: an image or depth file is missing.
    """
    path = Path(path)
    views = _read_views(path)
    return [_view_files(view, path, f"{path}: view {index}") for index, view in enumerate(views)]


def view_list_inputs(views: Sequence[ViewFiles]) -> tuple[list[dict[str, Any]], list[str]]:
    """Read the files of a view list; the same result and errors as :func:`raw_views`."""
    return raw_views(
        [view.image for view in views],
        intrinsics=[view.intrinsics for view in views],
        poses=[view.pose for view in views],
        depths=[view.depth for view in views],
        metric=[view.metric for view in views],
        depth_scale=[view.depth_scale for view in views],
    )


def raw_views(
    images: Any,
    intrinsics: Any = None,
    poses: Any = None,
    depths: Any = None,
    metric: bool | Sequence[bool | None] | None = None,
    depth_scale: float | Sequence[float | None] | None = None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Collect the views for ``preprocess_inputs``. V is the number of images.

    Args:
        images: a folder (its images, sorted by name), a file, an image, or a sequence of these: paths, Pillow images
            (EXIF orientation is applied to both), arrays (H, W, 3) of uint8 or of floats in 0..1 or 0..255.
        intrinsics: one camera for all views, or one (or None) per view: (3, 3), ``[fx, fy, cx, cy]``, or a text file.
            Pixels of the upright image, pixel centres at integers.
        poses: one (or None) per view: (4, 4) camera-to-world in OpenCV axes, or a text file.
        depths: one (or None) per view: (H, W) float metres with 0 where there is none, or a file for ``read_depth``.
            A view with depth needs intrinsics.
        metric: whether the depth and poses are in metres, for all or per view; None: upstream's default, yes.
        depth_scale: metres per stored unit of depth files, for all or per view; None: see ``read_depth``.

    Returns:
        Per view a dict with ``img`` (Pillow RGB or uint8 array) and where given ``intrinsics`` (3, 3) float32,
        ``depth_z`` (H, W) float32, ``camera_poses`` (4, 4) float64, ``is_metric_scale`` (1,) bool; and the names.

    Raises:
        InputError: numbers of entries that differ, a wrong shape, values that cannot be right; names view and key.
        ImageReadError: an image or depth file that cannot be read.
    """
    sources = _sources(images)
    count = len(sources)
    cameras = _per_view(intrinsics, count, "intrinsics", shared_shapes=((3, 3), (4,)), shared_path=True)
    pose_list = _per_view(poses, count, "poses", shared_shapes=((4, 4),) if count == 1 else (), shared_path=count == 1)
    depth_list = _per_view(depths, count, "depths", shared_ndim=2 if count == 1 else None, shared_path=count == 1)
    metric_list = _flags(metric, count)
    scales = _per_view(depth_scale, count, "depth_scale", shared_shapes=((),))
    views: list[dict[str, Any]] = []
    names: list[str] = []
    read = in_order(lambda index: read_view_image(sources[index], f"view {index}: image"), range(count))
    for index, (source, (image, size, stored_sideways)) in enumerate(zip(sources, read, strict=True)):
        where = f"view {index}"
        view: dict[str, Any] = {"img": image}
        if cameras[index] is not None:
            view["intrinsics"] = camera_matrix(cameras[index], f"{where}: intrinsics")
            check_camera(view["intrinsics"], size, stored_sideways, f"{where}: intrinsics")
        if depth_list[index] is not None:
            if cameras[index] is None:
                raise InputError(f"{where}: {_NO_CAMERA}; give its intrinsics or leave the depth out")
            view["depth_z"] = read_view_depth(
                depth_list[index], scales[index], size, stored_sideways, f"{where}: depth"
            )
        if pose_list[index] is not None:
            view["camera_poses"] = number_matrix(pose_list[index], (4, 4), f"{where}: pose", dtype=np.float64)
        flag = metric_list[index]
        if flag is not None:
            view["is_metric_scale"] = np.array([flag], dtype=bool)
        views.append(view)
        names.append(Path(source).name if isinstance(source, str | os.PathLike) else f"view {index}")
    return views, names


def _read_views(path: Path) -> list[_View]:
    document = Document(str(path), "correct the file", InputError, root="", defaults=True)
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST_LIST + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such view list; check the path") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read as a view list: {error.strerror or error}") from error
    if len(text) > _LARGEST_LIST:
        raise InputError(f"{path}: is larger than any view list; pass a JSON file")
    entries = parse_json(text.removeprefix(codecs.BOM_UTF8), document)
    if isinstance(entries, dict):
        if set(entries) != {"views"}:
            raise InputError(f'{path}: must be a list of views or an object {{"views": [...]}} without other keys')
        entries = entries["views"]
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path}: holds no list of views; give at least one object with an image")
    return [
        decode(_View, entry, replace(document, name=f"{path}: view {index}")) for index, entry in enumerate(entries)
    ]


def _view_files(view: _View, path: Path, where: str) -> ViewFiles:
    def file(key: str, name: str, error: type[InputError]) -> Path:
        found = path.parent / name
        try:
            if found.is_file():
                return found
        except OSError:  # such as a name that is too long
            pass
        raise error(f"{where}: {key}: there is no file {found}; paths are relative to the view list")

    def values(key: str, given: Any) -> Any:
        return file(key, given, InputError) if isinstance(given, str) else given

    intrinsics = pose = None
    if view.intrinsics is not None:
        intrinsics = camera_matrix(values("intrinsics", view.intrinsics), f"{where}: intrinsics")
    if view.pose is not None:
        pose = number_matrix(values("pose", view.pose), (4, 4), f"{where}: pose", dtype=np.float64)
    return ViewFiles(
        image=file("image", view.image, ImageReadError),
        intrinsics=intrinsics,
        depth=None if view.depth is None else file("depth", view.depth, ImageReadError),
        depth_scale=view.depth_scale,
        pose=pose,
        metric=view.metric,
    )


def _sources(images: Any) -> list[Any]:
    """The images one by one; folders are listed."""
    if isinstance(images, str | os.PathLike):
        folder = Path(images)
        if not folder.is_dir():
            return [images]
        try:
            files = sorted(f for f in folder.iterdir() if f.suffix.lower() in IMAGE_EXTENSIONS and f.is_file())
        except OSError as error:
            raise InputError(f"{folder}: cannot be listed as a folder of images: {error.strerror}") from error
        if not files:
            raise InputError(f"{folder}: holds no images ({' '.join(IMAGE_EXTENSIONS)}); check the folder")
        return list(files)
    if isinstance(images, Image.Image) or getattr(images, "ndim", None) == 3:
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
    shape = _shape(values)
    if shape is not None and (shape in shared_shapes or len(shape) == shared_ndim):
        return [values] * count
    if isinstance(values, Mapping) or not isinstance(values, Iterable) or shape == ():
        raise InputError(f"{name} is a {type(values).__name__}; give a list with one entry (or None) per view")
    entries = list(values)
    if len(entries) != count:
        raise InputError(f"{name} has {len(entries)} entries for {count} images; give one (or None) per view")
    return entries


def _shape(values: Any) -> tuple[int, ...] | None:
    """Shape of an array or of nested lists of numbers; None for anything else (such as a list with None)."""
    if hasattr(values, "shape"):
        return tuple(values.shape)
    try:
        array = np.asarray(values)
    except (ValueError, TypeError):
        return None
    return array.shape if array.dtype.kind in "fiu" else None


def _flags(metric: Any, count: int) -> list[bool | None]:
    entries: list[Any] = [metric] * count
    if not isinstance(metric, bool | np.bool_):
        entries = _per_view(metric, count, "metric")
    for index, flag in enumerate(entries):
        if flag is not None and not isinstance(flag, bool | np.bool_):
            raise InputError(f"view {index}: metric is {flag!r}; give True, False or None")
    return entries
