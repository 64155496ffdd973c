"""Weight files that a library maps into memory and then copies into a layout of its own: their pages need not stay."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

_MAPS = Path("/proc/self/maps")
_DONT_NEED = 4
"""``MADV_DONTNEED`` of madvise(2)."""


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
