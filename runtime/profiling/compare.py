"""Two records of the same benchmark, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import InputError
from ..typed_json.codec import decode
from ..typed_json.text import Document
from .statistics import Summary, is_beyond_noise


@dataclass(frozen=True)
class Comparison:
    """One contender and configuration in both records.

    Attributes:
        contender, views, size: which.
        old_s, new_s: medians.
        ratio: new over old.
        verdict: ``faster``, ``slower``, or ``same`` where the difference is within the noise.
    """

    contender: str
    views: int
    size: tuple[int, int]
    old_s: float
    new_s: float
    ratio: float
    verdict: str


def compare_records(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[list[Comparison], list[str]]:
    """Compare two profiles.

    Returns:
        One comparison per contender and configuration that both have, and what makes the records hard to compare (other
        devices or versions), in words.

    Raises:
        InputError: ``old`` is no profile, or has nothing in common with ``new``.
    """
    before, after = check_profile(old), check_profile(new)
    both = [key for key in after if key in before]
    if not both:
        raise InputError("the records have no contender and configuration in common; profile the same bundles")
    result = []
    for key in both:
        first, second = before[key], after[key]
        ratio = second.p50 / first.p50
        verdict = "same" if not is_beyond_noise(first, second) else "faster" if ratio < 1 else "slower"
        result.append(Comparison(key[0], key[1], key[2], first.p50, second.p50, ratio, verdict))
    differences = [
        f"{name}: {old.get(name)} before, {new.get(name)} now"
        for name in ("machine", "versions")
        if old.get(name) != new.get(name)
    ]
    return result, differences


def check_profile(record: Any) -> dict[tuple[str, int, tuple[int, int]], Summary]:
    """Return the times of a profile by contender, number of views and size.

    Raises:
        InputError: it is no record of ``mapengine profile``, or its times are none.
    """
    try:
        if record["benchmark"] != "profile":
            raise KeyError("benchmark")
        return {
            (str(result["contender"]), int(result["views"]), (int(result["size"][0]), int(result["size"][1]))): _times(
                result["end_to_end_s"]
            )
            for result in record["results"]
        }
    except (LookupError, TypeError, ValueError, AttributeError):
        raise InputError("this is no record of `mapengine profile`; give a file that --json wrote") from None


def _times(value: Any) -> Summary:
    summary = decode(Summary, value, Document("end_to_end_s", "profile again", InputError))
    if summary.runs < 1 or min(asdict(summary).values()) < 0 or summary.p50 <= 0:
        raise ValueError("times are positive")
    return summary
