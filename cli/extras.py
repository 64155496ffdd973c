"""Packages that only some commands need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mapengine.runtime.errors import BackendUnavailableError


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Turn a package that the imports in the block lack into a sentence with the ``extra`` that brings it.

    Raises:
        BackendUnavailableError: a package is not installed. One that is there but broken raises its own error.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "mapengine"):
            raise
        raise BackendUnavailableError(
            f"this command needs {package}, which is not installed; run: pip install 'mapengine[{extra}]'"
        ) from error
