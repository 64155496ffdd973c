"""Kernel timings of earlier builds, kept per device and library version, so that the next build is faster.

Only for ``tensorrt``: with TensorRT-RTX, which builds without a GPU, a timing cache makes the builder look for one. The
cache only saves time: one that is missing, damaged or from elsewhere is as good as none, and so is a folder that cannot
be written.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from mapengine.runtime.writing.cached_records import cache_path, read_cached, write_cached

MAX_BYTES = 512 * 2**20
_MAGIC = b"mapengine timing cache 1\n"
_MAX_HEADER = 4096


def timings_path(backend: str, version: str, device: str) -> Path | None:
    """Return the file for this library and device; None if this user has no cache folder."""
    return cache_path("timing", _key(backend, version, device), ".cache")


def read_timings(backend: str, version: str, device: str) -> bytes:
    """Return the timings for this library and device, or ``b""``. Never raises.

    The bytes go to native code, so they are taken only when they are what :func:`write_timings` wrote for this key.
    """
    content = read_cached(timings_path(backend, version, device), MAX_BYTES) or b""
    header, _, timings = content.removeprefix(_MAGIC).partition(b"\n")
    expected = _header(_key(backend, version, device), timings)
    return timings if content.startswith(_MAGIC) and header == expected else b""


def write_timings(backend: str, version: str, device: str, timings: bytes) -> None:
    """Keep ``timings``, in one step; of two builds at once one wins. Never raises."""
    if timings and len(timings) <= MAX_BYTES - _MAX_HEADER:
        header = _header(_key(backend, version, device), timings)
        write_cached(timings_path(backend, version, device), _MAGIC + header + b"\n" + timings)


def _key(backend: str, version: str, device: str) -> dict[str, str]:
    return {"backend": backend, "version": version, "device": device}


def _header(key: dict[str, str], timings: bytes) -> bytes:
    return json.dumps({**key, "sha256": hashlib.sha256(timings).hexdigest()}, sort_keys=True).encode()
