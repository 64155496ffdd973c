"""Remembering that a bundle passed its golden check on this device, so that it is not run again at every load.

One small file per (bundle, backend, version, device) in the user's cache folder. The record only saves time: a missing,
damaged or unwritable cache means that the check runs again.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ..errors import MapEngineError
from ..system.cache import cache_folder
from ..system.files import atomic_write

MAX_RECORD_BYTES = 64 * 1024


def is_verified(digest: str, backend: str, version: str, device: str) -> bool:
    """Whether the bundle ``digest`` is recorded as checked with this backend, version and device. Never raises."""
    key = _key(digest, backend, version, device)
    path = _path(key)
    try:
        if path is None or not path.is_file():
            return False
        with path.open("rb") as file:
            return bool(json.loads(file.read(MAX_RECORD_BYTES)) == key)
    except (OSError, ValueError, RecursionError):
        return False


def remember_verified(digest: str, backend: str, version: str, device: str) -> None:
    """Record that the bundle ``digest`` passed its golden check. Never raises: without a cache the check runs again."""
    key = _key(digest, backend, version, device)
    path = _path(key)
    if path is None:
        return
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(key), encoding="utf-8")
    except (OSError, ValueError, MapEngineError):
        return


def _key(digest: str, backend: str, version: str, device: str) -> dict[str, str]:
    return {"bundle": digest, "backend": backend, "version": version, "device": device}


def _path(key: dict[str, str]) -> Path | None:
    folder = cache_folder()
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return folder / "verified" / f"{name}.json" if folder else None
