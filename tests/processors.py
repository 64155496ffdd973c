"""What the processor of this machine can do."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest


def has_vnni() -> bool:
    """Return whether products of 8 bits are summed in 32 bits; other x86 processors saturate sums of two at 16."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return True
    return bool(flags & {"avx512_vnni", "avx_vnni", "amx_int8"})


needs_vnni = pytest.mark.skipif(
    not has_vnni(), reason="without VNNI this processor saturates sums of 8-bit products, so INT8 is not exact"
)
