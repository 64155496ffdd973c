"""Measure the memory of one call, stage by stage, in a process of its own (:mod:`.child`)."""

from __future__ import annotations

import json
import subprocess

from ..bundle.store import Bundle
from ..errors import BackendError
from ..system.children import child_command, child_environment

STAGES = ("load", "image_encoder", "geometry_encoder", "aggregator", "dense_head")
_SECONDS = 1800


def probe(
    bundle: Bundle, backend: str, views: int, width: int, height: int, *, geometry: bool = False, collect: bool = False
) -> dict[str, int]:
    """Return the peak bytes of resident memory by stage, of one call in a new process.

    Args:
        bundle: opened; the process runs no other.
        backend: name of a CPU backend.
        views, width, height: of the call.
        geometry: every view has camera, depth and pose.
        collect: keep all predictions, as ``infer`` does, not one after the other as ``infer_stream``.

    Raises:
        BackendError: the process failed; the message has its last line.
    """
    arguments = [bundle.folder, bundle.digest, backend, views, width, height, int(geometry), int(collect)]
    command = child_command("mapengine.runtime.memory.child", *arguments)
    try:
        done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise BackendError(f"measuring {views} views of {width}x{height} took more than {_SECONDS} s") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it was killed, probably for memory"])[-1]
        raise BackendError(f"measuring {views} views of {width}x{height} failed: {last}")
    return {name: int(value) for name, value in json.loads(done.stdout.splitlines()[-1]).items()}
