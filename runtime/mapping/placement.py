"""Where a window belongs in the map: the transform that takes what its call predicted to what is known already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..outputs.frame import align_cameras
from .frames import Frame, KnownFrame, points_of, pose_of
from .similarity import Similarity, fit_robust

Array = NDArray[Any]

TRANSFORMS = ("rigid", "similarity")
"""By which windows are brought into the map: with the lengths that the network says, or scaled to those of the map."""

_POINTS = 4096
"""Of all shared frames of a window together, that its placement is fitted to."""
_CONFIDENT = 50
"""Percentile of the confidence, over the valid pixels of a frame, from which points count."""
_NEAR = 0.1
"""Of its depth: how far a point may be from where the map has it and still agree."""


@dataclass(frozen=True, eq=False)
class Placement:
    """A window in the map.

    Attributes:
        transform: from the reference of the window into the map.
        compared: pixels that are valid in both.
        off: how far these points are from where the map has them, over their depth; the median.
        agreeing: share of them that is off by less than a tenth.
    """

    transform: Similarity
    compared: int
    off: float
    agreeing: float


def transform_named(name: Any) -> bool:
    """Return whether one of :data:`TRANSFORMS` scales (InputError)."""
    if not isinstance(name, str) or name not in TRANSFORMS:
        raise InputError(f"transform is {name!r}; choose {' or '.join(TRANSFORMS)}")
    return name == "similarity"


def place_by_points(
    frames: Sequence[Frame], predictions: Sequence[Mapping[str, Array]], known: Mapping[int, KnownFrame], scale: bool
) -> Placement | None:
    """Fit the points of the shared frames to those that the map has of the same pixels.

    Pixels count where both are valid and confident, by how sure both are, and less the farther away they are, because
    errors of depth grow with it. The fit is robust, and in closed form at each step.

    Args:
        frames, predictions: of the window. known: what the map has of some of them.
        scale: whether lengths may change.

    Returns:
        None where no pixel is valid in both.
    """
    shared = [
        (known[frame.number], view) for frame, view in zip(frames, predictions, strict=True) if frame.number in known
    ]
    parts = [part for there, view in shared if (part := _pairs(there, view, _POINTS // len(shared))) is not None]
    if not parts:
        return None
    source, target, weight, depth = (np.concatenate(values) for values in zip(*parts, strict=True))
    transform = fit_robust(source, target, weight, scale).similarity
    off = np.linalg.norm(transform.apply(source) - target, axis=1) / depth
    return Placement(transform, len(off), float(np.median(off)), float(np.mean(off < _NEAR)))


def _pairs(there: KnownFrame, view: Mapping[str, Array], most: int) -> tuple[Array, Array, Array, Array] | None:
    """Return points of a shared frame in the window and in the map (N, 3), their weights and depths (N,), or None."""
    confidence = np.minimum(view["conf"][0], there.confidence).astype(np.float64)
    valid = view["mask"][0, ..., 0] & there.mask
    if not valid.any():
        return None
    chosen = np.flatnonzero(valid & (confidence >= np.percentile(confidence[valid], _CONFIDENT)))
    chosen = chosen[:: -(-len(chosen) // most)]
    source = Similarity.of_pose(pose_of(view)).apply(points_of(view).reshape(-1, 3)[chosen])
    depth = there.points.reshape(-1, 3)[chosen, 2]
    return source, there.in_map.reshape(-1, 3)[chosen], confidence.reshape(-1)[chosen] / depth**2, depth


def place_by_poses(pairs: Sequence[tuple[Array, Array]], scale: bool) -> tuple[Similarity, bool]:
    """Fit predicted cameras, one or more, to where they are.

    Args:
        pairs: (4, 4) as predicted, and in the map.
        scale: whether lengths may change.

    Returns:
        The transform, and whether it has the scale of the map: one camera, or several at one place, do not say it.
    """
    predicted, wanted = (np.stack(poses) for poses in zip(*pairs, strict=True))
    found = align_cameras(predicted, wanted, metric=not scale)
    return Similarity(found.rotation, found.translation, found.scale), not found.note
