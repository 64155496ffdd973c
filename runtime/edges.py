"""Edge mask: pixels where depth jumps and the surface normal turns (MapAnything inference, edge masking).

Points predicted across an occlusion boundary float between foreground and background. A pixel is dropped when both its
relative depth range in the 3 x 3 neighbourhood and the largest angle between neighbouring normals exceed a threshold.

Three choices make this fast: vectors live as planes (3, rows, W), in bands of rows that fit the cache; angles are never
formed, a dot product is compared with the cosine of the threshold; and rows without a depth jump are skipped.

The reference takes ``arccos`` of dot products that may round above 1, which gives NaN. Such a pixel drops out of the
final 3 x 3 maximum. This rule is kept, and with it the reference's order of operations, because both together cost a
fifth of the time and halve or better the number of pixels that differ from the reference; what is left is rounding.
"""

from __future__ import annotations

import math

import numpy as np

from .geometry import Array

BAND_ROWS = 32
"""Rows per band: about twenty float32 planes of a 518-pixel-wide band stay within a 2 MiB cache."""

HALO_ROWS = 3  # a normal reads one row further, comparing neighbours one more, the final dilation one more

NORM_GUARD = 1e-12


def edge_mask(
    points: Array, depth_z: Array, mask: Array, *, normal_threshold: float = 5.0, depth_threshold: float = 0.03
) -> Array:
    """Edge pixels (H, W) bool of one view, among the pixels of ``mask``.

    ``points`` (H, W, 3) in any rigid frame, ``depth_z`` (H, W), ``mask`` (H, W) bool: pixels outside it take no part.
    ``normal_threshold`` in degrees, ``depth_threshold`` relative to the pixel's own depth.
    """
    candidates = depth_edges(depth_z, mask, depth_threshold)
    candidates &= mask
    return normal_edges(points, mask, normal_threshold, candidates)


def depth_edges(depth_z: Array, mask: Array, threshold: float) -> Array:
    """Pixels (H, W) bool whose 3 x 3 neighbours in ``mask`` differ in depth by more than threshold times their own."""
    infinity = depth_z.dtype.type(np.inf)
    spread = _dilate(np.where(mask, depth_z, -infinity), np.maximum)
    spread -= _dilate(np.where(mask, depth_z, infinity), np.minimum)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        spread /= depth_z
        return spread > depth_z.dtype.type(threshold)


def normal_edges(points: Array, mask: Array, threshold: float, candidates: Array | None = None) -> Array:
    """Pixels (H, W) bool near which neighbouring normals enclose more than ``threshold`` degrees.

    Pixels without a normal (none of their four corner triangles lies in ``mask``) count as perpendicular to every
    neighbour that has one, as in the reference. Only ``candidates`` (H, W) can be edges; without them every pixel can.
    """
    height, width = mask.shape
    edges = np.zeros((height, width), bool)
    for start in range(0, height, BAND_ROWS):
        stop = min(start + BAND_ROWS, height)
        left, right = 0, width
        if candidates is not None:
            columns = np.flatnonzero(candidates[start:stop].any(axis=0))
            if columns.size == 0:
                continue
            left, right = int(columns[0]), int(columns[-1]) + 1
        # The window with its halo, cut at the image's border.
        top, bottom = max(start - HALO_ROWS, 0), min(stop + HALO_ROWS, height)
        first, last = max(left - HALO_ROWS, 0), min(right + HALO_ROWS, width)
        window = np.s_[top:bottom, first:last]
        with np.errstate(over="ignore", invalid="ignore"):
            normals, valid = _normals(points[window], mask[window])
            turning = _turning(normals, valid, last - first + 1, threshold)
        turning = turning.reshape(bottom - top, -1)[:, :-1]
        inner = np.s_[start - top : stop - top, left - first : right - first]
        edges[start:stop, left:right] = _dilate(turning, np.logical_or)[inner]
    if candidates is not None:
        edges &= candidates
    return edges


def _normals(points: Array, mask: Array) -> tuple[Array, Array]:
    """Unit normals as flat planes (3, R * (W + 1)), zero where there is none, and where there is one.

    Each row ends with one padding pixel outside the mask. So a step of 1 or of W + 1 in the flat order reaches a
    neighbour or padding, never the far end of another row, and every operation runs over one long contiguous line.
    """
    rows, width = mask.shape
    stride = width + 1
    inside = np.zeros((rows + 2, stride), bool)  # and a padding row above and below
    inside[1:-1, :-1] = mask
    inside = inside.reshape(-1)
    planes = np.zeros((3, rows + 2, stride), points.dtype)
    for axis in range(3):
        planes[axis, 1:-1, :-1] = points[..., axis]
    planes = planes.reshape(3, -1)
    vertical, vertical_inside = _differences(planes, inside, stride)  # pixel minus the one above it
    horizontal, horizontal_inside = _differences(planes, inside, 1)  # pixel minus the one to its left
    size = rows * stride
    up, down = np.s_[..., :size], np.s_[..., stride : stride + size]
    left, right = np.s_[..., stride - 1 : stride - 1 + size], np.s_[..., stride : stride + size]

    total = np.zeros((3, size), points.dtype)
    cross, product, norm = np.empty_like(total), np.empty_like(total), np.empty(size, points.dtype)
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
    """Pixel minus the pixel ``step`` before it, and whether both are inside.

    Zero where they are not: such a triangle then has a zero cross product and adds nothing. The five planes are x, y,
    z, x, y, so that a cross product is two products of slices.
    """
    both = inside[step:] & inside[:-step]
    result = np.empty((5, both.size), planes.dtype)
    np.subtract(planes[:, step:], planes[:, :-step], out=result[:3])
    result[:3] *= both.astype(planes.dtype)
    result[3:] = result[:2]
    return result, both


def _normalize(planes: Array, squares: Array, norm: Array) -> None:
    """Divide vectors (3, N) by their length in place; ``squares`` and ``norm`` are scratch."""
    np.multiply(planes, planes, out=squares)
    np.add(squares[0], squares[1], out=norm)
    norm += squares[2]
    np.sqrt(norm, out=norm)
    norm += norm.dtype.type(NORM_GUARD)
    planes /= norm


def _turning(normals: Array, valid: Array, stride: int, threshold: float) -> Array:
    """Flat pixels, bool, with one of their eight neighbours' valid normals at more than ``threshold`` degrees."""
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
    """Dot products (N) of vectors (3, N), summed in the order x, y, z."""
    products = a * b
    products[0] += products[1]
    products[0] += products[2]
    return products[0]


def _dilate(plane: Array, combine: np.ufunc) -> Array:
    """``combine`` (maximum, minimum, logical or) over the 3 x 3 neighbourhood, cut at the border."""
    rows = plane.copy()
    combine(rows[1:], plane[:-1], out=rows[1:])
    combine(rows[:-1], plane[1:], out=rows[:-1])
    result = rows.copy()
    combine(result[:, 1:], rows[:, :-1], out=result[:, 1:])
    combine(result[:, :-1], rows[:, 1:], out=result[:, :-1])
    return result
