"""Kernel timings of earlier builds, kept per device and library version, so that the next build is faster.

Only for ``tensorrt``: with TensorRT-RTX, which builds without a GPU, a timing cache makes the builder look for one. The
cache only saves time: one that is missing, damaged or from elsewhere is as good as none, and so is a folder that cannot
be written.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from mapengine.runtime.errors import MapEngineError
from mapengine.runtime.system.cache import cache_folder
from mapengine.runtime.system.files import atomic_write

MAX_BYTES = 512 * 2**20
_MAGIC = b"mapengine timing cache 1\n"
_MAX_HEADER = 4096


def cache_path(backend: str, version: str, device: str) -> Path | None:
    """The file for this library and device; None if this user has no cache folder."""
    folder = cache_folder()
    name = hashlib.sha256(json.dumps([backend, version, device]).encode()).hexdigest()[:32]
    return folder / "timing" / f"{name}.cache" if folder else None


def read_timings(backend: str, version: str, device: str) -> bytes:
    """The timings for this library and device, or ``b""``. Never raises.

    The bytes go to native code, so they are taken only when they are what :func:`write_timings` wrote for this key.
    """
    path = cache_path(backend, version, device)
    try:
        if path is None or not path.is_file() or path.stat().st_size > MAX_BYTES:
            return b""
        content = path.read_bytes()
    except OSError:
        return b""
    header, _, timings = content.removeprefix(_MAGIC).partition(b"\n")
    expected = _header(backend, version, device, timings)
    return timings if content.startswith(_MAGIC) and header == expected else b""


def write_timings(backend: str, version: str, device: str, timings: bytes) -> None:
    """Keep ``timings``, in one step; of two builds at once one wins. Never raises."""
    path = cache_path(backend, version, device)
    if path is None or not timings or len(timings) > MAX_BYTES - _MAX_HEADER:
        return
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(_MAGIC + _header(backend, version, device, timings) + b"\n" + timings)
    except (OSError, MapEngineError):
        return


def _header(backend: str, version: str, device: str, timings: bytes) -> bytes:
    key = {"backend": backend, "version": version, "device": device, "sha256": hashlib.sha256(timings).hexdigest()}
    return json.dumps(key, sort_keys=True).encode()
