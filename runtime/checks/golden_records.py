"""Remembering that a bundle passed its golden check on this device, so that it is not run again at every load.

One small file per (bundle, backend, version, device) in the user's cache folder. The record only saves time: a missing,
damaged or unwritable cache means that the check runs again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..system.cached_records import keep_record, kept_record

_ROOM = "verified"


@dataclass(frozen=True)
class GoldenRecord:
    """A golden check that was passed: by which bundle, with which backend and version, on which device."""

    key: Mapping[str, str]


def is_verified(digest: str, backend: str, version: str, device: str) -> bool:
    """Whether the bundle ``digest`` is recorded as checked with this backend, version and device. Never raises."""
    return kept_record(_ROOM, GoldenRecord, _key(digest, backend, version, device)) is not None


def remember_verified(digest: str, backend: str, version: str, device: str) -> None:
    """Record that the bundle ``digest`` passed its golden check. Never raises: without a cache the check runs again."""
    keep_record(_ROOM, GoldenRecord(_key(digest, backend, version, device)))


def _key(digest: str, backend: str, version: str, device: str) -> dict[str, str]:
    return {"bundle": digest, "backend": backend, "version": version, "device": device}
