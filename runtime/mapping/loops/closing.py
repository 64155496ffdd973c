"""Loops of a sequence: looked for window by window, checked, and closed by moving the windows."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..frames import Frame, KnownFrame
from ..similarity import Similarity
from .check import LoopCheck, check_loop
from .places import Places
from .pose_graph import Edge, solve, sparse_matrices
from .sightings import Sightings

if TYPE_CHECKING:
    from ...engine import Engine

LEAST_SCORE = 0.35
"""Of candidates that are checked."""
EVERY = 3
"""Frames from one that may be recognised to the next."""
AWAY = 40
"""Frames that lie between the two visits of a place at least."""
_EARNED, _SAVED = 0.5, 8.0
"""Calls that a window brings, and how many are saved up at most: what loops cost a frame is bounded however many
candidates there are. A place that only looks alike takes one call, a loop four. For what looks more alike than all that
failed, as many calls may be owed."""
_NEARBY = 9
"""Frames from a pair that was checked, within which another is not, ..."""
_CLEARLY = 0.1
"""... unless it looks more alike by this much."""
_SOLVED = 20
"""Loops are solved for together when as many windows came since the last time as one in so many."""
WINDOW_DEVIATIONS = (0.06, 0.08, 0.1)
"""How uncertain a window is beside the one before: radians, lengths over the path and the depth of the window, and of
the logarithm of the scale, which is at least as uncertain as it is large: where two windows differ in it, one errs."""
_LEAST = (0.05, 0.06, 0.05)
"""The same of a loop at least, its lengths over the depth alone: calls that agree may err together, by that much in the
median of held-out walks with ``preset:nano``."""


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
        self._checked: list[tuple[float, int, int]] = []
        self._latest, self._calls, self._failed = -EVERY, _SAVED, -1.0
        self._solved_at = self._unsolved = 0
        sparse_matrices()  # here, so that no frame in the middle waits for it

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
        fixed: Collection[int] = (),
    ) -> list[Similarity] | None:
        """Take the latest window in, and look for its frames among those before.

        A window that was taken in before, because a call failed afterwards, is not taken in again.

        Args:
            window: its number, one more than that of the window before.
            frames: those that are done with it, with what it saw, in its own frame and lengths.
            placements: per window where it is in the map.
            joined: whether it shares frames with the window before.
            scale: whether windows may have different lengths.
            fixed: windows that stay; the first one by default.

        Returns:
            Where the windows are now, or None where they stay.
        """
        if joined and window and not any(edge.j == window for edge in self._window_edges[-1:]):
            self._window_edges.append(_window_edge(window, frames, placements))
        self._calls = min(self._calls + _EARNED, _SAVED)
        for score, first, second in self._candidates(window, frames):
            if self._calls < (1 if score <= self._failed else -_SAVED):
                break
            self._calls -= self._check(score, first, second, placements, scale)
        since = len(placements) - self._solved_at
        return self.solved(placements, scale=scale, fixed=fixed) if since * _SOLVED >= len(placements) else None

    def solved(
        self, placements: Sequence[Similarity], *, scale: bool, fixed: Collection[int] = ()
    ) -> list[Similarity] | None:
        """Return where the windows are with all loops, or None where there are no new ones; as :meth:`add_window`."""
        if not self._unsolved:
            return None
        edges = [*self._window_edges, *(edge for _, edge in self._loops)]
        solution = solve(placements, edges, scale=scale, fixed=fixed or (0,))
        self._believed = solution.believed[len(self._window_edges) :].tolist()
        self._solved_at, self._unsolved = len(placements), 0
        return solution.nodes

    def close(self) -> None:
        """Remove what was kept on disk."""
        self._sightings.close()

    def _candidates(self, window: int, frames: Sequence[tuple[Frame, KnownFrame]]) -> list[tuple[float, int, int]]:
        """Keep some of the frames, and return scores and numbers of pairs to be checked, the most alike first."""
        candidates = []
        for frame, known in frames:
            if frame.number < self._latest + EVERY:
                continue
            self._latest = frame.number
            self._places.add(frame.number, frame.encoded.features.patches)
            self._sightings.add(frame, window, known)
            candidates += [
                (one.score, frame.number, one.number)
                for one in self._places.search(away=AWAY, count=2)
                if one.score >= LEAST_SCORE
            ]
        return sorted(candidates, key=lambda one: (-one[0], *one[1:]))

    def _check(self, score: float, first: int, second: int, placements: Sequence[Similarity], scale: bool) -> int:
        """Check a pair, unless one nearby was, and keep it if it is a loop; returns how many calls that took."""
        self._checked = [one for one in self._checked if one[1] >= first - _NEARBY]
        if any(
            score < before + _CLEARLY and abs(first - one) <= _NEARBY and abs(second - other) <= _NEARBY
            for before, one, other in self._checked
        ):
            return 0
        here, there = self._sightings.read(first), self._sightings.read(second)
        if here.window == there.window:
            return 0
        beside = [self._sightings.read(number) for number in self._sightings.beside(first)]
        check = check_loop(self._engine, [here, *beside], there, placements, self._options, scale=scale)
        self._checked.append((score, first, second))
        if check is None or not check.passed:
            self._failed = max(self._failed, score)
            return 0 if check is None else check.calls
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
        self._unsolved += 1
        return check.calls


def _window_edge(window: int, frames: Sequence[tuple[Frame, KnownFrame]], placements: Sequence[Similarity]) -> Edge:
    """Return what joins a window to the one before it: where they are now."""
    centres = np.array([known.pose[:3, 3] for _, known in frames])
    path = float(np.linalg.norm(np.diff(centres, axis=0), axis=1).sum())
    depth = [float(np.median(known.points[..., 2][known.mask])) for _, known in frames if known.mask.any()]
    turn, length, growth = WINDOW_DEVIATIONS
    size = path + (float(np.median(depth)) if depth else 0.0)
    relative = placements[window - 1].inverse() @ placements[window]
    growth = math.hypot(growth, math.log(relative.scale))
    return Edge(window - 1, window, relative, turn, length * max(size, 1e-6), growth)
