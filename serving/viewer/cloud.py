"""Points without cameras, such as a file of another program has, as a scene."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mapengine.runtime import Scene

_GREY = 160
_FAR = 1000.0  # from the origin, beyond which float32 has few digits for what is small
_AWAY = 1.5  # extents of points, from where they are looked at
_PADDED = 2  # times as many places as points; where views differ by more, all points are one view


@dataclass(frozen=True, eq=False)
class Cloud:
    """What a file of points holds.

    Attributes:
        points: (N, 3) float64, in OpenCV's axes; what is not finite is none.
        colors: (N, 3) uint8, or None.
        views: name, first and last + 1 of the points that belong together.
        made_by: what made them; empty where the file does not say.
        is_ours: whether mapengine wrote the file, whose first camera is then at the origin, or near it.
    """

    points: NDArray[np.float64]
    colors: NDArray[np.uint8] | None
    views: list[tuple[str, int, int]]
    made_by: str
    is_ours: bool

    def scene(self) -> Scene:
        """Return views of one row each, with cameras that are none; only their place tells from where to look."""
        views = self.views
        if [start for _, start, _ in views] + [len(self.points)] != [0] + [end for _, _, end in views]:
            views = [("all points", 0, len(self.points))]
        width = max(end - start for _, start, end in views)
        if len(views) * width > _PADDED * len(self.points):
            views, width = [("all points", 0, len(self.points))], len(self.points)
        colors = self.colors if self.colors is not None else np.full(self.points.shape, _GREY, np.uint8)
        middle, extent = _middle(self.points)
        shift = np.rint(middle) if np.abs(middle).max() > _FAR else np.zeros(3)
        count = len(views)
        shape = count, 1, width
        points, shades, mask = np.zeros((*shape, 3), np.float32), np.zeros((*shape, 3), np.uint8), np.zeros(shape, bool)
        for index, (_, start, end) in enumerate(views):
            own = slice(start, end)
            with np.errstate(over="ignore", invalid="ignore"):  # what is too large is not finite, and left out
                points[index, 0, : end - start] = self.points[own] - shift
            shades[index, 0, : end - start], mask[index, 0, : end - start] = colors[own], True
        poses = np.tile(np.eye(4, dtype=np.float32), (count, 1, 1))
        if not self.is_ours or shift.any():
            poses[:, :3, 3] = middle - shift - np.array([0, 0, _AWAY * extent])
        return Scene(
            points=points,
            colors=shades,
            depth=np.zeros(shape, np.float32),
            confidence=np.ones(shape, np.float32),
            mask=mask,
            intrinsics=np.full((count, 3, 3), np.nan, np.float32),
            poses=poses,
            names=[name for name, _, _ in views],
            made_by=self.made_by,
        )


def _middle(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """The middle of points, and how far they extend, outliers aside."""
    some = points[:: max(1, len(points) // 100_000)]
    some = some[np.isfinite(some).all(axis=1)]
    if not len(some):
        return np.zeros(3), 1.0
    low, middle, high = np.percentile(some, (5, 50, 95), axis=0)
    return middle, float(np.linalg.norm(high - low)) or 1.0
