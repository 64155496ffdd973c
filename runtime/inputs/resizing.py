"""Resizing and cropping one image with its depth and intrinsics, as MapAnything inference does.

The image is scaled until it covers the target and cropped around its centre. Intrinsics and depth follow.
"""

from __future__ import annotations

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
    old = np.array(picture.size)
    if min(*old, *target) < 1:
        raise InputError(f"cannot resize {old[0]}x{old[1]} to {target[0]}x{target[1]} pixels; all must be positive")
    if depth is not None and depth.shape != (old[1], old[0]):
        raise InputError(f"depth has shape {depth.shape}, the image {(int(old[1]), int(old[0]))}; they must be equal")
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
        # Upstream finds the corner as a difference of principal points in the type of the matrix, so that its rounding
        # decides where a margin is odd.
        resized = _scale_intrinsics(intrinsics, scale, old * scale - scaled)
        centred = _scale_intrinsics(resized, np.float64(1), (scaled - target).astype(np.float64))
        corner = np.rint(resized[:2, 2] - centred[:2, 2]).astype(np.int64)
        corner = np.clip(corner, 0, scaled - target)  # a principal point far outside leaves no digits for the margin
        resized[:2, 2] -= corner
        intrinsics = resized
    if depth is not None:
        columns, rows = (
            _nearest(int(corner[axis]), target[axis], int(scaled[axis]), int(old[axis])) for axis in (0, 1)
        )
        depth = depth[np.ix_(rows, columns)]
    # One call and then the crop: Pillow chooses the order of the two passes by the whole size, which decides rounding.
    kernel = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    left, top = (int(value) for value in corner)
    resized_picture = picture.resize((int(scaled[0]), int(scaled[1])), kernel)
    window = resized_picture.crop((left, top, left + target[0], top + target[1]))
    return np.array(window), depth, intrinsics


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
