"""Lens distortion: images are undistorted to a pinhole camera; a fisheye lens keeps its image and gives rays.

The formulas are OpenCV's, which COLMAP and nerfstudio share. Pixel centres are at integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..geometry import Array
from .resolutions import Size

_ROWS = 256  # of an image that are undistorted at a time
_CONVERGED = 1e-9
_MOST_GROWTH = 4.0  # of the area, by undistortion, and the most shrinking; a lens that needs more is a fisheye


@dataclass(frozen=True)
class Lens:
    """How a lens departs from a pinhole.

    Attributes:
        name: of the model, for messages.
        radial: k1, k2, k3 over 1, or of a fisheye k1 to k4.
        denominator: k4, k5, k6 of OpenCV's rational model.
        tangential: p1, p2.
        fisheye: whether the radial coefficients are of the angle (equidistant), not of its tangent.
    """

    name: str
    radial: tuple[float, ...] = ()
    denominator: tuple[float, ...] = ()
    tangential: tuple[float, float] = (0.0, 0.0)
    fisheye: bool = False

    @property
    def is_pinhole(self) -> bool:
        """Whether nothing is distorted."""
        return not self.fisheye and not any((*self.radial, *self.denominator, *self.tangential))

    def distort(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Return where a lens that is no fisheye images the direction (x, y, 1), as a point of the plane z = 1."""
        square = x * x + y * y
        factor = _polynomial(self.radial, square)
        if self.denominator:
            factor = factor / _polynomial(self.denominator, square)
        p1, p2 = self.tangential
        return (
            x * factor + 2 * p1 * x * y + p2 * (square + 2 * x * x),
            y * factor + p1 * (square + 2 * y * y) + 2 * p2 * x * y,
        )

    def project(self, points: Array, intrinsics: Array) -> Array:
        """Return the pixels (N, 2) of points (N, 3) in the camera's frame."""
        if self.fisheye:
            distance = np.hypot(points[:, 0], points[:, 1])
            angle = np.arctan2(distance, points[:, 2])
            scale = angle * _polynomial(self.radial, angle * angle) / np.maximum(distance, 1e-12)
            x, y = points[:, 0] * scale, points[:, 1] * scale
        else:
            x, y = self.distort(points[:, 0] / points[:, 2], points[:, 1] / points[:, 2])
        focal, centre = intrinsics[(0, 1), (0, 1)], intrinsics[:2, 2]
        return np.stack([x, y], axis=-1) * focal + centre

    def rays(self, intrinsics: Array, size: Size) -> NDArray[np.float32]:
        """Return the unit ray directions (H, W, 3) of a fisheye's pixels."""
        x, y = _plane(intrinsics.astype(np.float64), np.arange(size[0]), np.arange(size[1]))
        distorted = np.hypot(x, y)
        angle = np.minimum(distorted, np.pi)
        for _ in range(20):
            square = angle * angle
            value = angle * _polynomial(self.radial, square) - distorted
            slope = _polynomial([(2 * i + 3) * k for i, k in enumerate(self.radial)], square)
            angle = np.clip(angle - value / np.maximum(slope, 0.1), 0, np.pi)
        sine = np.sin(angle) / np.maximum(distorted, 1e-12)
        rays = np.stack([x * sine, y * sine, np.cos(angle)], axis=-1)
        return np.asarray(rays / np.linalg.norm(rays, axis=-1, keepdims=True), dtype=np.float32)

    def undistort_points(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Return the inverse of :meth:`distort`, by Newton's method.

        Raises:
            InputError: some point has none near the axis.
        """
        found = np.stack([x, y]).astype(np.float64)
        wanted = found.copy()
        step = 1e-7
        for _ in range(50):
            value = np.stack(self.distort(*found))
            error = value - wanted
            if np.abs(error).max() < _CONVERGED:
                return found[0], found[1]
            along_x = (np.stack(self.distort(found[0] + step, found[1])) - value) / step
            along_y = (np.stack(self.distort(found[0], found[1] + step)) - value) / step
            determinant = along_x[0] * along_y[1] - along_x[1] * along_y[0]
            if not (determinant > 1e-3).all():
                break
            found[0] -= (error[0] * along_y[1] - error[1] * along_y[0]) / determinant
            found[1] -= (error[1] * along_x[0] - error[0] * along_x[1]) / determinant
        values = ", ".join(f"{k:g}" for k in self.radial)
        raise InputError(
            f"the distortion {self.name} with {values} folds the image's border over; "
            "check its coefficients, or give the camera as a fisheye"
        )


@dataclass(frozen=True)
class Undistortion:
    """The pinhole image that a distorted one becomes: of the same focal length, cropped to what has pixels.

    Attributes:
        lens: with the ``camera`` (3, 3) float64 of the distorted image and its ``source`` size (W, H).
        intrinsics: (3, 3) float32 of the pinhole image.
        size: (W, H) of it.
        corner: (x, y) of its first pixel, in pixels of a pinhole image with the intrinsics of ``camera``.
    """

    lens: Lens
    camera: Array
    source: Size
    intrinsics: NDArray[np.float32]
    size: Size
    corner: tuple[float, float]

    @classmethod
    def of(cls, lens: Lens, intrinsics: Array, size: Size) -> Undistortion:
        """Find the pinhole image; InputError where the lens has none."""
        camera = intrinsics.astype(np.float64)
        width, height = size
        columns, rows = np.linspace(0, width - 1, 65), np.linspace(0, height - 1, 65)
        sides = {
            "left": (np.zeros(65), rows),
            "right": (np.full(65, width - 1.0), rows),
            "top": (columns, np.zeros(65)),
            "bottom": (columns, np.full(65, height - 1.0)),
        }
        focal, centre = camera[(0, 1), (0, 1)], camera[:2, 2]
        straight = {}
        for name, (u, v) in sides.items():
            x, y = lens.undistort_points((u - centre[0]) / focal[0], (v - centre[1]) / focal[1])
            straight[name] = x * focal[0] + centre[0], y * focal[1] + centre[1]
        left, right = np.ceil(straight["left"][0].max() - 1e-6), np.floor(straight["right"][0].min() + 1e-6)
        top, bottom = np.ceil(straight["top"][1].max() - 1e-6), np.floor(straight["bottom"][1].min() + 1e-6)
        new = int(right - left) + 1, int(bottom - top) + 1
        growth = new[0] * new[1] / (width * height)
        if min(new) < 2 or not 1 / _MOST_GROWTH < growth < _MOST_GROWTH:
            raise InputError(
                f"the distortion {lens.name} leaves a pinhole image of {new[0]}x{new[1]} of one of {width}x{height}; "
                "check its coefficients, or give the camera as a fisheye"
            )
        moved = camera.copy()
        moved[:2, 2] -= (left, top)
        return cls(lens, camera, size, moved.astype(np.float32), new, (float(left), float(top)))

    def image(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the pinhole image (H, W, 3) of the distorted one, interpolated between its pixels."""
        result = np.empty((self.size[1], self.size[0], 3), np.uint8)
        for rows in self._chunks():
            u, v = self._source_pixels(rows)
            left = np.clip(np.floor(u), 0, self.source[0] - 2).astype(np.intp)
            top = np.clip(np.floor(v), 0, self.source[1] - 2).astype(np.intp)
            a, b = (u - left)[..., None], (v - top)[..., None]
            upper = pixels[top, left] * (1 - a) + pixels[top, left + 1] * a
            lower = pixels[top + 1, left] * (1 - a) + pixels[top + 1, left + 1] * a
            result[rows] = np.clip(np.rint(upper * (1 - b) + lower * b), 0, 255)
        return result

    def nearest(self, values: Array) -> Array:
        """Return a map (H, W) of the pinhole image, each pixel the nearest of the distorted one's."""
        result = np.empty(self.size[::-1], values.dtype)
        for rows in self._chunks():
            u, v = (np.rint(coordinate).astype(np.intp) for coordinate in self._source_pixels(rows))
            result[rows] = values[v, u]
        return result

    def _chunks(self) -> list[slice]:
        return [slice(start, min(start + _ROWS, self.size[1])) for start in range(0, self.size[1], _ROWS)]

    def _source_pixels(self, rows: slice) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Columns and rows of the distorted image that some rows of the pinhole image come from."""
        plane = _plane(self.intrinsics, np.arange(self.size[0]), np.arange(rows.start, rows.stop))
        x, y = self.lens.distort(*(np.asarray(c, np.float32) for c in plane))
        u = x * np.float32(self.camera[0, 0]) + np.float32(self.camera[0, 2])
        v = y * np.float32(self.camera[1, 1]) + np.float32(self.camera[1, 2])
        return np.clip(u, 0, self.source[0] - 1), np.clip(v, 0, self.source[1] - 1)


def scaled_camera(intrinsics: Array, old: Size, new: Size) -> NDArray[np.float32]:
    """Return the intrinsics of an image that was resized from ``old`` to ``new`` = (W, H)."""
    scale = np.array([new[0] / old[0], new[1] / old[1]])
    result = intrinsics.astype(np.float64)
    result[:2, 2] = (result[:2, 2] + 0.5) * scale - 0.5
    result[:2, :2] *= scale[:, None]
    return result.astype(np.float32)


def _plane(camera: Array, columns: Array, rows: Array) -> tuple[Array, Array]:
    """Points of the plane z = 1 under pixels, (H, W) each."""
    x, y = (columns - camera[0, 2]) / camera[0, 0], (rows - camera[1, 2]) / camera[1, 1]
    return np.meshgrid(x, y)


def _polynomial(coefficients: Any, square: Array) -> Array:
    """1 + k1 s + k2 s^2 + ..."""
    result = np.zeros_like(square)
    for coefficient in reversed(tuple(coefficients)):
        result = (result + coefficient) * square
    return result + 1
