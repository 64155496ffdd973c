"""Closed walks: a smooth curve through control points, and cameras along it at an even pace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .draws import Draws, Vector

Points = NDArray[np.float64]

SPACING = 0.02
"""Metres between the points of a curve."""
PACE = 0.1
"""Metres that a camera moves from frame to frame as readily as it turns by ``TURN``."""
TURN = 0.06
"""Radians (3.4 degrees)."""

_AHEAD, _BEHIND = 45, 15
"""Points of the curve before and behind a camera that its direction is taken from: 0.9 m and 0.3 m."""
_PER_SEGMENT = 100


class Route(NamedTuple):
    """A closed curve (N, 3), a point every ``SPACING``, and the directions of view and of down along it (N, 3)."""

    points: Points
    forward: Points
    down: Points

    @classmethod
    def through(cls, controls: Sequence[Vector], draws: Draws) -> Route:
        """Return the walk along a closed cubic B-spline, looking ahead, and now and then a little aside, up or down."""
        points = _evenly_spaced(_closed_spline(np.array(controls, np.float64), _PER_SEGMENT))
        if draws.chance(0.5):
            points = np.ascontiguousarray(points[::-1])
        ahead = np.roll(points, -_AHEAD, axis=0) - np.roll(points, _BEHIND, axis=0)
        ahead *= (1 / (_length(ahead) + 0.2))[:, None]
        knots = max(4, round(len(points) * SPACING / 1.8))
        aside, pitch = _wander(draws, knots, len(points), 0.45), _wander(draws, knots, len(points), 0.15) + 0.1
        roll, lean = _wander(draws, knots, len(points), 0.05), _wander(draws, knots, len(points), 0.05)
        # To the right of somebody who looks along (x, z) lies (z, -x), seen from above with y down.
        forward = np.stack([ahead[:, 0] + aside * ahead[:, 2], pitch, ahead[:, 2] - aside * ahead[:, 0]], axis=1)
        forward *= (1 / _length(forward))[:, None]
        return cls(points, forward, np.stack([roll, np.ones(len(points)), lean], axis=1))

    @property
    def length(self) -> float:
        """Metres of the whole round."""
        return len(self.points) * SPACING

    def at_even_pace(self, frames: int) -> tuple[Points, Points, Points]:
        """Return positions, directions of view and down of ``frames`` cameras, (N, 3) each, one step short of the
        whole round.

        A step is so much of moving and turning together: a camera is slower where it turns.
        """
        turn = _length(np.roll(self.forward, -1, axis=0) - self.forward)
        moved = SPACING / PACE
        cost = np.concatenate([[0.0], np.cumsum(np.sqrt(moved * moved + (turn / TURN) * (turn / TURN)))])
        wanted = cost[-1] * np.arange(frames) / frames
        before = np.searchsorted(cost, wanted, side="right") - 1
        part = ((wanted - cost[before]) / (cost[before + 1] - cost[before]))[:, None]
        after = (before + 1) % len(self.points)
        return tuple(field[before] * (1 - part) + field[after] * part for field in self)


def _length(vectors: Points) -> Points:
    return np.sqrt(vectors[:, 0] * vectors[:, 0] + vectors[:, 1] * vectors[:, 1] + vectors[:, 2] * vectors[:, 2])


def _closed_spline(controls: Points, count: int) -> Points:
    """Return a closed uniform cubic B-spline of controls (K, C), ``count`` points per segment: (K * count, C)."""
    t = (np.arange(count) / count)[None, :, None]
    s = 1 - t
    weights: list[Any] = [s * s * s, 3 * t * t * t - 6 * t * t + 4, 3 * s * s * s - 6 * s * s + 4, t * t * t]
    total = sum(w * np.roll(controls, 1 - k, axis=0)[:, None] for k, w in enumerate(weights)) / 6
    return np.asarray(total).reshape(-1, controls.shape[1])


def _evenly_spaced(points: Points) -> Points:
    """Return points (N, 3) of a closed polygon at about ``SPACING``."""
    steps = _length(np.roll(points, -1, axis=0) - points)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    count = round(float(along[-1]) / SPACING)
    wanted = along[-1] * np.arange(count) / count
    before = np.searchsorted(along, wanted, side="right") - 1
    part = ((wanted - along[before]) / steps[before])[:, None]
    return points[before] * (1 - part) + points[(before + 1) % len(points)] * part


def _wander(draws: Draws, knots: int, count: int, most: float) -> Points:
    """Return a smooth closed curve (count,) of values up to ``most`` on either side of 0."""
    controls = np.array([[draws.uniform(-most, most)] for _ in range(knots)])
    curve = _closed_spline(controls, -(-count // knots))[:, 0]
    return curve[np.arange(count) * len(curve) // count]
