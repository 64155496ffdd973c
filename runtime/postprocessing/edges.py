"""Edge mask: pixels where depth jumps and the surface normal turns (MapAnything inference, edge masking).

Points predicted across an occlusion boundary float between foreground and background. A pixel is dropped when both its
relative depth range in the 3 x 3 neighbourhood and the largest angle between neighbouring normals exceed a threshold.

Three choices make this fast. Normals are computed only around depth jumps: the image is cut into bands of rows, and
the columns of a band that hold a jump, with their surroundings, are joined with those of the other bands in one long
strip. Vectors are stored as planes (3, N) of that strip, in pieces that fit the cache. And no angle is computed: a dot
product is compared with the cosine of the threshold.

The reference takes ``arccos`` of dot products that may round above 1, which gives NaN. Such a pixel drops out of the
final 3 x 3 maximum. This rule and the reference's order of operations are kept: together they cost a fifth of the time
and halve or better the number of pixels that differ from the reference; the rest is rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ..geometry import Array, filled_outside, zero_outside

BAND_ROWS = 8
"""Rows per band: short bands follow the jumps closely, but each needs ``HALO`` more rows on either side."""

MANY = 0.2
"""Share of the pixels that are jumps above which normals of the whole image cost less than those around the jumps."""

PIECE_PIXELS = 131_072
"""Pixels worked on at a time: few enough for the last cache, and so many that calls of NumPy do not count, for between
them threads wait for the interpreter."""

HALO = 3  # a normal reads one pixel further, comparing neighbours one more, the final dilation one more

NORM_GUARD = 1e-12


def edge_mask(
    points: Array,
    depth_z: Array,
    mask: Array,
    *,
    normal_threshold: float = 5.0,
    depth_threshold: float = 0.03,
) -> Array:
    """Return the edge pixels (H, W) bool of one view, among the pixels of ``mask``.

    ``points`` (H, W, 3) in any rigid frame, fastest where each coordinate has a plane of its own in memory, ``depth_z``
    (H, W), ``mask`` (H, W) bool: pixels outside it take no part. ``normal_threshold`` in degrees, ``depth_threshold``
    relative to the pixel's own depth.
    """
    candidates = depth_edges(depth_z, mask, depth_threshold)
    candidates &= mask
    return normal_edges(points, mask, normal_threshold, candidates)


def edge_cosine(threshold: float) -> float:
    """Return the cosine below which two normals enclose more than ``threshold`` degrees; that of 90 is 0."""
    return math.cos(math.radians(threshold)) if threshold < 90 else min(math.cos(math.radians(threshold)), 0.0)


def depth_edges(depth_z: Array, mask: Array, threshold: float) -> Array:
    """Return pixels (H, W) bool whose 3 x 3 neighbours in ``mask`` differ by over ``threshold`` times their depth."""
    spread = _dilate(filled_outside(depth_z, mask, -np.inf), np.maximum)
    spread -= _dilate(filled_outside(depth_z, mask, np.inf), np.minimum)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        spread /= depth_z
        return spread > depth_z.dtype.type(threshold)


def normal_edges(points: Array, mask: Array, threshold: float, candidates: Array | None = None) -> Array:
    """Return pixels (H, W) bool near which neighbouring normals enclose more than ``threshold`` degrees.

    Pixels without a normal (none of their four corner triangles lies in ``mask``) count as perpendicular to every
    neighbour that has one, as in the reference. Only ``candidates`` (H, W) can be edges; without them every pixel can.
    ``points`` as in :func:`edge_mask`.
    """
    height, width = mask.shape
    stride, bands = width + 1, -(-height // BAND_ROWS)
    # One padding column on the right and HALO rows above and below: 0 outside the image, 1 inside, 2 in the mask.
    place = np.zeros((bands * BAND_ROWS + 2 * HALO, stride), np.uint8)
    np.add(mask.view(np.uint8), 1, out=place[HALO : HALO + height, :width])
    if candidates is None or int(np.count_nonzero(candidates)) > MANY * mask.size:
        planes = np.empty((3, *place.shape), points.dtype)
        planes[:, :HALO] = planes[:, HALO + height :] = planes[:, :, width:] = 0
        planes[:, HALO : HALO + height, :width] = np.moveaxis(points, -1, 0)
        found = _near_turns(planes.reshape(3, -1), place.reshape(-1), stride, threshold)[HALO - 2 :][:height, :width]
        return found if candidates is None else found & candidates

    place, flat = place.reshape(-1), [points[..., axis].reshape(-1) for axis in range(3)]
    edges = np.zeros(place.size, bool)
    rows = np.arange(BAND_ROWS + 2 * HALO)[:, None]
    for columns in _strips(candidates, bands):
        index = stride * rows + columns  # (rows, n) into the flat padded image; every run of columns ends with padding
        # The same without padding; what lies outside the image is any pixel, and takes no part.
        pixel = (width * (rows - HALO) + (columns - columns // stride)).reshape(-1)
        strip = np.empty((3, pixel.size), points.dtype)
        for plane, line in zip(flat, strip, strict=True):
            plane.take(pixel, mode="clip", out=line)
        edges[index[HALO:-HALO]] = _near_turns(strip, place.take(index).reshape(-1), columns.size, threshold)[1:-1]
    return edges.reshape(-1, stride)[HALO : HALO + height, :width] & candidates


def surface_normals(points: Array, mask: Array) -> Array:
    """Return the unit normals (H, W, 3) of points (H, W, 3) of one view, in their frame, on the side of the camera.

    As for the edge mask: the mean of the four triangles with two neighbours of ``mask`` (H, W); 0 without any, and
    outside the mask, and where the rays of neighbours cross so that it would turn away. The frame is right-handed, as
    all of this project, and the camera is at its origin.
    """
    height, width = mask.shape
    inside, planes = np.zeros((height + 2, width + 1), bool), np.zeros((3, height + 2, width + 1), points.dtype)
    inside[1:-1, :width] = mask
    planes[:, 1:-1, :width] = np.moveaxis(points, -1, 0)
    size = height * (width + 1)
    normals, valid = np.empty((3, size), points.dtype), np.empty(size, bool)
    for start in range(0, size, PIECE_PIXELS):
        piece = slice(start, min(start + PIECE_PIXELS, size))
        reach = slice(start, piece.stop + 2 * (width + 1))
        flat = planes.reshape(3, -1)[:, reach], inside.reshape(-1)[reach]
        _normals(*flat, width + 1, normals[:, piece], valid[piece])
    result = np.moveaxis(normals.reshape(3, height, width + 1)[:, :, :width], 0, -1).copy()
    # A normal that two equal points make is none.
    seen = np.einsum("hwi,hwi->hw", result, points) < 0
    zero_outside(result, (mask & valid.reshape(height, -1)[:, :width] & seen)[..., None])
    return result


def _strips(candidates: Array, bands: int) -> Iterator[Array]:
    """Yield strips of columns around those with candidates: flat indices of their top pixels in the padded image.

    Each run of neighbouring columns is followed by one padding column, so that runs do not touch.
    """
    height, width = candidates.shape
    active = np.zeros((bands, width), bool)
    whole = height // BAND_ROWS
    np.logical_or.reduce(candidates[: whole * BAND_ROWS].reshape(whole, BAND_ROWS, width), axis=1, out=active[:whole])
    if whole < bands:
        np.logical_or.reduce(candidates[whole * BAND_ROWS :], axis=0, out=active[whole])
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
    top = band * (BAND_ROWS * (width + 1)) + np.where(padding, width, column)
    ends = np.flatnonzero(padding) + 1  # a strip may end after any of these
    start = 0
    while start < top.size:
        fitting = np.searchsorted(ends, start + PIECE_PIXELS // (BAND_ROWS + 2 * HALO), side="right")
        stop = int(ends[max(fitting - 1, np.searchsorted(ends, start, side="right"))])
        yield top[start:stop]
        start = stop


def _near_turns(planes: Array, place: Array, stride: int, threshold: float) -> Array:
    """Return which pixels (rows - 4, stride) bool lie next to a turn: of flat points (3, N) without two outer rows.

    Rows are ``stride`` long and end with padding outside the mask. So a step of 1 or of ``stride`` reaches a neighbour
    or padding, never the far end of another row, and every operation runs over one long contiguous line.
    """
    inside = place == 2
    size = place.size - 2 * stride
    normals, valid = np.empty((3, size), planes.dtype), np.empty(size, bool)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, size, PIECE_PIXELS):
            piece = slice(start, min(start + PIECE_PIXELS, size))
            reach = slice(start, piece.stop + 2 * stride)
            _normals(planes[:, reach], inside[reach], stride, normals[:, piece], valid[piece])
        turning = _turning(normals, valid, stride, threshold)
    turning &= place[stride:-stride] > 0
    return _dilate(turning.reshape(-1, stride), np.logical_or)[1:-1]


def _normals(planes: Array, inside: Array, stride: int, normals: Array, valid: Array) -> None:
    """Compute unit ``normals`` (3, N) of flat points (3, N + 2 stride), and whether there is one, ``valid`` (N).

    Zero where there is none.
    """
    size = valid.size
    vertical, vertical_inside = _differences(planes, inside, stride)  # pixel minus the one above it
    near = np.s_[..., stride - 1 : stride + size + 1]
    horizontal, horizontal_inside = _differences(planes[near], inside[near], 1)  # pixel minus the one to its left
    up, down = np.s_[..., :size], np.s_[..., stride : stride + size]
    left, right = np.s_[..., :size], np.s_[..., 1 : 1 + size]

    other, product, norm = np.empty_like(normals), np.empty_like(normals), np.empty(size, planes.dtype)
    corners = (normals, up, left), (other, down, left), (other, down, right), (other, up, right)
    for cross, v, h in corners:  # all four face the same side
        along, across = vertical[v], horizontal[h]
        np.multiply(along[1:4], across[2:5], out=cross)
        np.multiply(along[2:5], across[1:4], out=product)
        cross -= product
        _normalize(cross, product, norm)
        if cross is other:
            normals += cross
    _normalize(normals, product, norm)
    _normalize(normals, product, norm)  # only changes the last bit, which decides whether a dot product exceeds 1
    np.logical_or(vertical_inside[up], vertical_inside[down], out=valid)
    valid &= horizontal_inside[left] | horizontal_inside[right]


def _differences(planes: Array, inside: Array, step: int) -> tuple[Array, Array]:
    """Return each pixel minus the one ``step`` before it, and whether both are inside.

    Zero where they are not: such a triangle then has a zero cross product and adds nothing. The five planes are x, y,
    z, x, y, so that a cross product is two products of slices.
    """
    both = inside[step:] & inside[:-step]
    result = np.empty((5, both.size), planes.dtype)
    np.subtract(planes[:, step:], planes[:, :-step], out=result[:3])
    if not both.all():
        zero_outside(result[:3], both)
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
    """Return flat pixels, bool, with a valid normal of their eight neighbours at more than ``threshold`` degrees."""
    limit, one = normals.dtype.type(edge_cosine(threshold)), normals.dtype.type(1)
    turning = np.zeros(valid.shape, bool)
    undefined = np.zeros(valid.shape, bool)  # where a dot product is above 1, so both of its normals are valid
    for start in range(0, valid.size, PIECE_PIXELS):
        here = slice(start, min(start + PIECE_PIXELS, valid.size))
        undefined[here] |= _dot(normals[:, here], normals[:, here]) > one  # with itself, it counts too
        # Four of the eight directions: each dot product serves both of its pixels, if the other one has a normal.
        for step in (1, stride - 1, stride, stride + 1):
            there = slice(start + step, min(here.stop + step, valid.size))
            if there.start >= there.stop:
                continue
            first = slice(start, start + there.stop - there.start)
            dot = _dot(normals[:, first], normals[:, there])
            apart, above = dot < limit, dot > one
            turning[first] |= apart & valid[there]
            turning[there] |= apart & valid[first]
            undefined[first] |= above
            undefined[there] |= above
    return turning & ~undefined


def _dot(a: Array, b: Array) -> Array:
    """Return the dot products (N) of vectors (3, N), summed in the order x, y, z."""
    products = a * b
    products[0] += products[1]
    products[0] += products[2]
    return products[0]


def _dilate(plane: Array, combine: np.ufunc) -> Array:
    """Apply ``combine`` (maximum, minimum, logical or) over the 3 x 3 neighbourhood, cut at the border."""
    rows = _with_neighbours(plane, np.empty_like(plane), combine)
    return _with_neighbours(rows.T, np.empty_like(plane).T, combine).T


def _with_neighbours(plane: Array, result: Array, combine: np.ufunc) -> Array:
    """Fill ``result`` with every row combined with the two beside it, and return it."""
    if len(plane) == 1:
        result[...] = plane
        return result
    pairs = combine(plane[:-1], plane[1:])
    result[0], result[-1] = pairs[0], pairs[-1]
    combine(pairs[:-1], pairs[1:], out=result[1:-1])
    return result
