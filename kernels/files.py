"""Writing build outputs so that a reader never meets half of one."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from .errors import KernelOutputError


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
