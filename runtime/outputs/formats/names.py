"""Names of files after the names of views."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePosixPath

_LONGEST = 150  # bytes in UTF-8; file systems take 255, with the ending and a number


def file_stems(names: Sequence[str]) -> list[str]:
    """Return a file name without ending per view, all different on any file system.

    ``room/0001.jpg`` becomes ``room_0001``: the ending goes, and whatever is no letter, digit, ``.``, ``_`` or ``-``
    becomes ``_``. Of equal ones the first stays, the others get ``_2``, ``_3``, ... A name with nothing left becomes
    ``view_0``.
    """
    stems = [_stem(name) or f"view_{index}" for index, name in enumerate(names)]
    return all_different(stems, lambda stem, number: f"{stem}_{number}")


def all_different(names: Sequence[str], numbered: Callable[[str, int], str], reserved: Iterable[str] = ()) -> list[str]:
    """Return the names, all different on any file system: of equal ones the first stays, the others get a number.

    Args:
        names: that are wanted.
        numbered: makes another name of one and a number, which is 2 or more.
        reserved: names that none may have.
    """
    count = Counter(map(_key, names))
    taken = set(map(_key, reserved))
    result = []
    for name in names:
        unique, number = name, 2
        # A number must not make the name that another view has by itself.
        while _key(unique) in taken or (unique != name and _key(unique) in count):
            unique, number = numbered(name, number), number + 1
        taken.add(_key(unique))
        result.append(unique)
    return result


def _stem(name: str) -> str:
    path = PurePosixPath(unicodedata.normalize("NFC", name).replace("\\", "/"))
    text = re.sub(r"[^\w.-]+", "_", path.with_suffix("").as_posix() if path.name else "").strip("._-")
    return text.encode()[-_LONGEST:].decode(errors="ignore")


def _key(name: str) -> str:
    """What file systems may hold for the same name."""
    return unicodedata.normalize("NFC", name).casefold()
