"""Writing build outputs so that a reader never meets half of one."""

from __future__ import annotations

import os
import re
import secrets
import time
from contextlib import suppress
from pathlib import Path

from .errors import KernelOutputError

_PARTIAL = re.compile(r"\..+\.(cubin|ptx|json)-[0-9a-f]{8}")
_STALE_SECONDS = 3600


def remove_partials(folder: Path) -> None:
    """Remove what builds that were killed long ago have left half-written."""
    with suppress(OSError):
        for path in folder.iterdir():
            if _PARTIAL.fullmatch(path.name) and time.time() - path.lstat().st_mtime > _STALE_SECONDS:
                path.unlink()


def write_atomic(path: Path, content: bytes) -> None:
    """Write ``content`` under a temporary name beside ``path`` and move it into place.

    Raises:
        KernelOutputError: it could not be written; an older file stays as it was.
    """
    partial = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise KernelOutputError(
            f"{path}: could not be written: {error.strerror or error}; choose another place"
        ) from error
