"""Sizes as people write them: bytes (``8GB``), pixels (``518x392``) and ranges of view counts (``1:4:32``)."""

from __future__ import annotations

import re
from operator import index
from typing import Any

from ..errors import InputError

_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_BYTES = re.compile(r"(\d{1,19}(?:\.\d{1,9})?)\s*([a-z]*)", re.IGNORECASE)


def parse_bytes(value: int | str, what: str = "memory") -> int:
    """Return the bytes of ``"8GB"``, ``"1.5 GiB"`` or ``"512mb"``, in upper or lower case, or of a number of bytes.

    Raises:
        InputError: anything else, among it text without a unit; the message calls the value ``what``.
    """
    refusal = InputError(f"{what} is {value!r}; give a size such as 8GB or 512MiB")
    if not isinstance(value, str):
        if _is_whole(value) and 1 <= value < 2**63:
            return index(value)
        raise refusal
    match = _BYTES.fullmatch(value.strip())
    if match is not None and not match[2] and float(match[1]):
        unit = "GB" if float(match[1]) < 2**20 else "B"
        raise InputError(f"{what} is {value!r}, which has no unit; did you mean {match[1]}{unit}")
    if match is None or match[2].lower() not in _UNITS:
        raise refusal
    size = float(match[1]) * _UNITS[match[2].lower()]
    if not 1 <= size < 2**63:
        raise refusal
    return int(size)


def parse_pixels(text: str) -> tuple[int, int]:
    """Return (width, height) of ``"518x392"``.

    Raises:
        InputError: not of that form.
    """
    match = re.fullmatch(r"(\d{1,6})[xX](\d{1,6})", text.strip())
    if match is None:
        raise InputError(f"{text!r} is not WIDTHxHEIGHT in pixels, such as 518x392")
    return int(match[1]), int(match[2])


def parse_view_counts(text: str) -> tuple[int, int, int]:
    """Return (fewest, usual, most) of ``"1:4:32"``.

    Raises:
        InputError: not of that form, or not in that order.
    """
    match = re.fullmatch(r"(\d{1,6}):(\d{1,6}):(\d{1,6})", text.strip())
    low, usual, high = (int(part) for part in match.groups()) if match else (0, 0, 0)
    if not 1 <= low <= usual <= high:
        raise InputError(f"{text!r} is not FEWEST:USUAL:MOST with 1 <= FEWEST <= USUAL <= MOST, such as 1:4:32")
    return low, usual, high


def gigabytes(size: float) -> str:
    """Return ``8.10 GB``, or megabytes below one."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _is_whole(value: Any) -> bool:
    """Whether it is an integer of Python or NumPy."""
    return hasattr(value, "__index__") and not isinstance(value, bool)
