"""What is kept in the user's cache folder to save time.

Nothing here ever raises: what is missing, damaged, too large, of another user or cannot be written is as good as not
kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from ..errors import MapEngineError
from ..system.private_files import private_folder
from ..typed_json.codec import encode, read_json
from ..typed_json.text import Document
from .cache import cache_folder

MAX_RECORD_BYTES = 2**20


class KeyedRecord(Protocol):
    """A dataclass for :mod:`..typed_json.codec` that says what it is about."""

    @property
    def key(self) -> Mapping[str, str]:
        """What the record is about: digest of a bundle, backend, its version, device."""
        ...


R = TypeVar("R", bound=KeyedRecord)


def cache_path(room: str, key: Mapping[str, str], suffix: str = ".json") -> Path | None:
    """Return the file of ``key`` in the part ``room`` of the cache folder; None without a cache folder."""
    folder = cache_folder()
    name = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()[:32]
    return folder / room / f"{name}{suffix}" if folder else None


def read_cached(path: Path | None, most: int) -> bytes | None:
    """Return the content of a cached file; None without one of at most ``most`` bytes that only this user can write."""
    try:
        if path is None:
            return None
        with private_folder(*_folders(path)) as folder:
            return folder.read(path.name, most)
    except (OSError, ValueError):
        return None


def write_cached(path: Path | None, content: bytes) -> bool:
    """Write a cached file in one step, and return whether that was possible."""
    try:
        if path is None:
            return False
        with private_folder(*_folders(path), make=True) as folder:
            folder.write(path.name, content)
    except (OSError, ValueError):
        return False
    return True


def cache_problem() -> str | None:
    """Return why nothing can be kept in the user's cache folder, or None."""
    root = cache_folder()
    if root is None:
        return "there is no cache folder"
    try:
        with private_folder(root, make=True):
            return None
    except OSError as error:
        return error.strerror or str(error)
    except ValueError:
        return f"{root!s:.200} is no path"


def _folders(path: Path) -> tuple[Path, tuple[str, ...]]:
    """The folder whose owner and mode are checked first, and the rooms in it that lead to a cached file."""
    root = cache_folder()
    if root is not None and path.parent.parent == root:
        return root, (path.parent.name,)
    return path.parent, ()


def keep_record(room: str, record: KeyedRecord) -> None:
    """Keep a record for :func:`kept_record`."""
    write_cached(cache_path(room, record.key), json.dumps(encode(record), indent=1).encode())


def kept_record(room: str, kind: type[R], key: Mapping[str, str]) -> R | None:
    """Return the record of ``key``, or None."""
    path = cache_path(room, key)
    content = read_cached(path, MAX_RECORD_BYTES)
    if content is None:
        return None
    try:
        record = read_json(kind, content, Document(str(path), "remove the file", MapEngineError))
    except (MapEngineError, ValueError, ArithmeticError):  # numbers that no arithmetic can bear among them
        return None
    return record if dict(record.key) == dict(key) else None
