"""Names of image files after those of the originals: kept as they are, as far as COLMAP's text format holds them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from .formats.names import all_different

IMAGE_TYPES = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF",
}  # fmt: skip
"""Endings that stay, with the format that is written; an image of another kind becomes a PNG."""

_LONGEST = 200  # bytes of a part of a path in UTF-8; file systems take 255, with a number and an ending
_NOT_HELD = re.compile(r"[\s\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]")
"""White space, by which the columns are told apart, control characters, and what is no UTF-8."""


def image_names(names: Sequence[str]) -> list[str]:
    """Return a relative path with ``/`` per view, all different on any file system.

    Sub-folders, letters of any script and the ending stay. ``_`` stands for what the format cannot hold; an ending that
    COLMAP does not read gets ``.png`` behind it; a name that is there already gets ``_2``, ``_3``, ... A name that
    leads out of the folder loses that part.
    """
    wanted = [_cleaned(name, index) for index, name in enumerate(names)]
    folders = {parent.as_posix() for name in wanted for parent in PurePosixPath(name).parents}
    return all_different(wanted, _numbered, folders)


def image_type(name: str) -> str | None:
    """Return Pillow's name of the format that an ending says, of :data:`IMAGE_TYPES`; None for all others."""
    return IMAGE_TYPES.get(PurePosixPath(name).suffix.lower())


def _cleaned(name: str, index: int) -> str:
    parts = [_NOT_HELD.sub("_", part) for part in name.replace("\\", "/").split("/")]
    parts = [_cut(part) for part in parts if part.strip("._") and not re.fullmatch(r"[A-Za-z]:", part)]
    path = "/".join(parts) or f"view_{index}"
    return path if image_type(path) is not None else f"{path}.png"


def _cut(part: str) -> str:
    """A part of a path that is not too long: its end, which has the number and the ending."""
    return part.encode()[-_LONGEST:].decode(errors="ignore")


def _numbered(name: str, number: int) -> str:
    path = PurePosixPath(name)
    return path.with_name(f"{path.stem}_{number}{path.suffix}").as_posix()
