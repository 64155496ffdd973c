"""Where a sequence cannot be joined: nothing to see, nothing in common, shared frames that disagree, a turn in place.

The signs do not depend on a network: what its own geometry says of two frames has to hold in both directions and in
their images, and a turn in place is seen in the images alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .frames import Frame, points_of, pose_of
from .keyframes import feature_likeness
from .similarity import Similarity
from .turns import correlation, gray_image, reduced, turned_correlation

Array = NDArray[Any]

REASONS = {
    "blank": "in the frames before it nothing can be seen",
    "no overlap": "nothing of the frame before it is seen in it: a cut, or a camera that was too fast",
    "disagreement": "its window and the one before it see the frames that they share at other places",
    "rotation": "the camera turns in place, so that only what was seen before says how large things are",
}
"""Why a submap begins."""

_CONTRAST = 0.03
"""Deviation of the brightness, in those of the training images, below which an image is blank: about two of 255."""
_CELL = 7
"""Pixels a side that are averaged before: noise is no contrast."""
_SAME_DEPTH = 0.1
"""Relative difference up to which two depths are of one surface."""
_OVERLAP, _LIKENESS = 0.3, 0.4
"""Share of the pixels that two frames have in common, and correlation of their images along their geometry, below which
they are apart: where a network errs, one of them is left; where there is nothing in common, none."""
_FEW = 50
"""Pixels that a comparison needs."""
LEAST_AGREEING = 0.25
"""Share of the points of the shared frames that has to be where the map has them."""
_TURNED = 0.96
"""Correlation of two images after a rotation, from which no parallax is left between them."""
_TURN = 10.0
"""Degrees that a camera has to turn within a window to turn in place: one that rests does not."""
_MOVED = 0.5
"""Of the depth: a camera that the network sees move so far does not turn in place."""


@dataclass(frozen=True)
class Break:
    """Where a submap begins.

    Attributes:
        number: of its first frame.
        submap: that begins.
        reason: one of :data:`REASONS`.
    """

    number: int
    submap: int
    reason: str

    def __str__(self) -> str:
        return f"submap {self.submap} begins at frame {self.number}: {REASONS[self.reason]}"


def is_blank(normalized: Array) -> bool:
    """Return whether nothing can be seen in an image (3, H, W) as the network takes it."""
    gray = normalized.astype(np.float64).mean(axis=0)
    return float(reduced(gray, min(_CELL, *gray.shape)).std()) < _CONTRAST


def find_gap(frames: Sequence[Frame], views: Sequence[Mapping[str, Array]], known: Collection[int]) -> int | None:
    """Return the index of the first frame of a window that has nothing in common with the one before it, or None.

    Where several frames seem to be such (the network errs on both sides of a cut), it is the one whose features of the
    image encoder are the least like those of the frame before it.

    Args:
        frames, views: of the window, as the network predicts them.
        known: numbers of the frames that the map has; between these there was none.
    """
    gaps = [
        index
        for index in range(1, len(frames))
        if not {frames[index - 1].number, frames[index].number} <= set(known)
        and _apart(frames[index - 1 : index + 1], views[index - 1 : index + 1])
    ]
    return min(gaps, key=lambda index: feature_likeness(frames[index - 1], frames[index])) if gaps else None


def find_cut(frames: Sequence[Frame]) -> int:
    """Return the index of the frame that is the least like the one before it, by the image encoder's features: where
    the first and the last one have nothing in common, it begins what the last one is of."""
    return min(range(1, len(frames)), key=lambda index: feature_likeness(frames[index - 1], frames[index]))


def _apart(frames: Sequence[Frame], views: Sequence[Mapping[str, Array]]) -> bool:
    """Return whether two frames see nothing in common: by the depth of either, and by the images of both."""
    (one, other), images = views, [frame.view.normalized[0].astype(np.float64).mean(axis=0) for frame in frames]
    seen = [_in_common(one, other, *images), _in_common(other, one, *images[::-1])]
    return min(overlap for overlap, _ in seen) < _OVERLAP and max(likeness for _, likeness in seen) < _LIKENESS


def _in_common(one: Mapping[str, Array], other: Mapping[str, Array], image: Array, there: Array) -> tuple[float, float]:
    """Return the share of the valid pixels of a frame that another one sees at the same depth, and the correlation of
    the images where it looks at them."""
    rows, columns = np.nonzero(one["mask"][0, ..., 0])
    if len(rows) < _FEW:
        return 1.0, 1.0  # nothing says that they are apart
    into = Similarity.of_pose(pose_of(other)).inverse() @ Similarity.of_pose(pose_of(one))
    x, y, z = into.apply(points_of(one)[rows, columns]).T
    camera = other["intrinsics"][0].astype(np.float64)
    height, width = there.shape
    with np.errstate(divide="ignore", invalid="ignore"):
        u, v = np.rint(x / z * camera[0, 0] + camera[0, 2]), np.rint(y / z * camera[1, 1] + camera[1, 2])
        inside = (z > 0) & (u >= 0) & (v >= 0) & (u < width) & (v < height)
    if np.count_nonzero(inside) < _FEW:
        return 0.0, 0.0
    u, v, z = u[inside].astype(np.intp), v[inside].astype(np.intp), z[inside]
    depth = other["depth_z"][0, v, u, 0]
    valid = depth > 0
    same = valid & (np.abs(z - depth) < _SAME_DEPTH * depth)
    overlap = inside.mean() * np.count_nonzero(same) / max(1, np.count_nonzero(valid))
    return float(overlap), correlation(image[rows[inside], columns[inside]], there[v, u])


def turns_in_place(frames: Sequence[Frame], views: Sequence[Mapping[str, Array]]) -> bool:
    """Return whether the camera turned through a window and did not move: no image shows a parallax to another.

    Frames are compared that are as far apart as they can be and still see enough in common.
    """
    poses = np.stack([pose_of(view) for view in views])
    depths = [float(np.median(depth[depth > 0])) for view in views if (depth := view["depth_z"]).any()]
    angles = np.array([[_angle(one, other) for other in poses] for one in poses])
    reach = np.linalg.norm(poses[:, :3, 3] - poses[0, :3, 3], axis=1).max()
    if not depths or angles.max() < _TURN or reach > _MOVED * float(np.median(depths)):
        return False
    camera = np.median([view["intrinsics"][0] for view in views], axis=0).astype(np.float64)
    grays = [gray_image(frame.view.normalized[0]) for frame in frames]
    factor = views[0]["depth_z"].shape[2] // grays[0].shape[1]
    camera[:2] /= factor
    camera[:2, 2] -= (factor - 1) / (2 * factor)
    half_view = np.degrees(np.arctan2(grays[0].shape[1] / 2, camera[0, 0]))
    compared = 0
    for start in (0, len(frames) // 2):
        apart = [index for index in range(start + 1, len(frames)) if _TURN / 2 < angles[start, index] < half_view]
        if not apart:
            continue
        rotation = poses[apart[-1], :3, :3].T @ poses[start, :3, :3]
        if turned_correlation(grays[start], grays[apart[-1]], camera, rotation) < _TURNED:
            return False
        compared += 1
    return compared > 0


def _angle(one: Array, other: Array) -> float:
    """Return the angle between two cameras, degrees."""
    cosine = (np.trace(one[:3, :3].T @ other[:3, :3]) - 1) / 2
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
