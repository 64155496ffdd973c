"""One fraction that only grows, from the nested phases that a builder reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

Fraction = Callable[[float, str], None]
"""Called with how much is done (0 to 1) and what is being done."""


_LONG = frozenset({"Building engine from subgraph", "Computing profile costs"})
_LONG_SHARE = 0.9
"""The phases in which kernels are compiled or timed take nearly all the time of the phases that they belong to."""


@dataclass
class _Phase:
    steps: int
    done: int = 0
    child: _Phase | None = None
    long: list[_Phase] = field(default_factory=list)
    finished: bool = False

    def fraction(self) -> float:
        """Return the share of finished steps, and of the step under way what its newest child has done."""
        if self.finished:
            return 1.0
        part = self.child.fraction() if self.child is not None and not self.child.finished else 0.0
        steps = min((self.done + part) / max(self.steps, 1), 1.0)
        if not self.long:
            return steps
        return (1 - _LONG_SHARE) * steps + _LONG_SHARE * self.long[-1].fraction()


class PhaseProgress:
    """Combines phases with steps, some of which are phases with steps again (TensorRT's ``IProgressMonitor``).

    A phase names its parent; it counts as one step of it. Builders do not announce all phases in advance, start some
    late and end some after their parent, so the fraction never falls, and stays where it is while a phase that was not
    announced runs. It says how many steps are done, not how much time: compiling is one step of minutes or seconds.
    """

    def __init__(self, report: Fraction, start: float = 0.0, stop: float = 1.0) -> None:
        """Report fractions between ``start`` and ``stop``."""
        self._report, self._start, self._stop = report, start, stop
        self._phases: dict[str, _Phase] = {}
        self._root: _Phase | None = None
        self._reached = start

    def begin(self, name: str, parent: str | None, steps: int) -> None:
        """Start a phase of ``steps`` steps."""
        phase = self._phases[name] = _Phase(steps)
        above = self._phases.get(parent) if parent is not None else None
        if above is None:
            self._root = self._root or phase
        elif name in _LONG:
            above.long.append(phase)
        else:
            above.child = phase
        self._tell(name)

    def step(self, name: str, step: int) -> None:
        """Step ``step`` (from 0) of a phase is done."""
        phase = self._phases.get(name)
        if phase is not None:
            phase.done = max(phase.done, step + 1)
            self._tell(name)

    def end(self, name: str) -> None:
        """Close a phase, whatever its steps."""
        phase = self._phases.pop(name, None)
        if phase is not None:
            phase.finished = True
            self._tell(name)

    def _tell(self, name: str) -> None:
        done = self._root.fraction() if self._root is not None else 0.0
        self._reached = max(self._reached, self._start + (self._stop - self._start) * done)
        self._report(self._reached, name[:1].lower() + name[1:])
