"""Normalising images as an image encoder's training images were, and back."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import DataNormTypeError
from ..geometry import Array, all_finite
from .checks import rgb_pixels

Constants = tuple[tuple[float, float, float], tuple[float, float, float]]

NORM_TYPES: dict[str, Constants] = {
    "dinov2": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "identity": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""Per norm type, mean and standard deviation of RGB in 0..1."""


def norm_constants(norm_type: str) -> Constants:
    """Return mean and standard deviation of a norm type; DataNormTypeError (an InputError) if it is unknown."""
    if norm_type not in NORM_TYPES:
        raise DataNormTypeError(f"unknown norm_type {norm_type!r}; choose one of {', '.join(NORM_TYPES)}")
    return NORM_TYPES[norm_type]


def normalize_image(image: npt.NDArray[np.uint8], norm_type: str = "dinov2") -> npt.NDArray[np.float32]:
    """Turn uint8 (H, W, 3) into float32 (1, 3, H, W): (x / 255 - mean) / std per channel, in float32."""
    image = rgb_pixels(image)
    # There are only 256 values per channel, so a table gives the same bits as the arithmetic, faster.
    table = level_table(norm_type)
    result = np.empty((1, 3, *image.shape[:2]), np.float32)
    for channel in range(3):
        result[0, channel] = table[channel][image[:, :, channel]]
    return result


def level_table(norm_type: str) -> npt.NDArray[np.float32]:
    """Return what each byte becomes: (3, 256) float32, (x / 255 - mean) / std per channel."""
    mean, std = (np.array(values, np.float32)[:, None] for values in norm_constants(norm_type))
    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    return np.asarray((levels - mean) / std)


def image_bytes(image: Array) -> npt.NDArray[np.uint8]:
    """Turn an image in 0..1, of any shape, into bytes; what is no number becomes 0."""
    scaled = image * np.result_type(image, np.float16).type(255)
    if not all_finite(scaled):
        np.nan_to_num(scaled, copy=False, nan=0)
    np.clip(scaled, 0, 255, out=scaled)
    return np.rint(scaled, out=scaled).astype(np.uint8)


def denormalize_image(image: Array, norm_type: str = "dinov2") -> Array:
    """Turn a normalised image (B, 3, H, W) into one in 0..1, (B, H, W, 3)."""
    mean, std = norm_constants(norm_type)
    result = np.empty((image.shape[0], *image.shape[2:], 3), image.dtype)
    for channel in range(3):
        plane = image[:, channel] * image.dtype.type(std[channel])
        plane += image.dtype.type(mean[channel])
        np.clip(plane, 0, 1, out=result[..., channel])
    return result
