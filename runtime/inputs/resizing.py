"""Resizing and cropping one image with its depth and intrinsics, as MapAnything inference does.

The image is scaled until it covers the target and cropped around its centre. Intrinsics and depth follow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import InputError
from .checks import rgb_pixels
from .images import to_rgb
from .resolutions import Size

Array = npt.NDArray[Any]

_MOST_PIXELS = 500_000_000  # of an image before it is cropped, 2 GB in Pillow


def resize_and_crop(
    image: Image.Image | npt.NDArray[np.uint8],
    target: Size,
    depth: Array | None = None,
    intrinsics: Array | None = None,
) -> tuple[npt.NDArray[np.uint8], Array | None, Array | None]:
    """Scale an image until it covers ``target`` = (W, H), then crop the middle; depth and intrinsics follow.

    Args:
        image: RGB, Pillow or uint8 (h, w, 3).
        depth: (h, w), any type; resized to the nearest pixel as OpenCV does.
        intrinsics: (3, 3) float pixels, pixel centres at integers.

    Returns:
        uint8 (H, W, 3), depth (H, W) or None, intrinsics of the given float type or None.

    Raises:
        InputError: an image, depth or intrinsics of the wrong shape or type, an empty size, or an aspect ratio so far
            from the target that the resized image would take 2 GB before it is cropped.
    """
    picture = Image.fromarray(rgb_pixels(image)) if isinstance(image, np.ndarray) else to_rgb(image)
    fit = Fit.of(picture.size, target, intrinsics)
    if depth is not None and depth.shape != picture.size[::-1]:
        raise InputError(f"depth has shape {depth.shape}, the image {picture.size[::-1]}; they must be equal")
    return fit.image(picture), None if depth is None else fit.nearest(depth), fit.intrinsics


@dataclass(frozen=True)
class Fit:
    """How an image is scaled and cropped.

    Attributes:
        old, target: (W, H) before and after.
        scale: of both axes.
        scaled: (W, H) before the crop.
        corner: (x, y) of the crop.
        intrinsics: of the result, or None.
    """

    old: Size
    target: Size
    scale: np.float64
    scaled: Size
    corner: Size
    intrinsics: Array | None = None

    @classmethod
    def of(cls, size: Size, target: Size, intrinsics: Array | None = None) -> Fit:
        """Find it for an image of ``size``; errors as :func:`resize_and_crop`."""
        old = np.array(size)
        if min(*old, *target) < 1:
            raise InputError(f"cannot resize {old[0]}x{old[1]} to {target[0]}x{target[1]} pixels; all must be positive")
        if intrinsics is not None and (intrinsics.shape != (3, 3) or intrinsics.dtype.kind != "f"):
            raise InputError(f"intrinsics are {intrinsics.dtype} of shape {intrinsics.shape}; needed are floats (3, 3)")
        # The small addend keeps the scaled image from being one pixel short of the target.
        scale = np.float64(max(target[0] / old[0], target[1] / old[1]) + 1e-8)
        scaled = np.floor(old * scale).astype(np.int64)
        if scaled[0] * scaled[1] > _MOST_PIXELS:
            raise InputError(
                f"an image of {old[0]}x{old[1]} pixels is too narrow for the size {target[0]}x{target[1]}: it would be "
                f"resized to {scaled[0]}x{scaled[1]} before it is cropped; crop it first"
            )
        corner = (scaled - target) // 2
        if intrinsics is not None:
            # Upstream finds the corner as a difference of principal points in the type of the matrix, so that its
            # rounding decides where a margin is odd.
            resized = _scale_intrinsics(intrinsics, scale, old * scale - scaled)
            centred = _scale_intrinsics(resized, np.float64(1), (scaled - target).astype(np.float64))
            corner = np.rint(resized[:2, 2] - centred[:2, 2]).astype(np.int64)
            corner = np.clip(corner, 0, scaled - target)  # a principal point far outside leaves no digits for it
            resized[:2, 2] -= corner
            intrinsics = resized
        return cls(size, target, scale, _pair(scaled), _pair(corner), intrinsics)

    @property
    def original_pixels(self) -> npt.NDArray[np.float64]:
        """The (3, 3) matrix that takes homogeneous pixels of the result to those of the image before.

        It is the mapping that the intrinsics follow: ``intrinsics before = original_pixels @ intrinsics``. The image
        itself is resized to a whole number of pixels, which moves its content by less than half a pixel of the result
        against it.
        """
        margin = 0.5 * (np.array(self.old) * self.scale - self.scaled)
        result = np.diag([1 / self.scale, 1 / self.scale, 1.0])
        result[:2, 2] = (0.5 + np.array(self.corner) + margin) / self.scale - 0.5
        return result

    @property
    def kept(self) -> float:
        """The part of the image that the crop keeps."""
        return float(self.target[0] * self.target[1] / (self.scaled[0] * self.scaled[1]))

    def image(self, picture: Image.Image) -> npt.NDArray[np.uint8]:
        """Return an RGB image (H, W, 3) uint8."""
        # One call and then the crop: Pillow chooses the order of the two passes by the whole size, which decides
        # rounding.
        kernel = Image.Resampling.LANCZOS if self.scale < 1 else Image.Resampling.BICUBIC
        (left, top), (width, height) = self.corner, self.target
        return np.array(picture.resize(self.scaled, kernel).crop((left, top, left + width, top + height)))

    def nearest(self, values: Array) -> Array:
        """Return a map (h, w) at (H, W), the nearest pixel of each, as OpenCV chooses it."""
        columns, rows = self._indices
        return values[np.ix_(rows, columns)]

    def valid(self, depth: Array) -> Array:
        """Return depth (h, w) at (H, W): the nearest pixel, and where that is 0 the nearest measured one inside."""
        result = self.nearest(depth).copy()
        rows, columns = np.nonzero(depth)
        place = (np.stack([columns, rows]) + 0.5) * self.scale - np.array(self.corner)[:, None]
        x, y = np.floor(place).astype(np.int64)
        inside = (x >= 0) & (x < self.target[0]) & (y >= 0) & (y < self.target[1])
        order = np.argsort(-np.hypot(*(place - np.floor(place) - 0.5))[inside], kind="stable")  # the nearest is last
        x, y, found = x[inside][order], y[inside][order], depth[rows, columns][inside][order]
        filled = np.zeros_like(result)
        filled[y, x] = found
        return np.where(result == 0, filled, result)

    def rays(self, rays: Array) -> Array:
        """Return unit ray directions (h, w, 3) at (H, W, 3), interpolated between the pixels around each."""
        columns, rows = ((np.arange(self.target[axis]) + self.corner[axis] + 0.5) / self.scale - 0.5 for axis in (0, 1))
        found = _between(_between(rays, rows, 0), columns, 1)
        return np.asarray(found / np.linalg.norm(found, axis=-1, keepdims=True), dtype=rays.dtype)

    @property
    def _indices(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Columns and rows of the nearest pixels."""
        columns, rows = (
            _nearest(self.corner[axis], self.target[axis], self.scaled[axis], self.old[axis]) for axis in (0, 1)
        )
        return columns, rows


def _pair(values: npt.NDArray[np.int64]) -> Size:
    return int(values[0]), int(values[1])


def _between(values: Array, places: Array, axis: int) -> Array:
    """Values at places along an axis, on the line through the two around each; at the border that line goes on."""
    last = max(values.shape[axis] - 2, 0)
    before = np.clip(np.floor(places), 0, last).astype(np.intp)
    after = np.minimum(before + 1, values.shape[axis] - 1)
    shape = [1] * values.ndim
    shape[axis] = -1
    weight = (places - before).reshape(shape)
    return np.take(values, before, axis) * (1 - weight) + np.take(values, after, axis) * weight


def _scale_intrinsics(intrinsics: Array, scale: np.float64, margins: Array) -> Array:
    """Intrinsics after scaling and cutting off half of ``margins`` on the left and top.

    The scale and the margins are float64 and each result is rounded to the type of the matrix, step by step.
    """
    result = intrinsics.copy()
    result[:2, 2] += 0.5  # pixel centres at halves, where scaling is a product
    result[:2] = (result[:2].astype(np.float64) * scale).astype(result.dtype)
    result[:2, 2] = (result[:2, 2].astype(np.float64) - 0.5 * margins).astype(result.dtype)
    result[:2, 2] -= 0.5
    return result


def _nearest(start: int, count: int, scaled: int, old: int) -> npt.NDArray[np.int64]:
    """Source indices of ``count`` pixels from ``start`` on, when ``old`` pixels are resized to ``scaled``.

    OpenCV multiplies by the reciprocal of the ratio, which may fall just below a whole number where i*old/scaled is
    whole: the pixel before is taken then.
    """
    indices = np.floor(np.arange(start, start + count) * (1.0 / (scaled / old))).astype(np.int64)
    return np.minimum(indices, old - 1)
