"""Kernels that TensorRT-RTX compiled on this GPU, kept beside the bundle for the next process.

A cache only saves time: one that is damaged, foreign, too large or not writable is ignored. TensorRT-RTX checks that a
cache is of its own version and of this GPU before it uses it; that the file is whole is checked here: it begins with
the SHA-256 of the rest.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ...system.private_files import private_folder
from ...writing.cache import cache_folder
from ...writing.cached_records import read_cached, write_cached
from .plans import Plan

MAX_BYTES = 512 * 2**20
MOST_FILES = 4
"""Caches of one stage in a folder, of several GPUs, library versions or builds; older ones are removed."""

_DIGEST_BYTES = hashlib.sha256().digest_size


class RuntimeCaches:
    """One cache per plan; nothing where the library has none."""

    def __init__(self, plans: Mapping[str, Plan], folder: Path, digest: str, device: str) -> None:
        """Load what is there.

        Args:
            plans: keyed by stage.
            folder: of the bundle; where it cannot be written, the caches go to the user's cache folder.
            digest: hash of the bundle. device: name and version of GPU, driver and library.
        """
        self._plans = {name: plan for name, plan in plans.items() if plan.runtime_cache is not None}
        key = hashlib.sha256(f"{digest} {device}".encode()).hexdigest()[:16]
        home = cache_folder()
        self._folders = [folder, *([home / "kernels"] if home else [])]
        self._names = {name: f"{name}.{key}.cache" for name in self._plans}
        self._saved: dict[str, bytes] = {}
        self._lock = threading.Lock()
        for name, plan in self._plans.items():
            self._load(name, plan.runtime_cache)

    def save(self) -> None:
        """Write the caches that have grown. Takes a while, so not after every call. Never raises."""
        with self._lock:
            for name, plan in self._plans.items():
                try:
                    blob = bytes(plan.runtime_cache.serialize())
                except (TypeError, RuntimeError):  # nothing to serialise
                    continue
                digest = hashlib.sha256(blob).digest()
                if blob and len(blob) <= MAX_BYTES and digest != self._saved.get(name):
                    self._write(name, digest, blob)
                    self._saved[name] = digest

    def _load(self, name: str, cache: Any) -> None:
        for folder in self._folders:
            content = read_cached(folder / self._names[name], MAX_BYTES + _DIGEST_BYTES) or b""
            digest, blob = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
            if hashlib.sha256(blob).digest() == digest and cache.deserialize(blob):
                self._saved[name] = digest
                return

    def _write(self, name: str, digest: bytes, blob: bytes) -> None:
        for folder in self._folders:
            if write_cached(folder / self._names[name], digest + blob):
                _remove_old(folder, name)
                return


def _remove_old(folder: Path, name: str) -> None:
    """Keep the newest caches of a stage: each build of a bundle and each GPU makes one of its own."""
    with contextlib.suppress(OSError), private_folder(folder) as opened:
        caches = [(changed, file) for file, changed in opened.names() if fnmatch(file, f"{name}.*.cache")]
        for _, file in sorted(caches, reverse=True)[MOST_FILES:]:
            opened.remove(file)
