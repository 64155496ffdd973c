"""The edge mask of commit 39c1548, see ``mapengine.runtime.postprocessing.edges``."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from mapengine.runtime.geometry import Array

BAND_ROWS = (12, 48)
"""Rows per band where jumps are few and where they are many: short bands follow the jumps closely, but each needs
``HALO`` more rows on either side."""

MANY = 0.2  # share of the pixels

PIECE_PIXELS = 32_768
"""Pixels worked on at a time: about twenty float32 planes of them stay within a 2 MiB cache."""

HALO = 3  # a normal reads one pixel further, comparing neighbours one more, the final dilation one more

NORM_GUARD = 1e-12


def edge_mask(
    points: Array, depth_z: Array, mask: Array, *, normal_threshold: float = 5.0, depth_threshold: float = 0.03
) -> Array:
    """Return the edge pixels (H, W) bool of one view, among the pixels of ``mask``.

    ``points`` (H, W, 3) in any rigid frame, ``depth_z`` (H, W), ``mask`` (H, W) bool: pixels outside it take no part.
    ``normal_threshold`` in degrees, ``depth_threshold`` relative to the pixel's own depth.
    """
    candidates = depth_edges(depth_z, mask, depth_threshold)
    candidates &= mask
    return normal_edges(points, mask, normal_threshold, candidates)


def depth_edges(depth_z: Array, mask: Array, threshold: float) -> Array:
    """Return pixels (H, W) bool whose 3 x 3 neighbours in ``mask`` differ by over ``threshold`` times their depth."""
    infinity = depth_z.dtype.type(np.inf)
    spread = _dilate(np.where(mask, depth_z, -infinity), np.maximum)
    spread -= _dilate(np.where(mask, depth_z, infinity), np.minimum)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        spread /= depth_z
        return spread > depth_z.dtype.type(threshold)


def normal_edges(points: Array, mask: Array, threshold: float, candidates: Array | None = None) -> Array:
    """Return pixels (H, W) bool near which neighbouring normals enclose more than ``threshold`` degrees.

    Pixels without a normal (none of their four corner triangles lies in ``mask``) count as perpendicular to every
    neighbour that has one, as in the reference. Only ``candidates`` (H, W) can be edges; without them every pixel can.
    """
    height, width = mask.shape
    few = candidates is not None and int(np.count_nonzero(candidates)) <= MANY * mask.size
    band_rows = BAND_ROWS[0 if few else 1]
    stride, bands = width + 1, -(-height // band_rows)
    wanted: Array = np.zeros((bands * band_rows, width), bool)
    wanted[:height] = True if candidates is None else candidates
    # One padding column on the right and HALO rows above and below: 0 outside the image, 1 inside, 2 in the mask.
    place = np.zeros((len(wanted) + 2 * HALO, stride), np.uint8)
    np.add(mask, 1, out=place[HALO : HALO + height, :width], casting="unsafe")
    planes = np.zeros((3, *place.shape), points.dtype)
    for axis in range(3):
        planes[axis, HALO : HALO + height, :width] = points[..., axis]
    planes, place = planes.reshape(3, -1), place.reshape(-1)

    edges = np.zeros(place.size, bool)
    rows = stride * np.arange(band_rows + 2 * HALO)[:, None]
    active = np.logical_or.reduce(wanted.reshape(bands, band_rows, width), axis=1)
    for columns in _strips(active, band_rows):
        index = rows + columns  # (rows, n) into the flat padded image; every run of columns ends with padding
        where = place[index]
        strip = np.empty((3, index.size), points.dtype)
        for plane, part in zip(planes, strip, strict=True):
            plane.take(index.reshape(-1), out=part, mode="clip")  # clip: the only mode that needs no copy
        with np.errstate(over="ignore", invalid="ignore"):
            normals, valid = _normals(strip, where.reshape(-1) == 2, columns.size)
            turning = _turning(normals, valid, columns.size, threshold).reshape(-1, columns.size)
        turning &= where[1:-1] > 0
        edges[index[HALO:-HALO]] = _dilate(turning, np.logical_or)[2:-2]
    result = edges.reshape(-1, stride)[HALO : HALO + height, :width]
    return result & wanted[:height]


def _strips(active: Array, band_rows: int) -> Iterator[Array]:
    """Yield strips of columns around the active ones (bands, W): flat indices of their top pixels in the padded image.

    Each run of neighbouring columns is followed by one padding column, so that runs do not touch.
    """
    bands, width = active.shape
    used = np.zeros((bands, width + 1), bool)
    for shift in range(-HALO, HALO + 1):
        target, source = max(shift, 0), max(-shift, 0)
        used[:, target : width - source] |= active[:, source : width - target]
    used = used.reshape(-1)
    kept = used.copy()
    kept[1:] |= used[:-1]
    slots = np.flatnonzero(kept)
    padding = ~used[slots]
    band, column = np.divmod(slots, width + 1)
    top = band * (band_rows * (width + 1)) + np.where(padding, width, column)
    ends = np.flatnonzero(padding) + 1  # a strip may end after any of these
    start = 0
    while start < top.size:
        fitting = np.searchsorted(ends, start + PIECE_PIXELS // (band_rows + 2 * HALO), side="right")
        stop = int(ends[max(fitting - 1, np.searchsorted(ends, start, side="right"))])
        yield top[start:stop]
        start = stop


def _normals(planes: Array, inside: Array, stride: int) -> tuple[Array, Array]:
    """Return unit normals (3, N - 2 stride) of a flat strip (3, N) without its outer rows, and where there is one.

    Zero where there is none. Rows are ``stride`` long and end with padding outside the mask. So a step of 1 or of
    ``stride`` reaches a neighbour or padding, never the far end of another row, and every operation runs over one long
    contiguous line.
    """
    vertical, vertical_inside = _differences(planes, inside, stride)  # pixel minus the one above it
    horizontal, horizontal_inside = _differences(planes, inside, 1)  # pixel minus the one to its left
    size = inside.size - 2 * stride
    up, down = np.s_[..., :size], np.s_[..., stride : stride + size]
    left, right = np.s_[..., stride - 1 : stride - 1 + size], np.s_[..., stride : stride + size]

    total = np.zeros((3, size), planes.dtype)
    cross, product, norm = np.empty_like(total), np.empty_like(total), np.empty(size, planes.dtype)
    for v, h in ((up, left), (down, left), (down, right), (up, right)):  # all four face the same side
        along, across = vertical[v], horizontal[h]
        np.multiply(along[1:4], across[2:5], out=cross)
        np.multiply(along[2:5], across[1:4], out=product)
        cross -= product
        _normalize(cross, product, norm)
        total += cross
    _normalize(total, product, norm)
    _normalize(total, product, norm)  # only changes the last bit, which decides whether a dot product exceeds 1
    valid = vertical_inside[up] | vertical_inside[down]
    valid &= horizontal_inside[left] | horizontal_inside[right]
    return total, valid


def _differences(planes: Array, inside: Array, step: int) -> tuple[Array, Array]:
    """Return each pixel minus the one ``step`` before it, and whether both are inside.

    Zero where they are not: such a triangle then has a zero cross product and adds nothing. The five planes are x, y,
    z, x, y, so that a cross product is two products of slices.
    """
    both = inside[step:] & inside[:-step]
    result = np.empty((5, both.size), planes.dtype)
    np.subtract(planes[:, step:], planes[:, :-step], out=result[:3])
    zero_outside(result[:3], both)
    result[3:] = result[:2]
    return result, both


def zero_outside(values: Array, mask: Array) -> None:
    """Set values to 0 in place where ``mask`` (broadcast) is False: a product that also clears infinity and NaN."""
    bits = np.dtype(f"i{values.itemsize}")
    view = values.view(bits)
    view &= -mask.astype(bits)  # all ones or all zeros


def _normalize(planes: Array, squares: Array, norm: Array) -> None:
    """Divide vectors (3, N) by their length in place; ``squares`` and ``norm`` are scratch."""
    np.multiply(planes, planes, out=squares)
    np.add(squares[0], squares[1], out=norm)
    norm += squares[2]
    np.sqrt(norm, out=norm)
    norm += norm.dtype.type(NORM_GUARD)
    planes /= norm


def _turning(normals: Array, valid: Array, stride: int, threshold: float) -> Array:
    """Return flat pixels, bool, with a valid normal of their eight neighbours at more than ``threshold`` degrees."""
    cosine = math.cos(math.radians(threshold)) if threshold < 90 else min(math.cos(math.radians(threshold)), 0.0)
    limit, one = normals.dtype.type(cosine), normals.dtype.type(1)
    turning = np.zeros(valid.shape, bool)
    undefined = (_dot(normals, normals) > one) & valid  # a normal with itself counts too
    # Four of the eight directions: each dot product serves both of its pixels, if the other one has a normal.
    for step in (1, stride - 1, stride, stride + 1):
        dot = _dot(normals[:, :-step], normals[:, step:])
        apart, above = dot < limit, dot > one
        turning[:-step] |= apart & valid[step:]
        turning[step:] |= apart & valid[:-step]
        undefined[:-step] |= above & valid[step:]
        undefined[step:] |= above & valid[:-step]
    return turning & ~undefined


def _dot(a: Array, b: Array) -> Array:
    """Return the dot products (N) of vectors (3, N), summed in the order x, y, z."""
    products = a * b
    products[0] += products[1]
    products[0] += products[2]
    return products[0]


def _dilate(plane: Array, combine: np.ufunc) -> Array:
    """Apply ``combine`` (maximum, minimum, logical or) over the 3 x 3 neighbourhood, cut at the border."""
    rows = plane.copy()
    combine(rows[1:], plane[:-1], out=rows[1:])
    combine(rows[:-1], plane[1:], out=rows[:-1])
    result = rows.copy()
    combine(result[:, 1:], rows[:, :-1], out=result[:, 1:])
    combine(result[:, :-1], rows[:, 1:], out=result[:, :-1])
    return result
