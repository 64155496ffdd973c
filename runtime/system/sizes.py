"""Sizes in bytes as people write them."""

from __future__ import annotations

from ..errors import InputError


def parse_memory(value: int | str) -> int:
    """Bytes of ``8GB``, ``512MiB`` or a number.

    Raises:
        InputError: anything else, or nothing above 0.
    """
    units = {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "kib": 2**10, "mib": 2**20, "gib": 2**30}
    text = str(value).strip().lower()
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz ")
    try:
        size = float(number) * units[text[len(number) :].strip()]
    except (ValueError, KeyError):
        raise InputError(f"memory is {value!r}; give a size such as 8GB or 512MiB") from None
    if not 1 <= size < 2**63:
        raise InputError(f"memory is {value!r}; give a size such as 8GB or 512MiB")
    return int(size)


def gigabytes(size: float) -> str:
    """``8.1 GB``, or megabytes below one."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
