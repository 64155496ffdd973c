"""Images, depth, intrinsics and poses to the views that ``infer`` takes, as upstream's image loading does it.

Source: MapAnything inference, ``load_images`` and ``preprocess_inputs``. Every view is resized so that it covers the
target size and then cropped around its centre; intrinsics and depth follow. Results are NumPy arrays.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import ImageReadError, InputError, warn
from ..geometry import intrinsics_from_rays
from ..system.reading import PathLike, shown_path
from ..system.threads import in_order
from .checks import (
    as_array,
    camera_intrinsics,
    camera_pose,
    check_one_calibration,
    depth_map,
    finite_array,
    finite_range,
    is_tensor,
    unit_rays,
)
from .encoded import snapshot
from .images import IMAGE_EXTENSIONS, image_size, read_image, to_rgb
from .normalization import norm_constants, normalize_image
from .raw_view import AnyView, RawView
from .resizing import resize_and_crop
from .resolutions import Size, positive_int, target_size

Array = npt.NDArray[Any]
Views = list[dict[str, Any]]
Result = TypeVar("Result")

_FAR_APART = 10.0  # times the depth, to the nearest other camera: those that look at one scene are nearer
_PINHOLE = 1.0  # pixels that rays may be off the pinhole camera that fits them best


def load_images(
    folder_or_list: PathLike | Sequence[PathLike],
    resize_mode: str = "fixed_mapping",
    size: int | tuple[int, int] | None = None,
    norm_type: str = "dinov2",
    patch_size: int = 14,
    resolution_set: int = 518,
    verbose: bool = False,
    stride: int = 1,
    on_error: str = "skip",
) -> Views:
    """Read images from a folder or a list of files and bring them to one size.

    A folder is listed by name; every ``stride``-th entry is taken and those that end in ``IMAGE_EXTENSIONS`` are read.
    Files of a list are read whatever their ending. :func:`target_size` describes the sizes. At most a few decoded
    photos are in memory at a time.

    Args:
        on_error: ``"skip"`` leaves an unreadable file out with a warning that names it; ``"raise"`` raises.

    Returns:
        One dict per image: ``img`` (1, 3, H, W) float32 normalised, ``true_shape`` (1, 2) int32 [[H, W]], ``idx`` int,
        ``instance`` str, ``data_norm_type`` [norm_type].

    Raises:
        InputError: an unknown option, no such folder, or no readable image.
        ImageReadError: an unreadable file with ``on_error="raise"``.
    """
    if on_error not in ("skip", "raise"):
        raise InputError(f'on_error must be "skip" or "raise", got {on_error!r}')
    norm_constants(norm_type)
    paths = _image_paths(folder_or_list, positive_int(stride, "stride"))
    choose = partial(
        target_size, resize_mode=resize_mode, size=size, patch_size=patch_size, resolution_set=resolution_set
    )

    def keep(results: Iterable[Any]) -> list[Any]:
        """Drop the paths whose result is an error and return the other results."""
        kept = []
        for path, result in zip(paths, results, strict=True):
            if not isinstance(result, ImageReadError):
                kept.append((path, result))
            elif on_error == "raise":
                raise result
            else:
                warn(f"left out {result}")
        if not kept:
            raise InputError(f"{_origin(folder_or_list)}: none of the {len(paths)} images could be read")
        paths[:] = [path for path, _ in kept]
        return [result for _, result in kept]

    # The size comes from the headers, so that photos need not all be in memory. A file that turns out to be unreadable
    # only when it is decoded must not count, so its loss may change the size; then the others are read again.
    target = choose([width / height for width, height in keep([_attempt(image_size, path) for path in paths])])
    while True:
        loaded = keep(in_order(partial(_attempt, partial(_load, target=target)), paths))
        before, target = target, choose([width / height for _, (width, height) in loaded])
        if target == before:
            break
    if verbose:
        print(f"Loaded {len(loaded)} images at {target[0]}x{target[1]} (width x height)")
    return [
        {
            "img": normalize_image(pixels, norm_type),
            "true_shape": np.array([pixels.shape[:2]], np.int32),
            "idx": index,
            "instance": str(index),
            "data_norm_type": [norm_type],
        }
        for index, (pixels, _) in enumerate(loaded)
    ]


def preprocess_inputs(
    views: Sequence[Mapping[str, Any]],
    resize_mode: str = "fixed_mapping",
    size: int | tuple[int, int] | None = None,
    norm_type: str = "dinov2",
    patch_size: int = 14,
    resolution_set: int = 518,
    verbose: bool = False,
) -> Views:
    """Bring views with in-memory images and geometry to one size and add a batch axis.

    Each view is a dict with ``img`` and, if known, ``intrinsics`` (3, 3) pixels or ``ray_directions`` (H, W, 3),
    ``depth_z`` (H, W) float metres, ``camera_poses`` (4, 4) or a tuple (quaternion xyzw (4,), translation (3,)), and
    ``mask`` (H, W), true where the view counts (which upstream does not know).
    Other keys are copied through. Arrays may be NumPy arrays or torch tensors; ``img`` is one of

    * a Pillow image (EXIF is not looked at);
    * a uint8 array (H, W, 3);
    * an array of another type, which upstream takes to be 0..1: it is multiplied by 255 and saturates. Values above
      1.5 give a warning, because 0..255 floats come out white;
    * a torch tensor (H, W, 3) of any type, multiplied by 255 only if no value is above 1.

    Depth that is NaN or infinite becomes 0, no depth; negative depth is refused. Rays of a pinhole camera become its
    intrinsics, as upstream has it; others, as of a fisheye, stay rays. A view with intrinsics may be cropped one pixel
    off the same view without (upstream rounds half margins differently).

    Returns:
        One dict per view: ``img`` (1, 3, H, W) float32 normalised, ``data_norm_type`` [norm_type], and where given
        ``intrinsics`` (1, 3, 3) of the given float type or ``ray_directions`` (1, H, W, 3), ``depth_z`` (1, H, W)
        float32, ``camera_poses`` with a batch axis, and the other keys.

    Raises:
        InputError: what is wrong, in which view, under which key.
    """

    def choose(raw: Sequence[RawView]) -> Size:
        ratios = [view.size[0] / view.size[1] for view in raw]
        target = target_size(ratios, resize_mode, size, patch_size, resolution_set)
        if verbose:
            print(f"Preparing {len(raw)} views at {target[0]}x{target[1]} (width x height)")
        return target

    return preprocess_dictionaries(views, choose, norm_type)


def preprocess_dictionaries(
    views: Sequence[Mapping[str, Any]], choose: Callable[[Sequence[RawView]], Size], norm_type: str
) -> Views:
    """Do what :func:`preprocess_inputs` does, at the size (W, H) that ``choose`` finds for the views."""
    if isinstance(views, (Mapping, str)) or not isinstance(views, Sequence) or not views:
        raise InputError("views must be a non-empty list of dicts, one per view")
    norm_constants(norm_type)
    read = [read_dictionary(view, f"view {index}") for index, view in enumerate(views)]
    raw = [view for view, _ in read]
    prepared = each_resized(raw, choose(raw), partial(_dictionary, norm_type=norm_type))
    return [{**others, **view} for view, (_, others) in zip(prepared, read, strict=True)]


def preprocess_views(views: Sequence[AnyView], size: Size | None = None, norm_type: str = "dinov2") -> Views:
    """Do what :func:`preprocess_inputs` does with views that were read already, for ``infer``.

    Args:
        views: V views.
        size: (W, H) that they are brought to; None for the one of MapAnything's table that fits.
        norm_type: how the images are normalised.

    Raises:
        InputError: an image is far too narrow for the size.
    """
    target = size or target_size([view.size[0] / view.size[1] for view in views])
    return list(each_resized(views, target, partial(_dictionary, norm_type=norm_type)))


def each_resized(
    views: Sequence[AnyView], target: Size, finish: Callable[[RawView], Result]
) -> Generator[Result, None, None]:
    """Yield ``finish`` of every view resized to ``target`` = (W, H); several threads work on it, also on those that
    nobody has asked for yet.

    What is suspicious about views is said at the end, in one warning for each kind of it.

    Raises:
        InputError: an image is far too narrow for the size; names the view.
    """

    noticed: list[RawView] = []

    def one(index: int) -> tuple[Result, RawView]:
        try:
            resized = views[index].resized(target)
        except InputError as error:
            here = f"view {index}: "
            raise type(error)(str(error) if str(error).startswith(here) else f"{here}{error}") from error
        return finish(resized), replace(resized, image=_NO_IMAGE, rays=None, mask=None)

    with closing(in_order(one, range(len(views)))) as resized:
        for result, rest in resized:
            noticed.append(rest)
            yield result
    _warn_of(noticed)


_NO_IMAGE = np.zeros((1, 1, 3), np.uint8)


def _warn_of(views: Sequence[RawView]) -> None:
    """Say what is suspicious about resized views: the first of each kind, and which others it is true of."""
    noticed: dict[str, list[tuple[int, str]]] = {}
    for index, view in enumerate(views):
        for remark in view.remarks:
            noticed.setdefault(remark.kind, []).append((index, remark.text))
    far = _far_pose(views)
    if far is not None:
        noticed["poses"] = [far]
    for found in noticed.values():
        index, text = found[0]
        others = f" and {len(found) - 1} more" if len(found) > 1 else ""
        name = views[index].name
        label = f"view {index}" if name in ("", f"view {index}") else f"view {index} ({name})"
        warn(f"{label}{others}: {text}")


def _far_pose(views: Sequence[RawView]) -> tuple[int, str] | None:
    """The view that is farthest from any other, if views are so far apart for their depth that the units differ."""
    depths = [np.median(view.depth[view.depth > 0]) for view in views if view.depth is not None and view.depth.any()]
    places = {
        i: v.pose[1] if isinstance(v.pose, tuple) else v.pose[:3, 3] for i, v in enumerate(views) if v.pose is not None
    }
    if not depths or len(places) < 2:
        return None
    every = np.stack(list(places.values())).astype(np.float64)
    nearest = [np.linalg.norm(np.delete(every, i, axis=0) - place, axis=-1).min() for i, place in enumerate(every)]
    depth = float(np.median(depths))
    if np.median(nearest) < _FAR_APART * depth:
        return None
    index = len(nearest) - 1 - int(np.argmax(nearest[::-1]))
    return list(places)[index], (
        f"its camera is {nearest[index]:.0f} m from the nearest other one, and the median depth is {depth:.3g} m; if "
        "the poses are in millimetres, divide their positions by 1000"
    )


def _dictionary(view: RawView, norm_type: str) -> dict[str, Any]:
    """A resized view as ``infer`` takes it, with a batch axis."""
    result: dict[str, Any] = {"img": normalize_image(np.asarray(view.image), norm_type), "data_norm_type": [norm_type]}
    if view.pose is not None:
        result["camera_poses"] = view.batched_pose
    if view.metric is not None:
        result["is_metric_scale"] = np.array([view.metric], dtype=bool)
    if view.depth is not None:
        result["depth_z"] = view.depth[None]
    if view.rays is not None:
        result["ray_directions"] = view.rays[None]
    if view.mask is not None:
        result["mask"] = view.mask[None]
    if view.intrinsics is not None:
        result["intrinsics"] = view.intrinsics[None]
    return result


def _attempt(function: Callable[[str], Any], path: str) -> Any:
    try:
        return function(path)
    except ImageReadError as error:
        return error


def _load(path: str, target: Size) -> tuple[npt.NDArray[np.uint8], Size]:
    """Read and resize one file; also return the size (W, H) it had."""
    image = read_image(path)
    try:
        return resize_and_crop(image, target)[0], image.size
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _image_paths(folder_or_list: PathLike | Sequence[PathLike], stride: int) -> list[str]:
    if isinstance(folder_or_list, (str, os.PathLike)):
        folder = os.fspath(folder_or_list)
        try:
            names = sorted(os.listdir(folder))[::stride]
        except NotADirectoryError:
            raise InputError(f"{folder}: is a file, not a folder; pass a list of files") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{shown_path(folder)}: cannot be listed as a folder of images: {reason}") from error
        paths = [os.path.join(folder, name) for name in names if name.lower().endswith(IMAGE_EXTENSIONS)]
        if not paths:
            raise InputError(f"{folder}: holds no images ({' '.join(IMAGE_EXTENSIONS)}); check the folder")
        return paths
    if not isinstance(folder_or_list, Iterable):
        raise InputError(f"pass a folder or a list of image files, not {type(folder_or_list).__name__}")
    paths = []
    for index, path in enumerate(folder_or_list):
        if not isinstance(path, (str, os.PathLike)):
            raise InputError(
                f"entry {index} of the list is a {type(path).__name__}, not a file path; "
                "images in memory go through preprocess_inputs"
            )
        paths.append(os.fspath(path))
    if not paths:
        raise InputError("the list of images is empty; pass at least one file")
    return paths[::stride]


def _origin(folder_or_list: PathLike | Sequence[PathLike]) -> str:
    return os.fspath(folder_or_list) if isinstance(folder_or_list, (str, os.PathLike)) else "list of files"


def read_dictionary(view: Mapping[str, Any], where: str) -> tuple[RawView, dict[str, Any]]:
    """Return a dictionary in upstream's form as a view, and the keys that are copied through.

    Raises:
        InputError: as :func:`preprocess_inputs`; messages call the view ``where``.
    """
    if not isinstance(view, Mapping):
        raise InputError(f"{where}: is a {type(view).__name__}; pass a dict with at least img")
    given = {key: value for key, value in view.items() if value is not None}
    given.pop("data_norm_type", None)
    if "img" not in given:
        raise InputError(f"{where}: img is missing; pass a Pillow image or an array (H, W, 3)")
    check_one_calibration(given, where)
    image = _picture(given.pop("img"), f"{where}: img")
    shape, depth, intrinsics, rays, pose = (image.height, image.width), None, None, None, None
    if "depth_z" in given:
        depth = depth_map(given.pop("depth_z"), shape, f"{where}: depth_z", fill_missing=True)
    if "intrinsics" in given:
        intrinsics = camera_intrinsics(given.pop("intrinsics"), (), f"{where}: intrinsics")
    if "ray_directions" in given:
        intrinsics, rays = _fit_rays(given.pop("ray_directions"), shape, f"{where}: ray_directions")
    if "camera_poses" in given:
        pose = camera_pose(given.pop("camera_poses"), (), f"{where}: camera_poses")
    mask = None
    if "mask" in given:
        mask = finite_array(given.pop("mask"), shape, f"{where}: mask", booleans=True).astype(bool)
    if isinstance(given.get("is_metric_scale"), (bool, np.bool_)):
        given["is_metric_scale"] = np.array([given["is_metric_scale"]])
    others = {
        key: snapshot(as_array(value, f"{where}: {key}") if is_tensor(value) else value) for key, value in given.items()
    }
    return RawView(image, intrinsics, depth, pose, rays=rays, mask=mask), others


def _picture(value: Any, where: str) -> Image.Image:
    if isinstance(value, Image.Image):
        if 0 in value.size:
            raise InputError(f"{where} is an empty image ({value.width}x{value.height} pixels)")
        try:
            value.load()
            return to_rgb(value)
        except Exception as error:  # an opened file is decoded only here, and decoders raise many types
            raise InputError(f"{where} cannot be converted to RGB: {error}") from error
    if isinstance(value, (str, os.PathLike)):
        raise InputError(f"{where} is a file name; read it with load_images or read_image")
    pixels = as_array(value, where)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        hint = "; channels come last here, and there is no batch axis" if 3 in pixels.shape[:2] else ""
        raise InputError(f"{where} has shape {pixels.shape}; it must be (H, W, 3){hint}")
    if pixels.dtype != np.uint8 or is_tensor(value):
        pixels = _to_levels(pixels, is_tensor(value), where)
    return Image.fromarray(np.ascontiguousarray(pixels))


def _to_levels(pixels: Array, of_tensor: bool, where: str) -> npt.NDArray[np.uint8]:
    """Bring pixels of any type to 0..255, by the rules that :func:`preprocess_inputs` describes."""
    low, high = finite_range(pixels, where)
    if low < -0.01:
        warn(f"{where} has values down to {low:.3g}, which become black; pass the image before it is normalised")
    is_unit = high <= 1 or not of_tensor
    if not of_tensor and high > 1.5:
        warn(
            f"{where} is a {pixels.dtype} array with values up to {high:.6g}, taken as 0..1, so all above 1 becomes "
            "white; convert it to uint8 if it holds 0..255"
        )
    elif of_tensor and high == 1 and pixels.dtype.kind in "ui":
        warn(
            f"{where} is an integer tensor with no value above 1, taken as 0..1; pass a uint8 array if it is that dark"
        )
    if pixels.dtype.kind in "bi":
        pixels = pixels.astype(np.int64)  # int8 cannot hold 255
    levels = np.clip(pixels, 0, 1) * 255 if is_unit else np.clip(pixels, 0, 255)
    return levels.astype(np.uint8)


def _fit_rays(value: Any, shape: tuple[int, int], where: str) -> tuple[Array | None, Array | None]:
    """The pinhole intrinsics of rays, as upstream fits them; or the rays themselves, where no pinhole has them."""
    rays = finite_array(value, (*shape, 3), where).astype(np.float32)
    matrix = intrinsics_from_rays(rays[None])[0]
    focal, centre = matrix[(0, 1), (0, 1)], matrix[:2, 2]
    if np.isfinite(matrix).all() and focal.min() > 0:
        rows, columns = (np.unique(np.linspace(0, n - 1, 50).astype(int)) for n in shape)
        sample = rays[np.ix_(rows, columns)].astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            pixels = sample[..., :2] / sample[..., 2:] * focal + centre
        off = np.abs(pixels - np.stack(np.meshgrid(columns, rows), axis=-1))
        if (sample[..., 2] > 0).all() and off.max() <= _PINHOLE:
            return matrix, None
    rays = unit_rays(rays, (*shape, 3), where, np.float32)
    if np.abs(rays - rays[0, 0]).max() < 1e-3:
        raise InputError(f"{where} are all the same; give rays with x right, y down, z forward, or intrinsics")
    return None, rays
