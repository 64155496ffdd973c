"""The size that the views of one call are brought to.

All views of a call share one size, chosen from their mean aspect ratio (MapAnything inference, image loading). The
tables hold the sizes the networks were trained at; each is close to one aspect ratio and fixes the longer side.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..bundle.requests import PATCH_SIZE, ServedRequests, rounded_to_patches
from ..errors import ImageSizeError, InputError

Size = tuple[int, int]
"""(W, H) in pixels."""

RESIZE_MODES = ("fixed_mapping", "longest_side", "square", "fixed_size")

# Aspect ratio W/H -> (W, H). The keys are rounded, so they are written down and not computed: a key that differs in
# the fourth decimal moves the border between two sizes.
RESOLUTION_TABLES: dict[int, dict[float, Size]] = {
    518: {
        0.486: (252, 518),
        0.567: (294, 518),
        0.649: (336, 518),
        0.757: (392, 518),
        1.000: (518, 518),
        1.321: (518, 392),
        1.542: (518, 336),
        1.762: (518, 294),
        2.056: (518, 252),
        3.083: (518, 168),
    },
    512: {
        0.500: (256, 512),
        0.562: (288, 512),
        0.656: (336, 512),
        0.750: (384, 512),
        1.000: (512, 512),
        1.333: (512, 384),
        1.524: (512, 336),
        1.778: (512, 288),
        2.000: (512, 256),
        3.200: (512, 160),
    },
    504: {
        0.472: (238, 504),
        0.556: (280, 504),
        0.639: (322, 504),
        0.750: (378, 504),
        1.000: (504, 504),
        1.333: (504, 378),
        1.565: (504, 322),
        1.800: (504, 280),
        2.118: (504, 238),
        3.273: (504, 154),
    },
}


def target_size(
    aspect_ratios: Iterable[float],
    resize_mode: str = "fixed_mapping",
    size: int | tuple[int, int] | None = None,
    patch_size: int = 14,
    resolution_set: int = 518,
) -> Size:
    """Return the common (W, H) in pixels for views of the given aspect ratios W/H.

    Modes:
        ``fixed_mapping``: the entry of table ``resolution_set`` whose key is nearest to the mean aspect ratio (the
            smaller key on a tie). ``size`` and ``patch_size`` are not used.
        ``longest_side``: the longer side is ``size``, the other follows the mean aspect ratio, rounded to a multiple
            of ``patch_size``. As in upstream ``size`` itself is not rounded: pass a multiple of ``patch_size``.
        ``square``: ``size`` x ``size``, rounded down to a multiple of ``patch_size``.
        ``fixed_size``: ``size`` = (W, H), each rounded down to a multiple of ``patch_size``.

    Raises:
        InputError: no views, an aspect ratio that is not positive and finite, an unknown mode or resolution set, or a
            size that is missing, of the wrong type, or smaller than one patch.
    """
    ratios = [float(ratio) for ratio in aspect_ratios]
    if not ratios:
        raise InputError("no views to choose a size for; pass at least one image")
    if not all(math.isfinite(ratio) and ratio > 0 for ratio in ratios):
        raise InputError(f"aspect ratios must be positive and finite, got {ratios}")
    mean_ratio = sum(ratios) / len(ratios)
    patch = positive_int(patch_size, "patch_size")

    if resize_mode == "fixed_mapping":
        return _nearest_in_table(mean_ratio, resolution_set)
    if resize_mode not in RESIZE_MODES:
        raise InputError(f"unknown resize_mode {resize_mode!r}; choose one of {', '.join(RESIZE_MODES)}")
    if size is None:
        raise InputError(f'resize_mode "{resize_mode}" needs a size; pass size={_size_hint(resize_mode)}')

    if resize_mode == "fixed_size":
        if not isinstance(size, (tuple, list)) or len(size) != 2:
            raise InputError(f'resize_mode "fixed_size" needs size=(width, height), got size={size!r}')
        result = _down(positive_int(size[0], "size[0]"), patch), _down(positive_int(size[1], "size[1]"), patch)
    elif resize_mode == "square":
        side = _down(positive_int(size, "size"), patch)
        result = side, side
    else:
        result = _longest_side(positive_int(size, "size"), mean_ratio, patch)
    if min(result) < 1:
        raise InputError(
            f'size={size!r} with resize_mode "{resize_mode}", patch_size={patch} and a mean aspect ratio of '
            f"{mean_ratio:.4g} leaves no pixel ({result[0]}x{result[1]}); choose a larger size"
        )
    return result


def served_size(requests: ServedRequests, aspect_ratios: Sequence[float]) -> Size:
    """Return the common (W, H) in pixels for views of the given aspect ratios W/H that a bundle serves: the nearest of
    those that were built, or of MapAnything's own table.

    Raises:
        InputError: as :func:`target_size`.
    """
    return requests.nearest_size(sum(aspect_ratios) / len(aspect_ratios)) or target_size(aspect_ratios)


def positive_int(value: Any, name: str) -> int:
    """Return ``value`` as an int; InputError unless it is a whole number above zero (bool and float are refused)."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if isinstance(value, bool) or number < 1:
        raise InputError(f"{name} must be a positive whole number, got {value!r}")
    return number


def _nearest_in_table(ratio: float, resolution_set: int) -> Size:
    table = RESOLUTION_TABLES.get(resolution_set) if isinstance(resolution_set, int) else None
    if table is None:
        known = ", ".join(str(name) for name in RESOLUTION_TABLES)
        raise InputError(f"unknown resolution_set {resolution_set!r}; choose one of {known}")
    # min() keeps the first of equal distances and the keys ascend, so the smaller key wins a tie.
    return table[min(table, key=lambda key: abs(key - ratio))]


def _longest_side(side: int, ratio: float, patch: int) -> Size:
    patches = side // patch
    if ratio >= 1:
        return side, round(patches / ratio) * patch
    return round(patches * ratio) * patch, side


def _down(value: int, patch: int) -> int:
    return value // patch * patch


def _size_hint(resize_mode: str) -> str:
    return "(width, height)" if resize_mode == "fixed_size" else "an int"


def checked_size(size: Any, requests: ServedRequests) -> tuple[int, int]:
    """(width, height) as plain integers that the bundle serves."""
    sides = list(size) if isinstance(size, tuple | list) else []
    if len(sides) != 2 or any(not isinstance(s, int | np.integer) or isinstance(s, bool) or s < 1 for s in sides):
        raise InputError(f"size is {size!r}; give (width, height) in pixels")
    width, height = int(sides[0]), int(sides[1])
    near = rounded_to_patches(width, height)
    if (width, height) != near:
        raise ImageSizeError(f"size {width}x{height} is not a multiple of {PATCH_SIZE}; the nearest is {near}")
    requests.check(requests.views.min, height, width)
    return width, height
