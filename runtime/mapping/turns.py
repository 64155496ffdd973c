"""Whether a camera only turned: then one image is a warp of the other that no depth changes."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .similarity import exp_matrices

Array = NDArray[Any]
Float64 = NDArray[np.float64]

_WIDTH = 140
"""Pixels that larger images are reduced to before they are compared."""
_SEARCHED = 12
"""Degrees, to each side of the predicted rotation, that the true one is searched in."""
_HOPELESS = 0.8
"""Correlation of reduced images below which larger ones are not looked at."""
_LEAST_SEEN = 0.25
"""Of the image: what two images have to have in common to be compared."""


def gray_image(normalized: Array) -> Float64:
    """Return brightness (H, W) of a normalised image (3, H, W), in deviations; large images are reduced."""
    gray = normalized.astype(np.float64).mean(axis=0)
    return reduced(gray, max(1, round(gray.shape[1] / _WIDTH)))


def reduced(image: Float64, factor: int) -> Float64:
    """Return the means over squares of ``factor`` pixels a side; what is left over at the edges is cut off."""
    height, width = (side // factor * factor for side in image.shape)
    parts = image[:height, :width].reshape(height // factor, factor, width // factor, factor)
    return np.asarray(parts.mean(axis=(1, 3)))


def correlation(one: Float64, other: Float64) -> float:
    """Return how far values (N,) rise and fall together: 1 for equal ones up to brightness and contrast, 0 for values
    that have nothing to do with each other, or where one has no contrast."""
    one, other = one - one.mean(), other - other.mean()
    size = float(np.sqrt(np.dot(one, one) * np.dot(other, other)))
    return float(np.dot(one, other)) / size if size > 0 else 0.0


def turned_correlation(one: Float64, other: Float64, intrinsics: Float64, rotation: Float64) -> float:
    """Return how well one image explains another as seen by a camera at the same place: their best correlation.

    Args:
        one, other: (H, W) brightness.
        intrinsics: (3, 3) of both, in their pixels.
        rotation: (3, 3) about the one that takes directions of ``one`` into the camera of ``other``.
    """
    for factor in (4, 2):  # finer, noise and aliasing would tell more than a parallax
        small, there = reduced(one, factor), reduced(other, factor)
        camera = intrinsics / factor
        camera[2, 2] = 1
        camera[:2, 2] -= (factor - 1) / (2 * factor)
        pixel = 1 / camera[0, 0]  # radians
        if factor == 4:
            reach = np.radians(_SEARCHED)
            count = int(np.ceil(reach / (2 * pixel)))
            steps = np.arange(-count, count + 1) * 2 * pixel
            turns = np.array([(x, y, 0.0) for x in steps for y in steps])
            rotation, best = _best(small, there, camera, rotation, turns)
        for size in (pixel, pixel / 2, pixel / 4):
            moves = np.array(list(itertools.product((0.0, -size, size), repeat=3)))
            for _ in range(20):
                turned, best = _best(small, there, camera, rotation, moves)
                if turned is rotation:
                    break
                rotation = turned
        if best < _HOPELESS:
            break
    return best


def _best(one: Float64, other: Float64, camera: Float64, rotation: Float64, turns: Float64) -> tuple[Float64, float]:
    """Return the best of ``rotation`` turned by vectors (K, 3), the first of equals, and its correlation."""
    height, width = one.shape
    rows, columns = (axis.reshape(-1) for axis in np.mgrid[:height, :width])
    rays = np.linalg.inv(camera) @ np.stack([columns, rows, np.ones_like(rows)])
    found, best = rotation, -1.0
    turned = exp_matrices(np.concatenate([turns, np.zeros_like(turns)], axis=1))[:, :3, :3] @ rotation
    for turn, tried in zip(turns, turned, strict=True):
        x, y, z = camera @ tried @ rays
        with np.errstate(divide="ignore", invalid="ignore"):
            x, y = x / z, y / z
            inside = (z > 0) & (x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1)
        if np.count_nonzero(inside) < _LEAST_SEEN * inside.size:
            continue
        value = correlation(one.reshape(-1)[inside], _sampled(other, x[inside], y[inside]))
        if value > best:
            found, best = tried if turn.any() else rotation, value
    return found, best


def _sampled(image: Float64, x: Float64, y: Float64) -> Float64:
    """Return values of an image between its pixels, bilinear."""
    height, width = image.shape
    left, top = np.minimum(x.astype(np.intp), width - 2), np.minimum(y.astype(np.intp), height - 2)
    u, v = x - left, y - top
    upper = image[top, left] * (1 - u) + image[top, left + 1] * u
    lower = image[top + 1, left] * (1 - u) + image[top + 1, left + 1] * u
    return np.asarray(upper * (1 - v) + lower * v)
