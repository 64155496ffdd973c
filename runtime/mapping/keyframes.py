"""Keyframes: the frames of a sequence that windows are made of, chosen as they come by the features of their images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .frames import Frame

Array = NDArray[Any]
Float64 = NDArray[np.float64]

MOST_BETWEEN = 7
"""Frames between two keyframes at most: all that wait for their window are in memory."""
TOGETHER = 4
"""Of these, how many one call localises at most, beside the keyframes around them."""
_CELLS = 16
"""Patches a side that features are compared at, at most; those of larger images are averaged."""


@dataclass(frozen=True)
class KeyframeChoice:
    """How keyframes are chosen: a frame becomes one where it has too little of the one before.

    Attributes:
        name: as it is chosen.
        measure: what a frame has of a keyframe, from 0 to 1, by the cosines of their patches (N of the keyframe, N of
            the frame) and the patches of a row; None where every frame is a keyframe.
        least: below which a frame becomes a keyframe.
        about: for messages and documents.
    """

    name: str
    measure: Callable[[Float64, int], float] | None
    least: float
    about: str

    def chooses(self, frame: Frame, waiting: Sequence[Frame], in_world: bool) -> bool:
        """Return whether a frame becomes a keyframe.

        Frames whose poses are given do until the map is in the world of these, and then where the last keyframe came
        without: they hold the map.

        Args:
            frame: the next one.
            waiting: frames before it, without a break; among them a keyframe, unless there are none.
            in_world: whether the map is in the world of given poses.
        """
        if self.measure is None or not waiting:
            return True
        last = max(index for index, before in enumerate(waiting) if before.is_keyframe)
        if len(waiting) - 1 - last >= MOST_BETWEEN:
            return True
        if frame.given_pose is not None and (not in_world or waiting[last].given_pose is None):
            return True
        return self.measure(*_cosines(waiting[last], frame)) < self.least


def _overlap(cosines: Float64, columns: int) -> float:
    """Return the share of the patches of a frame that the keyframe saw: whose most alike patch there finds its way
    back, give or take a patch, and that moved as at least half of the patches around them did."""
    there, back = cosines.argmax(axis=0), cosines.argmax(axis=1)
    rows = len(there) // columns
    here = np.stack(np.divmod(np.arange(len(there)), columns), axis=1)
    returned, matched = (np.stack(np.divmod(index, columns), axis=1) for index in (back[there], there))
    found = (np.abs(returned - here).max(axis=1) <= 1).reshape(rows, columns)
    moved = np.pad((matched - here).reshape(rows, columns, 2), ((1, 1), (1, 1), (0, 0)))
    padded, inside = np.pad(found, 1), np.pad(np.ones_like(found), 1)
    agreeing, around = np.zeros((2, rows, columns))
    for row, column in product(range(3), range(3)):
        if (row, column) == (1, 1):
            continue
        beside = slice(row, row + rows), slice(column, column + columns)
        agreeing += padded[beside] & (np.abs(moved[beside] - moved[1:-1, 1:-1]).max(axis=2) <= 1)
        around += inside[beside]
    return float(np.mean(found & (2 * agreeing >= around)))


def _likeness(cosines: Float64, columns: int) -> float:
    """Return how near the patches of a frame come to the most alike ones of another; by the frame that finds less."""
    return float(min(cosines.max(axis=0).mean(), cosines.max(axis=1).mean()))


KEYFRAMES = {
    choice.name: choice
    for choice in (
        KeyframeChoice("all", None, 0.0, "every frame"),
        KeyframeChoice("overlap", _overlap, 0.7, "where less than this share of its image was in the last one"),
        KeyframeChoice("features", _likeness, 0.65, "where its features are less like those of the last one than this"),
    )
}
"""The ways to choose keyframes."""
DEFAULT_KEYFRAMES = "all"


def keyframes_named(name: Any, threshold: Any = None) -> KeyframeChoice:
    """Return one of :data:`KEYFRAMES`, with another threshold if one is given (InputError)."""
    if not isinstance(name, str) or name not in KEYFRAMES:
        raise InputError(f"keyframes is {name!r}; choose one of {', '.join(KEYFRAMES)}")
    choice = KEYFRAMES[name]
    if threshold is None:
        return choice
    if choice.measure is None:
        raise InputError(f"keyframe_threshold is {threshold!r}, but keyframes is 'all'; choose overlap or features")
    if isinstance(threshold, bool) or not isinstance(threshold, int | float | np.number) or not 0 < threshold <= 1:
        raise InputError(f"keyframe_threshold is {threshold!r}; give a number above 0, at most 1")
    return replace(choice, least=float(threshold))


def feature_likeness(one: Frame, other: Frame) -> float:
    """Return how much two frames are alike, up to 1, by the image encoder's features."""
    return _likeness(*_cosines(one, other))


def frames_between(waiting: Sequence[Frame], most: int) -> Iterator[tuple[Frame, list[Frame], Frame]]:
    """Yield the frames between keyframes, in groups for one call, each with the keyframes before and after it.

    Args:
        waiting: of a window, in order; the first and the last are keyframes.
        most: frames of a group.
    """
    keys = [index for index, frame in enumerate(waiting) if frame.is_keyframe]
    for before, after in pairwise(keys):
        between = waiting[before + 1 : after]
        calls = -(-len(between) // most)
        for part in np.array_split(np.arange(len(between)), calls) if calls else ():
            yield waiting[before], [between[index] for index in part], waiting[after]


def _cosines(one: Frame, other: Frame) -> tuple[Float64, int]:
    """Return the cosines between the patches of two frames (N, N), each without what the patches of its frame have in
    common, and the patches of a row."""
    sides = []
    for frame in (one, other):
        patches = frame.encoded.features.patches[0].astype(np.float64)
        factor = -(-max(patches.shape[:2]) // _CELLS)
        rows, columns = (max(side // factor, 1) for side in patches.shape[:2])
        height, width = min(rows * factor, patches.shape[0]), min(columns * factor, patches.shape[1])
        cells = patches[:height, :width].reshape(rows, height // rows, columns, width // columns, -1).mean(axis=(1, 3))
        flat = cells.reshape(rows * columns, -1)
        flat = flat - flat.mean(axis=0)
        sides.append(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12))
    return sides[0] @ sides[1].T, columns
