"""How many keys global attention has in a layer that keeps a share of them.

Kept are the tokens of the reference view, a grid of the patch tokens of each other view, all class tokens and the scale
token. The grid has the square root of the share along both sides, rounded up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..typed_json.codec import Fail
from ..typed_json.fields import Count, Measure

_STEPS = 2**16


@dataclass(frozen=True)
class KeyShare:
    """A block of the aggregator with attention over all views, and the share of the keys that it keeps."""

    block: Count
    share: Measure

    def check_fields(self, fail: Fail) -> None:
        """Refuse a block that attends within views, and a share that is none."""
        if self.block % 2:
            fail("block", f"must be one with attention over all views, which have even numbers, not {self.block}")
        if not 0 < self.share <= 1:
            fail("share", f"must be above 0 and up to 1, not {self.share:g}")


def keys_axis(share: float) -> str:
    """Return the name of the axis that keys have where ``share`` of them are kept."""
    return f"keys_{share!r}"


def side_steps(share: float) -> int:
    """Return the share of a side that a grid keeps, in 65536ths: whole numbers, so that every backend rounds alike."""
    return max(1, round(math.sqrt(share) * _STEPS))


def kept_side(count: int, share: float) -> int:
    """Return how many of ``count`` rows or columns a grid keeps; ``count`` may be a symbol of a trace."""
    return (count * side_steps(share) + _STEPS - 1) // _STEPS


def kept_keys(views: int, rows: int, columns: int, extra_tokens: int, share: float) -> int:
    """Return the keys of ``views`` views of ``rows`` x ``columns`` patches with their class tokens, and the scale
    token, of which ``share`` are kept; 1 keeps all."""
    kept = kept_side(rows, share) * kept_side(columns, share)
    return rows * columns + (views - 1) * kept + views * extra_tokens + 1
