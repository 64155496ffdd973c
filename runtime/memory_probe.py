"""How much memory one call takes, stage by stage: run as a process of its own, so that nothing else counts.

    python -m mapengine.runtime.memory_probe BUNDLE BACKEND VIEWS WIDTH HEIGHT GEOMETRY COLLECT

prints JSON: bytes of resident memory at the peak of loading and of every stage. Linux only (``/proc``).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from .errors import BackendError, MapEngineError

STAGES = ("load", "image_encoder", "geometry_encoder", "aggregator", "dense_head")
_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
_SECONDS = 1800


def can_probe() -> bool:
    """Whether this system tells the peak of a process's memory and lets it begin anew."""
    return _STATUS.exists() and os.access(_RESET, os.W_OK)


def probe(
    bundle: Path, backend: str, views: int, width: int, height: int, *, geometry: bool = False, collect: bool = False
) -> dict[str, int]:
    """Peak bytes of resident memory by stage, of one call in a new process.

    Args:
        bundle: folder of the bundle.
        backend: name of a CPU backend.
        views, width, height: of the call.
        geometry: every view has camera, depth and pose.
        collect: keep all predictions, as ``infer`` does, not one after the other as ``infer_stream``.

    Raises:
        BackendError: the process failed; the message has its last line.
    """
    arguments = [bundle, backend, views, width, height, int(geometry), int(collect)]
    command = [sys.executable, "-m", "mapengine.runtime.memory_probe", *map(str, arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise BackendError(f"measuring {views} views of {width}x{height} took more than {_SECONDS} s") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it was killed, probably for memory"])[-1]
        raise BackendError(f"measuring {views} views of {width}x{height} failed: {last}")
    return {name: int(value) for name, value in json.loads(done.stdout.splitlines()[-1]).items()}


def resident_bytes(peak: bool = False) -> int:
    """Resident memory of this process, now or at its peak since it was last reset; 0 where the system does not say."""
    name = "VmHWM:" if peak else "VmRSS:"
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), 0)


def reset_peak() -> None:
    """Begin a new peak; only where :func:`can_probe`."""
    _RESET.write_text("5", encoding="ascii")


def _take_peak() -> int:
    value = resident_bytes(peak=True)
    reset_peak()
    return value


def random_views(count: int, width: int, height: int, geometry: bool) -> list[dict[str, Any]]:
    """Views of noise, with all that a view can bring if ``geometry``."""
    rng = np.random.default_rng(0)
    views: list[dict[str, Any]] = []
    for index in range(count):
        image = rng.standard_normal((1, 3, height, width), np.float32)
        view: dict[str, Any] = {"img": image, "data_norm_type": ["dinov2"]}
        if geometry:
            camera = np.array([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1]], np.float32)
            pose = np.eye(4, dtype=np.float32)
            pose[0, 3] = 0.1 * index
            depth = 1 + rng.random((1, height, width), np.float32)
            view |= {"intrinsics": camera[None], "depth_z": depth, "camera_poses": pose[None]}
        views.append(view)
    return views


def main(arguments: list[str]) -> int:
    """See the module; returns the exit code."""
    bundle, backend, *numbers = arguments
    views, width, height, geometry, collect = map(int, numbers)
    from .engine import Engine

    peaks = dict.fromkeys(STAGES, 0)
    try:
        engine = Engine.load(bundle, backend, verify=False)
        given = random_views(views, width, height, bool(geometry))
        for view in given:
            view["data_norm_type"] = [engine.data_norm_type]
        peaks["load"] = _take_peak()

        def progress(stage: str, done: int, total: int) -> None:
            if done == total:
                peaks[stage] = _take_peak()

        if collect:
            engine.infer(given, progress=progress)
        else:
            for _ in engine.infer_stream(given, progress=progress):
                pass
    except MapEngineError as error:
        print(error, file=sys.stderr)
        return 1
    peaks["dense_head"] = max(peaks["dense_head"], resident_bytes(peak=True))  # and what follows it
    print(json.dumps(peaks))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
