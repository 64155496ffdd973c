"""Random numbers that are the same bits on every machine and with every NumPy.

NumPy promises the stream of raw words of a bit generator, but not what its distributions make of them. Scenes are
therefore drawn from raw words by operations that IEEE 754 rounds exactly (conversion, addition, multiplication,
division, square root), never by sines, powers or library distributions.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
Vector = tuple[float, float, float]
Matrix = tuple[Vector, Vector, Vector]  # rows


class Draws:
    """A stream of draws that is named by a seed and any number of labels."""

    def __init__(self, *name: object) -> None:
        digest = hashlib.sha256("/".join(map(str, name)).encode()).digest()
        self._bits = np.random.SFC64(int.from_bytes(digest[:16], "little"))

    def unit(self) -> float:
        """Draw a number uniform in [0, 1), a multiple of 2**-53."""
        return float(int(self._bits.random_raw()) >> 11) * 2.0**-53

    def uniform(self, low: float, high: float) -> float:
        """Draw a number uniform in [low, high)."""
        return low + (high - low) * self.unit()

    def skewed(self, low: float, high: float) -> float:
        """Draw a number from ``low`` to ``high``, small ones more frequently (the square of a uniform)."""
        return low + (high - low) * self.unit() ** 2

    def chance(self, probability: float) -> bool:
        """Return True with the given probability."""
        return self.unit() < probability

    def integer(self, low: int, high: int) -> int:
        """Draw a whole number uniform among low..high, both included."""
        return low + int(self.unit() * (high - low + 1))

    def choice(self, items: Sequence[T]) -> T:
        """Return one of the items."""
        return items[self.integer(0, len(items) - 1)]

    def in_ball(self) -> Vector:
        """Draw a point uniform in the unit ball, by rejection."""
        while True:
            x, y, z = (self.uniform(-1, 1) for _ in range(3))
            if x * x + y * y + z * z <= 1:
                return x, y, z

    def heading(self) -> tuple[float, float]:
        """Draw cosine and sine of a uniform angle, by rejection."""
        while True:
            x, y = self.uniform(-1, 1), self.uniform(-1, 1)
            square = x * x + y * y
            if 0.01 < square <= 1:
                length = math.sqrt(square)
                return x / length, y / length

    def bytes(self, *shape: int) -> NDArray[np.uint8]:
        """Draw uniform bytes of the given shape."""
        count = math.prod(shape)
        words = np.atleast_1d(self._bits.random_raw(-(-count // 8)))
        return words.astype("<u8", copy=False).view(np.uint8)[:count].reshape(shape)

    def gaussian(self, *shape: int) -> NDArray[np.float32]:
        """Draw nearly normal numbers of mean 0 and variance 1: sums of four bytes, centred and scaled."""
        total = self.bytes(4, *shape).astype(np.float32)
        return ((total[0] + total[1] + total[2] + total[3]) - np.float32(510.0)) * np.float32(1 / 147.80054)


def normalized(vector: Vector) -> Vector:
    """Return the vector over its length."""
    length = math.sqrt(vector[0] * vector[0] + vector[1] * vector[1] + vector[2] * vector[2])
    return vector[0] / length, vector[1] / length, vector[2] / length


def cross(a: Vector, b: Vector) -> Vector:
    """Return the cross product."""
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def frame(forward: Vector, down: Vector) -> Matrix:
    """Return the rotation with columns right, down, forward: z exactly along ``forward``, y as near to ``down`` as it
    can be."""
    z = normalized(forward)
    x = normalized(cross(down, z))
    y = cross(z, x)
    return (x[0], y[0], z[0]), (x[1], y[1], z[1]), (x[2], y[2], z[2])
