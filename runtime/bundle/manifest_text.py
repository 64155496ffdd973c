"""The text of ``manifest.json`` and the hash of itself that it carries (:mod:`..typed_json.own_hash`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..errors import IntegrityError, ManifestError
from ..typed_json.own_hash import ZEROS, has_own_hash, with_own_hash

FIELD = "manifest_sha256"
FIRST_VERSION = 5
"""Of the schema, whose manifests have the hash; those before it have none."""


def manifest_text(document: Mapping[str, Any]) -> bytes:
    """Return the text of a manifest, with the hash of itself in it.

    Raises:
        ManifestError: ``document`` holds what JSON does not have.
    """
    try:
        text = json.dumps({**document, FIELD: ZEROS}, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ManifestError(f"the manifest cannot be written as JSON: {error}; use finite, plain values") from error
    return with_own_hash(text, FIELD)


def check_manifest_text(raw: bytes, document: Any, name: str) -> None:
    """Refuse a text that is not the one which was written.

    Args:
        raw: the text. document: what it says, of a schema version that is known. name: of the file, for the message.

    Raises:
        IntegrityError: the hash is missing, in a version that has none, or that of another text.
    """
    digest = document.get(FIELD) if isinstance(document, dict) else None
    version = document.get("schema_version") if isinstance(document, dict) else None
    if type(version) is not int or (version < FIRST_VERSION and digest is None):
        return  # what has no number as its version is no manifest at all
    if version < FIRST_VERSION or not has_own_hash(raw, digest):
        raise IntegrityError(
            f"{name} was changed after it was written (it differs from the hash in it); copy the whole folder again, "
            f"or build the bundle again with what you want changed"
        )
