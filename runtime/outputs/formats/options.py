"""The options of saving a scene: names, defaults, limits and meanings stand here and nowhere else."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np

from ...errors import InputError


@dataclass(frozen=True)
class SaveOptions:
    """How a scene is saved; each format has some of these, and the others change nothing for it.

    Attributes:
        max_points: Save at most so many points, chosen at random but always the same ones; all if not given (COLMAP:
            100000).
        confidence_percentile: Percentage of the valid points of each view, the least confident, to leave out.
        mesh: Save a surface per view, triangles between neighbouring pixels but for edges, instead of points.

    Raises:
        InputError: a value of another type or outside its limits; the message names the option.
    """

    max_points: int | None = None
    confidence_percentile: float = 0.0
    mesh: bool = False

    def __post_init__(self) -> None:
        if self.max_points is not None and (not _is(self.max_points, Integral) or self.max_points < 0):
            raise InputError(f"max_points is {self.max_points!r}; choose an integer from 0 up, or None for all")
        percentile = self.confidence_percentile
        if not _is(percentile, Real) or not 0 <= percentile <= 100:
            raise InputError(f"confidence_percentile is {percentile!r}; choose a number from 0 to 100")
        if not isinstance(self.mesh, bool | np.bool_):
            raise InputError(f"mesh is {reprlib.repr(self.mesh)}; it must be True or False")


def _is(value: Any, kind: type) -> bool:
    """Whether a value is a number of a kind; True is none."""
    return isinstance(value, kind) and not isinstance(value, bool)
