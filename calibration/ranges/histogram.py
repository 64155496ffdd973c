"""Streaming histograms of magnitudes whose bins are fixed, so that they do not depend on the order of the data."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_SHIFT = 17
"""Bits of a float32 magnitude that are dropped: 6 of the 23 bits of the fraction stay, a bin is 1.1 to 1.6 % wide."""
BINS = 1 << (31 - _SHIFT)
_NOT_FINITE = 0x7F800000 >> _SHIFT
"""First bin of infinity and NaN."""


class Histogram:
    """Counts of |x| per logarithmic bin.

    The bin of a number is the upper half of its bit pattern. Bins never move, so that a range need not be known in
    advance, an outlier costs no resolution elsewhere, and adding in any order or in parts gives the same counts.

    Attributes:
        counts: (BINS,) int64.
        largest: largest finite magnitude.
    """

    __slots__ = ("counts", "largest")

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros(BINS, np.int64)
        self.largest = 0.0

    def add(self, values: NDArray[np.float32]) -> None:
        """Count values of any shape."""
        bits = np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint32) & np.uint32(0x7FFFFFFF)
        self.counts += np.bincount(bits >> np.uint32(_SHIFT), minlength=BINS)
        # Magnitudes order as their bit patterns do.
        finite = bits[bits < np.uint32(0x7F800000)] if self.not_finite else bits
        if finite.size:
            self.largest = max(self.largest, float(finite.max().view(np.float32)))

    @property
    def total(self) -> int:
        """How many finite values were counted."""
        return int(self.counts[:_NOT_FINITE].sum())

    @property
    def not_finite(self) -> int:
        """How many were NaN or infinite."""
        return int(self.counts[_NOT_FINITE:].sum())

    def bins(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """Return the lower edges, upper edges and counts of the bins that are not empty, ascending."""
        index = np.flatnonzero(self.counts[:_NOT_FINITE])
        low = _edges(index)
        return low, np.minimum(_edges(index + 1), max(self.largest, 2.0**-126)), self.counts[index]

    def state(self) -> dict[str, NDArray[Any]]:
        """Return what :meth:`from_state` needs, as arrays: the bins that are not empty."""
        index = np.flatnonzero(self.counts)
        return {"index": index, "counts": self.counts[index], "largest": np.array(self.largest)}

    @classmethod
    def from_state(cls, state: dict[str, NDArray[Any]]) -> Histogram:
        """Return the histogram that has this :meth:`state`."""
        result = cls()
        result.counts[state["index"]] = state["counts"]
        result.largest = float(state["largest"])
        return result


def _edges(index: NDArray[np.intp]) -> NDArray[np.float64]:
    return (index.astype(np.uint32) << np.uint32(_SHIFT)).view(np.float32).astype(np.float64)
