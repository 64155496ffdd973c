"""Refuse calls of a planned bundle that do not fit into memory."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError, MemoryLimitError
from ..system.machine import attainable_bytes
from ..system.sizes import gigabytes, parse_bytes
from ..system.threads import threads_in_order
from .model import MemoryModel, known_model

_BYTES_PER_PIXEL = 28  # of a prepared view: image, rays and depth in float32


@dataclass(frozen=True)
class MemoryGuard:
    """The memory model of a planned bundle, and the bytes that a call may take; None for what is free."""

    model: MemoryModel
    limit: int | None

    def check(self, views: int, width: int, height: int, *, geometry: bool, collect: bool) -> None:
        """Refuse a call that does not fit; see :meth:`.MemoryModel.check`."""
        self.model.check(self._bytes(), views, width, height, geometry=geometry, collect=collect)

    def check_reading(self, views: int, width: int, height: int, bytes_each: int) -> None:
        """Refuse views that cannot be read: some of them are decoded at a time, the others small already.

        Args:
            views, width, height: of the call.
            bytes_each: memory that reading the largest view takes.

        Raises:
            MemoryLimitError: with what would help.
        """
        limit = self._bytes()
        loaded = self.model.peaks(1, width, height)["load"]
        small = views * width * height * _BYTES_PER_PIXEL
        needed = loaded + small + min(views, threads_in_order()) * bytes_each
        if needed > limit:
            raise MemoryLimitError(
                f"reading the views needs {gigabytes(needed)} of memory, {gigabytes(bytes_each)} of it for each that "
                f"is decoded at a time, and {gigabytes(limit)} are there; give smaller images, or allow more memory"
            )

    def _bytes(self) -> int:
        # The model includes what this process has already.
        return attainable_bytes() if self.limit is None else self.limit


def guard_for(bundle: str, backend: str, version: str, device: str, limit: int | str | None) -> MemoryGuard | None:
    """Return the guard of an engine; None for a bundle that was not planned here.

    Args:
        bundle, backend, version, device: as in :func:`model_key`.
        limit: bytes, or a size such as ``"8GB"``; None for what is free.

    Raises:
        InputError: a limit that is no size, or one for a bundle that was not planned.
    """
    wanted = None if limit is None else parse_bytes(limit, "memory_limit")
    model = known_model({"bundle": bundle, "backend": backend, "version": version, "device": device})
    if model is None:
        if wanted is not None:
            raise InputError(
                f"a memory limit needs to know what this bundle takes with {backend} here; run `mapengine plan` on "
                "it first"
            )
        return None
    return MemoryGuard(model, wanted)
