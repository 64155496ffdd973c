"""Refuse calls of a planned bundle that do not fit into memory."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError
from ..system.machine import attainable_bytes
from ..system.sizes import parse_bytes
from .model import MemoryModel, known_model


@dataclass(frozen=True)
class MemoryGuard:
    """The memory model of a planned bundle, and the bytes that a call may take; None for what is free."""

    model: MemoryModel
    limit: int | None

    def check(self, views: int, width: int, height: int, *, geometry: bool, collect: bool) -> None:
        """Refuse a call that does not fit; see :meth:`.MemoryModel.check`."""
        limit = self.limit
        if limit is None:
            limit = attainable_bytes()  # the model includes what this process has already
        self.model.check(limit, views, width, height, geometry=geometry, collect=collect)


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
