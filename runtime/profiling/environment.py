"""Where a profile was made: machine, versions, clocks and power, as far as the system tells."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from ..system.machine import cpu_name
from ..system.threads import default_threads

PACKAGES = ("mapengine", "numpy", "pillow", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx", "torch")
_QUERY = "name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu,memory.total"


def environment() -> dict[str, Any]:
    """Return the :func:`origin` of a profile."""
    return origin(*PACKAGES)


def origin(*packages: str) -> dict[str, Any]:
    """Return where a record was made: ``machine``, ``versions`` of the packages that are installed, and ``commit``."""
    versions = {"python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    machine = {"cpu": cpu_name(), "cores": default_threads(), "system": platform.system(), "gpu": gpu_state()}
    return {"machine": machine, "versions": versions, "commit": commit()}


def clocks() -> dict[str, Any]:
    """Clock of the processor (mean over its cores, MHz) and state of the GPU, now; None where it is not told."""
    megahertz = []
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("cpu MHz"):
                megahertz.append(float(line.partition(":")[2]))
    except (OSError, ValueError):
        pass
    return {"cpu_mhz": sum(megahertz) / len(megahertz) if megahertz else None, "gpu": gpu_state()}


def gpu_state() -> dict[str, str] | None:
    """Name, driver, clocks (MHz), power (W) and temperature of the first GPU by NVIDIA's tool; None without one."""
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


def commit() -> str | None:
    """Return the short hash of the checkout that this file is in, with ``-dirty`` if files other than results differ.

    ``MAPENGINE_COMMIT`` names it where the files were copied without their history. None without a checkout or git.
    """
    if "MAPENGINE_COMMIT" in os.environ:
        return os.environ["MAPENGINE_COMMIT"]
    root = str(Path(__file__).resolve().parents[2])

    def git(*arguments: str) -> str:
        command = ["git", "-C", root, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        is_dirty = git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head}{'-dirty' if is_dirty else ''}"
