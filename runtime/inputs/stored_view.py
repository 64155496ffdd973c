"""Views that are read when they are needed, so that few of them are in memory at their full size."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import InputError, MapEngineError
from ..geometry import Array
from .checks import as_array, check_camera_of_image, depth_map, finite_range
from .files.depth import LIKELY_MILLIMETRES, read_depth
from .formats.view_files import ViewFiles
from .images import Picture, image_size, picture_of, read_picture
from .lenses import Undistortion, scaled_camera
from .raw_view import Known, RawView, Remark
from .resolutions import Size

_UNIT_OVERSHOOT = 1.5
_OFF_CENTRE = 0.15  # of the image's side, of the principal point
_SAME_SHAPE = 0.02  # how far the aspect ratio of a smaller depth map or camera may be off
_BYTES_PER_PIXEL = 12  # of an image that is decoded and resized; Pillow takes 4 for RGB, and the resized one as many


@dataclass(frozen=True, eq=False)
class StoredView:
    """One view of a call, whose image, depth and mask are read by :meth:`read` or :meth:`resized`.

    Attributes:
        files: what and where they are.
        where: the view for messages, such as ``view 3``.
        name: for people.
        depth_resize: see :class:`.raw_view.RawView`.
    """

    files: ViewFiles
    where: str
    name: str
    depth_resize: str = "nearest"

    @property
    def is_file(self) -> bool:
        """Whether the image is a file of its own."""
        return isinstance(self.files.image, str | os.PathLike)

    @property
    def known(self) -> Known:
        """What is known besides the image."""
        files = self.files
        calibrated = files.intrinsics is not None
        has_depth = files.depth is not None or (files.points is not None and calibrated)
        return Known(calibrated, has_depth, files.pose is not None)

    @cached_property
    def size(self) -> Size:
        """(W, H) of the view, from the image's header.

        Raises:
            ImageReadError: it cannot be read.
        """
        size = self._header()
        lens = self.files.lens
        if lens is None or lens.fisheye or self.files.intrinsics is None:
            return size
        return self._undistortion(self._camera(size), size).size

    @property
    def bytes_to_read(self) -> int:
        """About how much memory reading and resizing it takes at a time."""
        width, height = self.size
        depth = 12 if self.files.depth is not None or self.files.points is not None else 0
        return width * height * (_BYTES_PER_PIXEL + depth)

    def resized(self, target: Size) -> RawView:
        """Read the view, bring it to ``target`` = (W, H), and let go of what was read; errors as :meth:`read`."""
        return self.read().resized(target)

    def read(self) -> RawView:
        """Read the view at its full size.

        Raises:
            InputError: what does not fit together; names the view and the key.
            ImageReadError: an image, depth map or mask that cannot be read.
        """
        image, turned, mask = self._picture()
        files, where = self.files, self.where
        size = image.size if isinstance(image, Image.Image) else (image.shape[1], image.shape[0])
        remarks: list[Remark] = []
        camera = None
        if files.intrinsics is not None:
            camera = self._camera(size)
            check_camera_of_image(camera, size, turned, f"{where}: intrinsics")
            remarks += _camera_remarks(camera, size)
        depth = None
        if files.depth is not None:
            depth = self._depth(size, turned)
        if files.mask is not None:
            painted = self._mask(size)
            mask = painted if mask is None else mask & painted
        lens = files.lens if camera is not None else None
        original_pixels = None
        if lens is not None and not lens.fisheye:
            straight = self._undistortion(camera, size)
            image = straight.image(np.asarray(image))
            depth, mask = (None if values is None else straight.nearest(values) for values in (depth, mask))
            camera, lens, size = straight.intrinsics, None, straight.size
            original_pixels = np.eye(3)
            original_pixels[:2, 2] = straight.corner
        if files.points is not None and camera is not None:
            points = files.points
            depth = _points_on(points, _pixels_of(points, camera, lens), size)
        if depth is not None:
            remarks += _depth_remarks(depth)
        if mask is not None and not mask.any():
            remarks.append(Remark("mask", "its mask leaves nothing of it; white and opaque pixels count"))
        return RawView(
            image,
            camera,
            depth,
            files.pose,
            files.metric,
            self.name,
            lens=lens,
            mask=mask,
            depth_resize="valid" if files.points is not None else self.depth_resize,
            remarks=tuple(remarks),
            original_pixels=original_pixels,
        )

    def _header(self) -> Size:
        image = self.files.image
        if isinstance(image, str | os.PathLike):
            return self._as_view(lambda: self._file_size(image)[0])
        if hasattr(image, "expect"):
            return image.size
        if isinstance(image, Image.Image):
            return self._as_view(lambda: picture_of(image).image.size)
        pixels = _pixels(image, f"{self.where}: image")
        return pixels.shape[1], pixels.shape[0]

    def _file_size(self, path: Any) -> tuple[Size, bool]:
        """(W, H) of a file, and whether its EXIF orientation does not count; see :class:`.formats.view_files`."""
        upright = image_size(path)
        known = self.files.camera_size
        stored = upright[::-1]
        if known is None or _alike(known, upright) or not _alike(known, stored):
            return upright, False
        return (stored, True) if image_size(path, as_stored=True) == stored else (upright, False)

    def _as_view(self, read: Any) -> Any:
        """What ``read`` gives; its errors say which view it is."""
        try:
            return read()
        except MapEngineError as error:
            raise type(error)(f"{self.where}: image: {error}") from error

    def _picture(self) -> tuple[Image.Image | npt.NDArray[np.uint8], bool, npt.NDArray[np.bool_] | None]:
        image = self.files.image
        if isinstance(image, str | os.PathLike):

            def read() -> Picture:
                # One opening is enough where nothing says which size the image should have.
                as_stored = self.files.camera_size is not None and self._file_size(image)[1]
                return read_picture(image, as_stored)

            return self._as_view(read)
        if hasattr(image, "expect"):
            return self._as_view(image.read), False, None
        if isinstance(image, Image.Image):
            return self._as_view(lambda: picture_of(image))
        return _pixels(image, f"{self.where}: image"), False, None

    def _camera(self, size: Size) -> Array:
        """The intrinsics for the image as it is; it may be a smaller copy of the one that they are of."""
        camera, known = self.files.intrinsics, self.files.camera_size
        assert camera is not None
        if known is None or known == size:
            return camera
        if not _alike(known, size):
            raise InputError(
                f"{self.where}: intrinsics are of an image of {known[0]}x{known[1]}, but {self.name} has "
                f"{size[0]}x{size[1]}; give the images that the cameras are of"
            )
        return scaled_camera(camera, known, size)

    def _undistortion(self, camera: Array | None, size: Size) -> Undistortion:
        assert camera is not None
        assert self.files.lens is not None
        try:
            return Undistortion.of(self.files.lens, camera, size)
        except InputError as error:
            raise InputError(f"{self.where}: {self.name}: {error}") from error

    def _depth(self, size: Size, turned: bool) -> Array:
        """Depth (H, W) float32 metres of a file or an array, of an image of ``size`` = (W, H)."""
        value, where = self.files.depth, f"{self.where}: depth"
        if isinstance(value, str | os.PathLike):
            try:
                value = read_depth(value, self.files.depth_scale, size, check_unit=False)
            except MapEngineError as error:
                raise type(error)(f"{where}: {error}") from error
        shape = tuple(getattr(value, "shape", ()))[:2]
        remedy = "resize it to the image"
        if turned and shape == size:
            remedy = "the EXIF orientation turns the image but not the depth: turn the depth map too"
        if len(shape) == 2 and 0 < shape[1] < size[0] and 0 < shape[0] < size[1] and _alike(shape[::-1], size):
            return enlarged_depth(depth_map(value, shape, where, fill_missing=True), size)
        return depth_map(value, size[::-1], where, fill_missing=True, remedy=remedy)

    def _mask(self, size: Size) -> npt.NDArray[np.bool_]:
        value, where = self.files.mask, f"{self.where}: mask"
        if isinstance(value, str | os.PathLike):
            try:
                value = np.asarray(read_picture(value).image.convert("L"))
            except MapEngineError as error:
                raise type(error)(f"{where}: {error}") from error
        levels = as_array(value, where)
        if levels.ndim != 2 or levels.size == 0:
            raise InputError(f"{where} has shape {levels.shape}; give (H, W), True or white where the view counts")
        if not _alike(levels.shape[::-1], size):
            raise InputError(f"{where} has shape {levels.shape}, the image {size[::-1]}; resize it to the image")
        # Of 0 and 1 as of 0 and 255; what lies between, as at the edges of a JPEG, counts from the middle on.
        mask = levels > (levels.max() / 2 if levels.max() <= 1 else 127)
        rows, columns = (_spread_indices(new, old) for new, old in zip(size[::-1], mask.shape, strict=True))
        return np.asarray(mask[np.ix_(rows, columns)])


def of_file(view: Any) -> StoredView | None:
    """Return what reads the image of a view again, and nothing else of it; None for an image that was in memory."""
    if not isinstance(view, StoredView):
        return None
    files = view.files
    if not (view.is_file or hasattr(files.image, "expect")):
        return None
    return replace(view, files=replace(files, depth=None, depth_scale=None, points=None, mask=None, pose=None))


def time_of(view: Any) -> float | None:
    """Return when a view was taken, seconds; None where that is not known."""
    return view.files.time if isinstance(view, StoredView) else None


def enlarged_depth(depth: Array, size: Size) -> Array:
    """Return a smaller depth map at ``size`` = (W, H).

    Each pixel takes the nearest of the four values around it that was measured; nothing is blended, so that no value
    appears that lies on neither side of an edge.
    """
    sides = list(zip(size[::-1], depth.shape, strict=True))
    places = [(np.arange(new) + 0.5) * (old / new) - 0.5 for new, old in sides]
    near = [np.clip(np.rint(p), 0, old - 1).astype(np.intp) for p, (_, old) in zip(places, sides, strict=True)]
    # The second nearest along an axis lies on the other side of the place.
    side = [
        np.clip(n + np.where(p >= n, 1, -1), 0, old - 1) for p, n, (_, old) in zip(places, near, sides, strict=True)
    ]
    result = depth[np.ix_(near[0], near[1])]
    by_row, by_column = depth[np.ix_(side[0], near[1])], depth[np.ix_(near[0], side[1])]
    # The neighbour in whose direction the place is shifted most is the next nearest.
    rows_first = np.abs(places[0] - near[0])[:, None] > np.abs(places[1] - near[1])[None]
    second, third = np.where(rows_first, by_row, by_column), np.where(rows_first, by_column, by_row)
    for other in (second, third, depth[np.ix_(side[0], side[1])]):
        result = np.where(result == 0, other, result)
    return result


def _spread_indices(new: int, old: int) -> npt.NDArray[np.intp]:
    return np.minimum((np.arange(new) + 0.5) * (old / new), old - 1).astype(np.intp)


def _alike(one: Any, other: Any) -> bool:
    """Whether two sizes are of one shape, but for the rounding of their pixels."""
    if tuple(one) == tuple(other):
        return True
    ratio = (one[0] * other[1]) / (one[1] * other[0])
    return bool(abs(ratio - 1) < _SAME_SHAPE)


def _pixels_of(points: Array, camera: Array, lens: Any) -> Array:
    """Pixels (N, 2) of points in front of the camera, NaN for the others."""
    ahead = points[:, 2] > 0
    pixels = np.full((len(points), 2), np.nan)
    if lens is not None:
        pixels[ahead] = lens.project(points[ahead], camera)
    else:
        pixels[ahead] = points[ahead, :2] / points[ahead, 2:] * camera[(0, 1), (0, 1)] + camera[:2, 2]
    return pixels


def _points_on(points: Array, pixels: Array, size: Size) -> npt.NDArray[np.float32]:
    """Depth (H, W) of points at their pixels; the nearest of several in one pixel."""
    depth = np.zeros(size[::-1], np.float32)
    inside = ((pixels >= -0.5) & (pixels < np.array(size) - 0.5)).all(axis=-1)  # and not NaN
    x, y = np.rint(pixels[inside]).astype(np.intp).T
    far_first = np.argsort(-points[inside, 2], kind="stable")
    depth[np.minimum(y, size[1] - 1)[far_first], np.minimum(x, size[0] - 1)[far_first]] = points[inside, 2][far_first]
    return depth


def _camera_remarks(camera: Array, size: Size) -> list[Remark]:
    off = np.abs((camera[:2, 2] + 0.5) / np.array(size) - 0.5)
    if off.max() <= _OFF_CENTRE:
        return []
    (width, height), (cx, cy) = size, camera[:2, 2]
    place = f"the principal point ({cx:g}, {cy:g}) is far from the centre of the image of {width}x{height}"
    if min(cx, cy) < 1:
        return [Remark("intrinsics", f"{place}; give that of the image in pixels")]
    like = f"{2 * cx + 1:.0f}x{2 * cy + 1:.0f}"
    return [
        Remark(
            "intrinsics",
            f"{place}, as if the intrinsics were of an image of {like}; scale them by {width / (2 * cx + 1):.3g} if "
            "they are, or ignore this if the image was cropped",
        )
    ]


def _depth_remarks(depth: Array) -> list[Remark]:
    known = depth[depth > 0]
    if not known.size or np.median(known) <= LIKELY_MILLIMETRES:
        return []
    return [
        Remark(
            "depth",
            f"the median depth is {np.median(known):.0f} m; if the values are millimetres, give depth_scale=0.001",
        )
    ]


def _pixels(source: Any, where: str) -> npt.NDArray[np.uint8]:
    """An image in memory as uint8 (H, W, 3)."""
    if source is None or isinstance(source, bytes | dict):
        raise InputError(f"{where} is a {type(source).__name__}; give a path, a Pillow image or an array (H, W, 3)")
    pixels = as_array(source, where)
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or 0 in pixels.shape:
        raise InputError(f"{where} has shape {pixels.shape}; give colour arrays (H, W, 3)")
    return pixels if pixels.dtype == np.uint8 else _to_uint8(pixels, where)


def _to_uint8(pixels: Array, where: str) -> npt.NDArray[np.uint8]:
    """Floats in 0..1 or 0..255 as uint8, truncated as upstream does."""
    if pixels.dtype.kind != "f":
        raise InputError(f"{where} holds {pixels.dtype} values; give uint8, or floats in 0..1 or 0..255")
    low, high = finite_range(pixels, where)
    if low < 0 or high > 255:
        raise InputError(
            f"{where} has values from {low:.4g} to {high:.4g}; give 0..1 or 0..255, before any mean or scale is applied"
        )
    # A resized picture overshoots 1 a little; a picture in 0..255 that stays below 1.5 would be black.
    return np.asarray(np.minimum(pixels, 1) * 255 if high <= _UNIT_OVERSHOOT else pixels).astype(np.uint8)
