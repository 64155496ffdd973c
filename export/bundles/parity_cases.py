"""Small inputs that exercise every modality, for the golden file and the measured parity of a bundle."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from mapengine.calibration.data.samples import sample_views
from mapengine.runtime import preprocess_inputs
from mapengine.runtime.bundle.requests import AnySize, Range, ServedRequests

Views = list[dict[str, Any]]

GOLDEN = "golden"
"""Name of the golden input among the cases."""
GOLDEN_SIZE = (84, 56)
PARITY_SIZE = (140, 112)
"""(width, height) in pixels: patch grids with an even and an odd side, and none that is square."""


_SMALLEST_SIDE = 28
_LONGEST_SHAPE = 2  # longer side over shorter side


def sample_inputs(size: tuple[int, int], given: Iterable[str], data_norm_type: str, metric: bool = True) -> Views:
    """Return prepared views of the sample scene, one per entry of ``given``.

    An entry says what is known of its view: letters of k (camera), d (depth), p (pose).
    """
    # Narrow views have little in common, so the middle of wider ones is cut out.
    least = max(_SMALLEST_SIDE, -(-max(size) // _LONGEST_SHAPE))
    width, height = (max(side, least) for side in size)
    known = list(given)
    raw = []
    for sample, letters in zip(sample_views(len(known), width=width, height=height), known, strict=True):
        view: dict[str, Any] = {"img": sample.image}
        if "k" in letters:
            view["intrinsics"] = sample.intrinsics
        if "d" in letters:
            view["depth_z"] = sample.depth_z
        if "p" in letters:
            view["camera_poses"] = sample.pose
        if letters and not metric:
            view["is_metric_scale"] = np.array([False])
        raw.append(view)
    return preprocess_inputs(raw, resize_mode="fixed_size", size=size, norm_type=data_norm_type)


def golden_views(data_norm_type: str, size: tuple[int, int] = GOLDEN_SIZE, counts: Range | None = None) -> Views:
    """Return three views, or as near to three as ``counts`` allows, that together use every modality.

    The last of three or more has its image only; ``size`` is (width, height) in pixels.
    """
    views = 3 if counts is None else min(max(3, counts.min), counts.max)
    given = {1: ("kdp",), 2: ("kp", "kdp")}.get(views) or itertools.islice(itertools.cycle(("kp", "kdp", "")), views)
    return sample_inputs(size, given, data_norm_type)


_LARGE_CASES = ("image, 1 view", "mixed")
_CASES = {
    "image, 1 view": ("",),
    "images, 3 views": ("", "", ""),
    "calibrated": ("k", "k"),
    "posed": ("p", "p", "p"),
    "depth": ("kd", "kd"),
    "all inputs": ("kdp", "kdp", "kdp"),
    "mixed": ("p", "kd", "", "kp"),
    "not metric": ("kdp", "kdp"),
}


def parity_cases(data_norm_type: str, size: tuple[int, int] = PARITY_SIZE, min_views: int = 1) -> dict[str, Views]:
    """Return named cases: every modality alone, all together, a mix, not metric, and a single view.

    ``size`` is (width, height) in pixels. Cases with fewer than ``min_views`` views are repeated up to that number. At
    a larger size than ``PARITY_SIZE`` there are two cases, the single view and the mix, which has every modality:
    PyTorch takes a minute for a few full-size views on a CPU.
    """
    large = math.prod(size) > math.prod(PARITY_SIZE)
    named = {}
    for name, given in _CASES.items():
        if large and name not in _LARGE_CASES:
            continue
        count = max(len(given), min_views)
        title = name if count == len(given) else f"{name}, repeated to {count} views"
        repeated = itertools.islice(itertools.cycle(given), count)
        named[title] = sample_inputs(size, repeated, data_norm_type, metric=name != "not metric")
    return named


def served_cases(data_norm_type: str, requests: ServedRequests) -> dict[str, Views]:
    """Return the parity cases that a profile serves, at a small size or the smallest one of the profile."""
    cases = parity_cases(data_norm_type, small_size(requests, PARITY_SIZE), requests.views.min)
    return {name: views for name, views in cases.items() if len(views) <= requests.views.max}


def small_size(requests: ServedRequests, size: tuple[int, int]) -> tuple[int, int]:
    """Return ``size`` as (width, height), or the smallest one that the requests serve."""
    return size if isinstance(requests.sizes, AnySize) else min(requests.sizes, key=math.prod)
