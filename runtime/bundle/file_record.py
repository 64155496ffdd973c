"""A file of a bundle, as the manifest names it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .codec import Reader


@dataclass(frozen=True)
class FileRecord:
    """A file of the bundle: plain name, SHA-256 in lowercase hexadecimal, and size in bytes."""

    file: str
    sha256: str
    bytes: int

    @classmethod
    def read(cls, fields: Mapping[str, Reader]) -> FileRecord:
        """Read the members ``file``, ``sha256`` and ``bytes``."""
        if fields["file"].file_name().lower() == "manifest.json":
            fields["file"].fail("must not be the manifest itself")
        return cls(fields["file"].file_name(), fields["sha256"].sha256(), fields["bytes"].integer())

    def to_json(self) -> dict[str, Any]:
        """Inverse of ``read``."""
        return {"file": self.file, "sha256": self.sha256, "bytes": self.bytes}
