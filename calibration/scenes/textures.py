"""A bank of tileable grey textures with detail at several scales, and their filtered look-up.

Patterns are made once per process from a fixed seed; a scene picks among them and brings its own colours and sizes.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .draws import Draws

Array = NDArray[np.float32]

SIDE = 256
"""Texels along a side of the finest level."""
LEVELS = 7
"""Levels of the pyramid, each half as wide as the one before: 256 to 4 texels."""

_SIZES = [SIDE >> level for level in range(LEVELS)]
_OFFSETS = np.cumsum([0, *(size * size for size in _SIZES)]).astype(np.int32)


class Bank(NamedTuple):
    """All textures: ``texels`` (textures * pyramid,) uint8, one pyramid after the other."""

    texels: NDArray[np.uint8]
    textures: int


@functools.lru_cache(maxsize=1)
def texture_bank() -> Bank:
    """Return the textures, the same bits on every machine."""
    patterns = [
        _noise(1, (4, 8, 16, 32), 0.6),
        _noise(2, (8, 16, 32, 64), 0.7),
        _noise(3, (16, 32, 64, 128), 0.8),
        _threshold(_noise(4, (4, 8, 16, 32, 64), 0.6), 0.5),
        _threshold(_noise(5, (8, 16, 32), 0.5), 0.55),
        _ridges(_noise(6, (4, 8, 16, 32), 0.6)),
        _grain(7),
        _bricks(8, 8, 16),
        _bricks(9, 4, 6),
        _tiles(10, 8),
        _tiles(11, 16),
        _rectangles(12, 40),
        _rectangles(13, 160),
        _discs(14, 60),
        _cells(15, 40),
        _cells(16, 150),
        _stripes(17, 12),
        _stripes(18, 32),
        _checks(19, 8),
        _speckle(20),
    ]
    pyramids = []
    for pattern in patterns:
        level = np.clip(pattern, 0, 1).astype(np.float32)
        for _ in range(LEVELS):
            pyramids.append(np.rint(level * np.float32(255)).astype(np.uint8).reshape(-1))
            level = (level[::2, ::2] + level[1::2, ::2] + level[::2, 1::2] + level[1::2, 1::2]) * np.float32(0.25)
    return Bank(np.concatenate(pyramids), len(patterns))


def sample(texture: NDArray[np.int32], u: Array, v: Array, footprint: Array) -> Array:
    """Return values in [0, 1] of textures at (u, v), bilinear within the level whose texels match a pixel's footprint.

    Args:
        texture: (N,) number of the texture.
        u, v: (N,) coordinates; one unit is the whole texture, which repeats.
        footprint: (N,) how many texels of the finest level a pixel covers.
    """
    level = np.clip(np.frexp(np.maximum(footprint, np.float32(1e-6)))[1], 0, LEVELS - 1)  # exponent: floor(log2) + 1
    size = np.right_shift(np.int32(SIDE), level)
    scale = size.astype(np.float32)
    # The fraction first: far from the origin float32 has no digits left for it.
    x = (u - np.floor(u)) * scale - np.float32(0.5)
    y = (v - np.floor(v)) * scale - np.float32(0.5)
    left, top = np.floor(x), np.floor(y)
    a, b = x - left, y - top
    last = size - 1
    i, j = left.astype(np.int32), top.astype(np.int32)
    i0, i1 = i & last, (i + 1) & last
    start = texture * _OFFSETS[-1] + _OFFSETS[level]
    j0, j1 = start + (j & last) * size, start + ((j + 1) & last) * size
    texels = texture_bank().texels
    upper = texels[j0 + i0] * (1 - a) + texels[j0 + i1] * a
    lower = texels[j1 + i0] * (1 - a) + texels[j1 + i1] * a
    return (upper * (1 - b) + lower * b) * np.float32(1 / 255)


# ---- patterns, (SIDE, SIDE) float32, periodic -----------------------------------------------------------------------


def _grid() -> tuple[Array, Array]:
    rows, columns = np.indices((SIDE, SIDE), dtype=np.float32)
    return columns, rows


def _lattice(draws: Draws, rows: int, columns: int) -> Array:
    return draws.bytes(rows, columns).astype(np.float32) * np.float32(1 / 255)


def _upsampled(values: Array) -> Array:
    """Return a lattice brought to SIDE x SIDE with smooth interpolation that wraps around."""
    for axis in (0, 1):
        count = values.shape[axis]
        position = (np.arange(SIDE, dtype=np.float32) + np.float32(0.5)) * np.float32(count / SIDE)
        cell = np.floor(position)
        t = position - cell
        t = t * t * (3 - 2 * t)
        index = cell.astype(np.intp) % count
        t = t[:, None] if axis == 0 else t[None, :]
        values = np.take(values, index, axis) * (1 - t) + np.take(values, (index + 1) % count, axis) * t
    return values


def _noise(seed: int, cells: tuple[int, ...], persistence: float) -> Array:
    """Make value noise: a sum of octaves of falling strength, stretched to [0, 1]."""
    draws = Draws("texture", seed)
    total = np.zeros((SIDE, SIDE), np.float32)
    strength = np.float32(1)
    for count in cells:
        total += strength * _upsampled(_lattice(draws, count, count))
        strength *= np.float32(persistence)
    low, high = total.min(), total.max()
    return (total - low) / (high - low)


def _threshold(field: Array, at: float) -> Array:
    return np.clip((field - np.float32(at)) * 24 + np.float32(0.5), 0, 1)


def _ridges(field: Array) -> Array:
    wave = np.abs((field * 5) % 1 - np.float32(0.5)) * 2
    return wave * wave


def _grain(seed: int) -> Array:
    draws = Draws("texture", seed)
    long = _upsampled(_lattice(draws, 64, 4)) * np.float32(0.6) + _upsampled(_lattice(draws, 128, 8)) * np.float32(0.4)
    return np.clip(long * np.float32(1.4) - np.float32(0.2), 0, 1)


def _bricks(seed: int, across: int, down: int) -> Array:
    draws = Draws("texture", seed)
    tone = _lattice(draws, down, across) * np.float32(0.5) + np.float32(0.45)
    x, y = _grid()
    row = np.floor(y * np.float32(down / SIDE)).astype(np.intp)
    shifted = x * np.float32(across / SIDE) + (row % 2) * np.float32(0.5)
    column = np.floor(shifted).astype(np.intp) % across
    within = shifted - np.floor(shifted)
    height = y * np.float32(down / SIDE) - row
    mortar = (within < np.float32(0.06)) | (height < np.float32(0.06 * down / across))
    rough = _upsampled(_lattice(draws, 64, 64)) * np.float32(0.2) - np.float32(0.1)
    return np.where(mortar, np.float32(0.1), tone[row, column] + rough)


def _tiles(seed: int, count: int) -> Array:
    draws = Draws("texture", seed)
    tone = _lattice(draws, count, count)
    x, y = _grid()
    cell = np.float32(count / SIDE)
    row, column = np.floor(y * cell).astype(np.intp), np.floor(x * cell).astype(np.intp)
    return tone[row, column] * np.float32(0.8) + _upsampled(_lattice(draws, 128, 128)) * np.float32(0.2)


def _rectangles(seed: int, count: int) -> Array:
    draws = Draws("texture", seed)
    picture = np.full((SIDE, SIDE), np.float32(0.5))
    for _ in range(count):
        width, height = draws.integer(6, SIDE // 3), draws.integer(6, SIDE // 3)
        rows = (draws.integer(0, SIDE - 1) + np.arange(height)) % SIDE
        columns = (draws.integer(0, SIDE - 1) + np.arange(width)) % SIDE
        picture[np.ix_(rows, columns)] = np.float32(draws.unit())
    return picture * np.float32(0.85) + _upsampled(_lattice(draws, 64, 64)) * np.float32(0.15)


def _wrapped(distance: Array) -> Array:
    return np.minimum(np.abs(distance), SIDE - np.abs(distance))


def _discs(seed: int, count: int) -> Array:
    draws = Draws("texture", seed)
    x, y = _grid()
    picture = _upsampled(_lattice(draws, 32, 32)) * np.float32(0.3)
    for _ in range(count):
        dx, dy = (_wrapped(axis - np.float32(draws.uniform(0, SIDE))) for axis in (x, y))
        radius = np.float32(draws.uniform(4, 28))
        square = dx * dx + dy * dy
        tone = np.float32(draws.uniform(0.1, 1))
        picture = np.where(square < radius * radius, tone, picture)
        picture = np.where((square < radius * radius) & (square > radius * radius * np.float32(0.6)), 1 - tone, picture)
    return picture


def _cells(seed: int, count: int) -> Array:
    """Make cells: distances to the nearest of random points (Worley noise), a tone per cell and dark borders."""
    draws = Draws("texture", seed)
    x, y = _grid()
    first = np.full((SIDE, SIDE), np.float32(1e9))
    second = first.copy()
    tone = np.zeros_like(first)
    for _ in range(count):
        dx, dy = (_wrapped(axis - np.float32(draws.uniform(0, SIDE))) for axis in (x, y))
        square = dx * dx + dy * dy
        tone = np.where(square < first, np.float32(draws.uniform(0.2, 1)), tone)
        second = np.minimum(second, np.maximum(first, square))
        first = np.minimum(first, square)
    border = np.sqrt(second) - np.sqrt(first) < 3
    return np.where(border, np.float32(0), tone)


def _stripes(seed: int, count: int) -> Array:
    draws = Draws("texture", seed)
    tone = _lattice(draws, 1, count)[0]
    x, _ = _grid()
    column = np.floor(x * np.float32(count / SIDE)).astype(np.intp)
    return tone[column] * np.float32(0.85) + _upsampled(_lattice(draws, 64, 64)) * np.float32(0.15)


def _checks(seed: int, count: int) -> Array:
    draws = Draws("texture", seed)
    x, y = _grid()
    cell = np.float32(count / SIDE)
    odd = (np.floor(x * cell) + np.floor(y * cell)) % 2
    return odd * np.float32(0.75) + _upsampled(_lattice(draws, 32, 32)) * np.float32(0.25)


def _speckle(seed: int) -> Array:
    draws = Draws("texture", seed)
    fine = _upsampled(_lattice(draws, 128, 128))
    return np.clip((fine - np.float32(0.5)) * 3 + np.float32(0.5), 0, 1)
