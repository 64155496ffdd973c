"""Loops of a sequence: looked for window by window, checked, and closed by moving the windows."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..frames import Frame, KnownFrame
from ..similarity import Similarity
from .check import LoopCheck, check_loop
from .places import Places
from .pose_graph import Edge, solve
from .sightings import Sighting, Sightings

if TYPE_CHECKING:
    from ...engine import Engine

LEAST_SCORE = 0.15
"""Of candidates that are checked."""
_EVERY = 3
"""Frames from one that may be recognised to the next."""
_AWAY = 40
"""Frames that lie between the two visits of a place at least."""
_CHECKS = 2
"""Most candidates of a window that are checked."""
WINDOW_DEVIATIONS = (0.05, 0.08, 0.04)
"""How uncertain a window is beside the one before: radians, lengths over the path and the depth of the window, and of
the logarithm of the scale."""
_LEAST = (0.01, 0.02, 0.02)
"""The same of a loop whose calls happen to agree, its lengths over the depth alone."""


@dataclass(frozen=True, eq=False)
class Loop:
    """A place that was seen again.

    Attributes:
        first, second: numbers of the frames.
        score: how alike they look, from -1 to 1.
        check: what the network said about them.
        believed: whether the map follows it: other loops and the windows may speak against it.
    """

    first: int
    second: int
    score: float
    check: LoopCheck
    believed: bool = True


def can_close() -> bool:
    """Whether the package is installed that loops are closed with."""
    return importlib.util.find_spec("scipy") is not None


class LoopCloser:
    """Looks for loops in a sequence, and says where its windows are with them."""

    def __init__(self, engine: Engine, options: Mapping[str, Any]) -> None:
        """Begin without frames.

        Args:
            engine: runs the network.
            options: of ``infer``.
        """
        self._engine, self._options = engine, options
        self._places, self._sightings = Places(), Sightings()
        self._window_edges: list[Edge] = []
        self._loops: list[tuple[Loop, Edge]] = []
        self._believed: list[bool] = []
        self._latest = -1

    @property
    def loops(self) -> list[Loop]:
        """Those that passed their check, in the order in which they were found."""
        return [
            Loop(loop.first, loop.second, loop.score, loop.check, believed)
            for (loop, _), believed in zip(self._loops, self._believed, strict=True)
        ]

    def add_window(
        self,
        window: int,
        frames: Sequence[tuple[Frame, KnownFrame]],
        placements: Sequence[Similarity],
        *,
        joined: bool,
        scale: bool,
    ) -> list[Similarity] | None:
        """Take the latest window in, and look for its frames among those before.

        A window that was taken in before, because a call failed afterwards, is not taken in again.

        Args:
            window: its number, one more than that of the window before.
            frames: those that are done with it, with what it saw, in its own frame and lengths.
            placements: per window where it is in the map.
            joined: whether it shares frames with the window before.
            scale: whether windows may have different lengths.

        Returns:
            Where the windows are now, or None where no loop was found.
        """
        if joined and window and not any(edge.j == window for edge in self._window_edges[-1:]):
            self._window_edges.append(_window_edge(window, frames, placements))
        found = False
        for score, second, first in self._candidates(window, frames):
            found |= self._check(score, first, second, placements, scale)
        return self._solved(placements, scale) if found else None

    def _candidates(self, window: int, frames: Sequence[tuple[Frame, KnownFrame]]) -> list[tuple[float, int, int]]:
        """Keep the frames, and return scores and numbers of those to be checked, the most alike first."""
        candidates = []
        for frame, known in frames:
            if frame.number > self._latest:
                self._places.add(frame.number, frame.encoded.features.patches)
                self._latest = frame.number
            if frame.number % _EVERY == 0:
                self._sightings.add(frame, window, known)
                candidates += [
                    (one.score, frame.number, one.number - one.number % _EVERY)
                    for one in self._places.search(away=_AWAY, count=2)
                    if one.score >= LEAST_SCORE and one.number - one.number % _EVERY in self._sightings
                ]
        return sorted(candidates, key=lambda one: (-one[0], *one[1:]))[:_CHECKS]

    def close(self) -> None:
        """Remove what was kept on disk."""
        self._sightings.close()

    def _check(self, score: float, first: int, second: int, placements: Sequence[Similarity], scale: bool) -> bool:
        one_side, other_side = self._side(first), self._side(second)
        here, there = one_side[0], other_side[0]
        if here.window == there.window:
            return False
        check = check_loop(self._engine, one_side, other_side, placements, self._options, scale=scale)
        if check is None or not check.passed:
            return False
        into_window, from_window = Similarity.of_pose(here.pose), Similarity.of_pose(there.pose).inverse()
        turn = max(np.radians(check.degrees), _LEAST[0])
        lever = float(np.linalg.norm(there.pose[:3, 3]))
        edge = Edge(
            here.window,
            there.window,
            into_window @ check.relative @ from_window,
            turn,
            max(check.offset, _LEAST[1] * check.reach) + turn * lever,
            max(check.growth, _LEAST[2]),
            "loop",
        )
        self._loops.append((Loop(first, second, score, check), edge))
        self._believed.append(True)
        return True

    def _side(self, number: int) -> list[Sighting]:
        """A frame that was kept, and the one next to it, if there is any."""
        beside = [one for one in (number + _EVERY, number - _EVERY) if one in self._sightings]
        return [self._sightings.read(one) for one in (number, *beside[:1])]

    def _solved(self, placements: Sequence[Similarity], scale: bool) -> list[Similarity]:
        edges = [*self._window_edges, *(edge for _, edge in self._loops)]
        solution = solve(placements, edges, scale=scale)
        self._believed = solution.believed[len(self._window_edges) :].tolist()
        return solution.nodes


def _window_edge(window: int, frames: Sequence[tuple[Frame, KnownFrame]], placements: Sequence[Similarity]) -> Edge:
    """Return what joins a window to the one before it: where they are now."""
    centres = np.array([known.pose[:3, 3] for _, known in frames])
    path = float(np.linalg.norm(np.diff(centres, axis=0), axis=1).sum())
    depth = [float(np.median(known.points[..., 2][known.mask])) for _, known in frames if known.mask.any()]
    turn, length, growth = WINDOW_DEVIATIONS
    size = path + (float(np.median(depth)) if depth else 0.0)
    relative = placements[window - 1].inverse() @ placements[window]
    return Edge(window - 1, window, relative, turn, length * max(size, 1e-6), growth)
