"""Names of files after the names of views."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

_LONGEST = 150  # bytes in UTF-8; file systems take 255, with the ending and a number


def file_stems(names: Sequence[str]) -> list[str]:
    """Return a file name without ending per view, all different on any file system.

    ``room/0001.jpg`` becomes ``room_0001``: the ending goes, and whatever is no letter, digit, ``.``, ``_`` or ``-``
    becomes ``_``. Of equal ones the first stays, the others get ``_2``, ``_3``, ... A name with nothing left becomes
    ``view_0``.
    """
    stems = [_stem(name) or f"view_{index}" for index, name in enumerate(names)]
    count = Counter(map(_key, stems))
    taken = set[str]()
    result = []
    for stem in stems:
        unique, number = stem, 2
        # A number must not make the name that another view has by itself.
        while _key(unique) in taken or (unique != stem and _key(unique) in count):
            unique, number = f"{stem}_{number}", number + 1
        taken.add(_key(unique))
        result.append(unique)
    return result


def _stem(name: str) -> str:
    path = PurePosixPath(unicodedata.normalize("NFC", name).replace("\\", "/"))
    text = re.sub(r"[^\w.-]+", "_", path.with_suffix("").as_posix() if path.name else "").strip("._-")
    return text.encode()[-_LONGEST:].decode(errors="ignore")


def _key(stem: str) -> str:
    """What file systems may hold for the same name."""
    return stem.casefold()
