"""A file of a bundle, as the manifest names it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ..typed_json.codec import Fail
from ..typed_json.fields import Count, Sha256, Text

MANIFEST_NAME = "manifest.json"

FileName = Annotated[
    str, Text("a plain file name inside the bundle", r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,198}[A-Za-z0-9_-])?")
]
"""In the bundle's own folder: no separators, no ``..``, no drive, not hidden."""


@dataclass(frozen=True)
class FileRecord:
    """A file of the bundle: plain name, SHA-256 in lowercase hexadecimal, and size in bytes."""

    file: FileName
    sha256: Sha256
    bytes: Count

    def check_fields(self, fail: Fail) -> None:
        """Refuse the manifest itself."""
        if self.file.lower() == MANIFEST_NAME:
            fail("file", "must not be the manifest itself")
