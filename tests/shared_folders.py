"""Folders of what tests, workers and runs share, each for one state of the code that made it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
from collections.abc import Iterable
from pathlib import Path


def folder_of_code(folder: Path, sources: Iterable[Path], packages: Iterable[str]) -> Path:
    """Return the folder in ``folder`` for what this code makes with these versions; that of other code is deleted."""
    code = hashlib.sha256(repr([importlib.metadata.version(name) for name in packages]).encode())
    for source in sorted(sources):
        code.update(source.read_bytes())
    current = folder / code.hexdigest()[:16]
    current.mkdir(parents=True, exist_ok=True)
    for other in folder.iterdir():
        if other.is_dir() and other != current:
            shutil.rmtree(other, ignore_errors=True)
    return current
