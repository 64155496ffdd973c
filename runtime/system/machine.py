"""Facts about the machine and this process, as far as the system tells."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import psutil

from .control_groups import ROOT, MemoryLimits, memory_limits, processor_limit

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_QUERY = "name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu,memory.total"


def cpu_name() -> str:
    """Return the name of the processor.

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
    return platform.processor() or platform.machine() or "CPU"


def usable_processors(root: Path = ROOT) -> int:
    """Return how many logical processors this process may use.

    The least of the machine's, those that it may run on, and the time that its control groups get, rounded up: half a
    processor's time needs a thread too.

    Args:
        root: as in :func:`.control_groups.memory_limits`.
    """
    process = psutil.Process()
    count = len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else psutil.cpu_count() or 1
    quota = processor_limit(root)
    return count if math.isinf(quota) else max(1, min(count, math.ceil(quota)))


def free_bytes(root: Path = ROOT) -> int:
    """Return the memory that may be taken besides what is in use, without swapping and without being stopped.

    The least of what is free of the machine, of the control groups of this process, and of its limits of address space
    and of data (``ulimit -v``, ``ulimit -d``). A process that is started by this one has the same limits.

    Args:
        root: as in :func:`.control_groups.memory_limits`.
    """
    return _free_bytes(memory_limits(root))


def attainable_bytes(root: Path = ROOT) -> int:
    """Return the resident memory that this process could come to, what it has included: never more than its control
    groups may hold, whoever else pays for its shared pages.

    Args:
        root: as in :func:`.control_groups.memory_limits`.
    """
    limits = memory_limits(root)
    return int(min(_free_bytes(limits) + resident_bytes(), limits.whole))


def _free_bytes(limits: MemoryLimits) -> int:
    return int(max(0, min(psutil.virtual_memory().available, limits.free, _unmapped_bytes())))


def _unmapped_bytes() -> float:
    """Return the bytes that this process may map yet; infinite without a limit, or where the system has none."""
    process, free = psutil.Process(), math.inf
    # Only Linux counts what both limits hold against.
    for limit, held in (("RLIMIT_AS", "vms"), ("RLIMIT_DATA", "data")):
        used = getattr(process.memory_info(), held, None)
        if hasattr(psutil, limit) and used is not None:
            most = process.rlimit(getattr(psutil, limit))[0]
            free = free if most < 0 else min(free, most - used)
    return free


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return int(psutil.Process().memory_info().rss)


def private_bytes() -> int:
    """Return the anonymous memory of this process; Linux only. Weights that are mapped from a file can be dropped."""
    text = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Anonymous:"))


def can_reset_peak() -> bool:
    """Return whether this system tells the peak of a process's memory and lets it begin anew."""
    return _STATUS.exists() and os.access(_CLEAR, os.W_OK)


def reset_peak() -> None:
    """Begin a new peak of memory; only where :func:`can_reset_peak`."""
    _CLEAR.write_text("5", encoding="ascii")


def peak_bytes() -> int | None:
    """Return the most resident memory of this process since it began or was reset; None where the system does not say.

    Not that of ``getrusage``: on Linux its maximum begins with what the parent had.
    """
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def clocks() -> dict[str, Any]:
    """Return the clock of the processor (mean over its cores, MHz) and the state of the GPU, now; None where it is not
    told."""
    frequency = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
    return {"cpu_mhz": None if frequency is None else frequency.current, "gpu": gpu_state()}


def gpu_state() -> dict[str, str] | None:
    """Return name, driver, clocks (MHz), power (W) and temperature of the first GPU by NVIDIA's tool; None without."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    values = [value.strip() for value in done.stdout.strip().split(",")]
    names = _QUERY.split(",")
    return dict(zip(names, values, strict=True)) if len(values) == len(names) else None
