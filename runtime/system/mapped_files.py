"""Memory of files that a library has mapped: the system counts their pages as ours until somebody needs them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator
from pathlib import Path

_MAPS = Path("/proc/self/maps")
_DONT_NEED = 4
"""``MADV_DONTNEED`` of madvise(2)."""
_SECONDS = 0.1
"""From one release to the next, in which a library reads some tens of megabytes."""
_LARGE = 64 * 2**20
"""Bytes of a file that are worth a thread."""


def release_pages(path: Path) -> int:
    """Give the memory of a file that is mapped read-only back to the system.

    The mappings stay: what is read again comes from the file. Only Linux tells where they are; elsewhere nothing
    happens.

    Args:
        path: of the file.

    Returns:
        Bytes of the mappings.
    """
    wanted, released = os.path.realpath(path), 0
    with contextlib.suppress(OSError):
        advise = ctypes.CDLL(None, use_errno=True).madvise
        for line in _MAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            # address range, permissions, offset, device, inode, path
            fields = line.split(maxsplit=5)
            # What could have been written to would be lost.
            if len(fields) < 6 or fields[5] != wanted or fields[1][:2] != "r-":
                continue
            first, last = (int(address, 16) for address in fields[0].split("-"))
            if advise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _DONT_NEED) == 0:
                released += last - first
    return released


@contextlib.contextmanager
def released_meanwhile(path: Path) -> Iterator[None]:
    """Release the pages of a file at the end, and if it is large all the time: a library reads through it.

    Args:
        path: of the file; nothing happens where there is none.
    """
    ended = threading.Event()

    def keep_releasing() -> None:
        while not ended.wait(_SECONDS):
            release_pages(path)

    thread = threading.Thread(target=keep_releasing, name="release pages", daemon=True)
    large = path.is_file() and path.stat().st_size >= _LARGE
    if large:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if large:
            thread.join()
        release_pages(path)
