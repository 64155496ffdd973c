"""JSON text that carries the SHA-256 of itself: of the whole text with zeros in that place.

No bit of such a file changes unnoticed, not even one that changes no value.
"""

from __future__ import annotations

import hashlib

ZEROS = "0" * hashlib.sha256().digest_size * 2
"""What stands in the place of the hash while it is computed."""


def with_own_hash(text: str, field: str) -> bytes:
    """Return a text with its hash in the first ``field`` that is :data:`ZEROS`."""
    entry = f'"{field}": "%s"'
    digest = hashlib.sha256(text.encode()).hexdigest()
    return text.replace(entry % ZEROS, entry % digest, 1).encode()


def has_own_hash(raw: bytes, digest: object) -> bool:
    """Return whether ``digest``, which a text carries, is the hash of that text."""
    plain = digest.encode("ascii", "replace") if isinstance(digest, str) else b""
    if len(plain) != len(ZEROS) or raw.count(plain) != 1:
        return False
    return hashlib.sha256(raw.replace(plain, ZEROS.encode())).hexdigest() == digest
