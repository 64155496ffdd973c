"""Facts about the machine, as far as the system tells."""

from __future__ import annotations

import contextlib
from pathlib import Path

from ..memory.probe import _STATUS


def cpu_name() -> str:
    """Name of the processor, as far as the system tells.

    With family and model where there are such numbers: virtual machines call processors of several generations alike,
    and one may multiply twice as fast as the other.
    """
    facts: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            facts.setdefault(name.strip(), value.strip())
    if "model name" in facts:
        numbers = ", ".join(f"{name.split()[-1]} {facts[name]}" for name in ("cpu family", "model") if name in facts)
        return f"{facts['model name']} ({numbers})" if numbers else facts["model name"]
    import platform

    return platform.processor() or platform.machine() or "CPU"


def free_bytes() -> int | None:
    """Memory that a new process could take without swapping; None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


def resident_bytes(peak: bool = False) -> int:
    """Resident memory of this process, now or at its peak since it was last reset; 0 where the system does not say."""
    name = "VmHWM:" if peak else "VmRSS:"
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), 0)
