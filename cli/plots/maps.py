"""The map of a sequence as a picture, from above: points, the estimated and the true path, loops and breaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapengine.runtime.mapping.breaks import Break
from mapengine.runtime.mapping.loops.closing import Loop

from .figures import figure

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_POINTS = 100_000
"""Points of the map that are drawn."""
_NAMED = 8
"""Submaps with a line of their own in the legend."""
_SPREAD = (5, 95)
"""Percentiles of the points that the picture shows; single points far away would make the rest small."""


@dataclass(frozen=True, eq=False)
class MapPicture:
    """What is drawn, all of it in the frame of the map.

    Attributes:
        poses: (N, 4, 4) camera-to-world, OpenCV axes; not finite where nothing could be seen.
        submaps: (N,) of each frame.
        loops: each between two frames.
        breaks: where submaps begin.
        points, colors: (P, 3) float and uint8.
        true_positions: (M, 3) of the true path, aligned with the estimated one; None if it is not known.
        unit: of lengths.
        title: above the picture.
    """

    poses: NDArray[Any]
    submaps: NDArray[Any]
    loops: Sequence[Loop]
    breaks: Sequence[Break]
    points: NDArray[Any]
    colors: NDArray[Any]
    true_positions: NDArray[Any] | None = None
    unit: str = "m"
    title: str = ""


def draw_map(picture: MapPicture, path: Path) -> None:
    """Draw a map from above, that is, along the axis of the map that is closest to the downward one of the cameras.

    Raises:
        BackendUnavailableError: matplotlib is not installed.
        OutputError: the picture could not be written.
    """
    import numpy as np

    seen = np.isfinite(picture.poses).all(axis=(1, 2))
    across, along, flipped = _axes(picture.poses[seen])
    flat = [across, along]
    positions = picture.poses[:, :3, 3][:, flat]
    points = picture.points[:, flat]
    true = np.empty((0, 2)) if picture.true_positions is None else picture.true_positions[:, flat]
    with figure(path, 1, 1, (11.0, 8.0)) as ((axis,),):
        _limit(axis, np.concatenate([positions[seen], true]), points)
        axis.scatter(*points.T, s=1.5, c=picture.colors / 255.0, alpha=0.3, linewidths=0, zorder=1)
        if len(true):
            axis.plot(*true.T, "--", color="black", linewidth=1.3, zorder=3, label="true path")
        _draw_path(axis, positions, picture.submaps, seen)
        _draw_loops(axis, positions, picture.loops)
        begun = [found.number for found in picture.breaks if seen[found.number]]
        if begun:
            axis.plot(*positions[begun].T, "X", color="black", markersize=9, zorder=6, label="break: a submap begins")
        if seen.any():
            first, last = np.flatnonzero(seen)[[0, -1]]
            axis.plot(*positions[first], "o", color="limegreen", mec="black", markersize=11, zorder=7, label="start")
            axis.plot(*positions[last], "s", color="red", mec="black", markersize=6, zorder=8, label="end")
        if flipped:
            axis.invert_yaxis()
        axis.set_aspect("equal", adjustable="box")
        axis.set_xlabel(f"{'xyz'[across]} of the map, {picture.unit}")
        axis.set_ylabel(f"{'xyz'[along]} of the map, {picture.unit}")
        axis.set_title(picture.title, fontsize=10)
        if axis.get_legend_handles_labels()[0]:
            axis.figure.legend(loc="outside right upper", frameon=False)


def _axes(poses: NDArray[Any]) -> tuple[int, int, bool]:
    """Return the axes of the map that go right and up in the picture, and whether the latter goes down instead, so that
    who looks at the picture looks down on the map and not up from below."""
    import numpy as np

    down = poses[:, :3, 1].mean(axis=0) if len(poses) else np.array([0.0, 1.0, 0.0])
    vertical = int(np.argmax(np.abs(down)))
    points_up = bool(down[vertical] < 0)
    across, along = (axis for axis in range(3) if axis != vertical)
    # x and z of a right-handed frame span a plane that y points into, unlike those of the other pairs.
    return across, along, points_up if vertical == 1 else not points_up


def _limit(axis: Any, paths: NDArray[Any], points: NDArray[Any]) -> None:
    """Show both paths and most of the points."""
    import numpy as np

    corners = [paths, np.percentile(points, _SPREAD, axis=0)] if len(points) else [paths]
    shown = np.concatenate(corners)
    if len(shown) == 0:
        return
    low, high = shown.min(axis=0), shown.max(axis=0)
    margin = max(0.05 * float((high - low).max()), 1e-3)
    axis.set_xlim(low[0] - margin, high[0] + margin)
    axis.set_ylim(low[1] - margin, high[1] + margin)


def _draw_path(axis: Any, positions: NDArray[Any], submaps: NDArray[Any], seen: NDArray[Any]) -> None:
    """Draw the estimated path, each submap in a colour of its own."""
    import numpy as np

    numbers = np.unique(submaps[seen]).tolist()
    for number in numbers:
        own = positions[seen & (submaps == number)]
        label = "estimated path" if len(numbers) == 1 else f"estimated path, submap {number}"
        if len(numbers) > _NAMED and number == numbers[_NAMED - 1]:
            label = f"and {len(numbers) - _NAMED + 1} more submaps"
        elif number in numbers[_NAMED:]:
            label = "_"
        axis.plot(*own.T, ".-", color=f"C{number % 10}", linewidth=1.8, markersize=3, zorder=4, label=label)


def _draw_loops(axis: Any, positions: NDArray[Any], loops: Sequence[Loop]) -> None:
    """Draw a line between the frames of each loop."""
    styles = ((True, "magenta", "-", "loop, closed"), (False, "grey", ":", "loop, found but not believed"))
    for believed, colour, style, label in styles:
        for number, loop in enumerate(loop for loop in loops if loop.believed == believed):
            ends = positions[[loop.first, loop.second]]
            axis.plot(
                *ends.T,
                style,
                color=colour,
                marker="o",
                fillstyle="none",
                markersize=4,
                linewidth=1.2,
                zorder=5,
                label="_" if number else label,
            )
