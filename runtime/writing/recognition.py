"""What we replace: only what we can recognise as ours, and only by the same kind of thing.

Every file that mapengine writes says so inside: ``mapengine scene`` and the like. Where that stands:

* ``.npz``: the comment of the archive,
* PNG: a text chunk ``Software``,
* binary glTF: ``asset.generator``,
* PLY: a comment of the header,
* LAS and LAZ: the name of the program in the header,
* a recording of Rerun: the name of the recording,
* text: a comment in the first line,
* JSON: the first key ``generator``, or the layout of a record of `profile`, `eval` or `calibrate`,
* Markdown and HTML: a comment in the first line,
* a folder: ``mapengine.json``, which lists the files that were written, with their hashes. What the user added or
  changed is not ours. An engine bundle has its manifest instead.

An empty file holds nothing, so it may be replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL.PngImagePlugin import PngInfo

from ..errors import OutputError
from .replacement import files_below, is_staging

RECORD = "mapengine.json"
"""The list of the files of a folder that mapengine wrote."""

_HEAD = 2**16
_LAS_SOFTWARE = slice(58, 90)
_SCENES = {"scene", "point cloud"}
"""A scene in one format may replace the same in another."""
_MOST_JSON = 256 * 2**20
_MARK = re.compile(r"mapengine [A-Za-z][A-Za-z_ -]*[a-z]")
_RECORDING = re.compile(rb"(mapengine [A-Za-z ]*[a-z]) [0-9a-f]{32}")
_CALIBRATION = re.compile(rb'\A\{\s*"schema_version": \d+,\s*(?:"\w+": "\w*",\s*)*"model": \{\s*"id": ')
"""How a calibration begins. Not by its whole layout: a damaged one may be replaced, too."""
_ORIGIN = {"benchmark", "machine", "versions", "commit"}


def marker(kind: str) -> str:
    """Return the words that a file of this kind carries."""
    return f"mapengine {kind}"


def mark_npz(path: Path, kind: str) -> None:
    """Write the mark into a finished ``.npz``."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = marker(kind).encode()


def png_mark(kind: str) -> PngInfo:
    """Return the text chunks of a PNG of this kind, for ``Image.save(..., pnginfo=...)``."""
    info = PngInfo()
    info.add_text("Software", marker(kind))
    return info


def record_kind(record: Mapping[str, Any]) -> str:
    """Return the kind of a record of a measurement, which names its ``benchmark``."""
    return f"{record['benchmark']} record"


def kind_of(path: Path) -> str | None:
    """Return the kind that a file says it is; None for one that is not ours.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
        if head.startswith(b"PK"):
            return _kind(_archive_comment(path))
        if head.startswith(b"\x89PNG\r\n\x1a\n"):
            return _kind(_png_software(head))
        if head.startswith(b"glTF"):
            length = int.from_bytes(head[12:16], "little")
            rest = file.read(max(0, min(length, _MOST_JSON) + 20 - len(head)))
            document = _json((head + rest)[20 : 20 + length])
            asset = document.get("asset")
            return _kind(asset.get("generator") if isinstance(asset, dict) else None)
        if head.startswith(b"ply\n"):
            comments = re.findall(rb"^comment (.*)$", head.partition(b"end_header")[0], re.MULTILINE)
            return next((kind for kind in map(_kind, comments) if kind), None)
        if head.startswith(b"LASF"):
            return _kind(head[_LAS_SOFTWARE].rstrip(b"\0"))
        if head.startswith(b"RRF"):
            found = _RECORDING.search(head)
            return _kind(found[1]) if found else None
        if head.startswith(b"# "):
            return _kind(head[2:].partition(b"\n")[0])
        if head.startswith(b"<!-- "):
            return _kind(head[5:].partition(b" -->")[0])
        if _CALIBRATION.match(head):
            return "calibration"
        if head.lstrip().startswith(b"{"):
            return _json_kind(_json(head + file.read(_MOST_JSON)))
    return None


def check_ours(path: Path, kind: str | None) -> None:
    """Refuse to replace a file that is not ours, or is of another kind (None: any).

    Raises:
        OutputError: what is there.
        OSError: it cannot be read.
    """
    if kind is None:
        return
    try:
        if path.stat().st_size == 0:
            return
    except FileNotFoundError:
        return
    found = kind_of(path)
    if found == kind or {found, kind} <= _SCENES:
        return
    what = f"is a {found} of mapengine, not a {kind}" if found else "was not written by mapengine"
    raise OutputError(f"{path}: there is a file already, which {what}; choose another name, or remove it")


def our_files(folder: Path, kind: str, names: Sequence[str] | None = None) -> list[str]:
    """Return the files of a folder that we wrote, as relative paths with ``/``; none if it is empty or not there.

    Args:
        names: as :func:`.folders.atomic_folder` takes them.

    Raises:
        OutputError: it holds other things and no result of this kind, or one that was changed since.
        OSError: it cannot be read.
    """
    if not folder.is_dir() or all(is_staging(name) for name in os.listdir(folder)):
        return []
    record = folder / RECORD
    known: Any = None
    if record.is_file() and not record.is_symlink() and record.stat().st_size <= _MOST_JSON:
        document = _json(record.read_bytes())
        known = document.get("files") if document.get("generator") == marker(kind) else None
    if not isinstance(known, dict) or not all(_is_below(name) for name in known):
        taken = [name for name in (RECORD, *(names or ())) if os.path.lexists(folder / name)]
        if names is not None and not taken:
            return []
        if taken:
            raise OutputError(
                f"{folder / taken[-1]}: is there already, and the folder is no {kind} that mapengine wrote; choose "
                "another folder"
            )
        raise OutputError(
            f"{folder}: there is a folder already, which is not empty and no {kind} that mapengine wrote; choose "
            "another one, or empty it"
        )
    found = [RECORD]
    for name, digest in known.items():
        path = folder / name
        if not os.path.lexists(path):
            continue
        if path.is_symlink() or not path.is_file() or _digest(path) != digest:
            raise OutputError(
                f"{path}: was changed since mapengine wrote it; choose another folder, or move it elsewhere"
            )
        found.append(name)
    return found


def write_folder_record(folder: Path, kind: str) -> None:
    """List the files of a finished folder in it."""
    files = {name: _digest(folder / name) for name in files_below(folder)}
    document = {"generator": marker(kind), "files": files}
    (folder / RECORD).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _kind(text: object) -> str | None:
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    return text.removeprefix("mapengine ") if isinstance(text, str) and _MARK.fullmatch(text.strip()) else None


def _archive_comment(path: Path) -> bytes:
    """The comment at the end of an archive; what else is in it is not read."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _HEAD - 22))
        end = file.read()
    return end[end.rfind(b"PK\5\6") :][22:]


def _png_software(head: bytes) -> bytes | None:
    position = 8
    while position + 8 <= len(head):
        length, name = struct.unpack(">I4s", head[position : position + 8])
        content = head[position + 8 : position + 8 + length]
        if name == b"tEXt" and content.startswith(b"Software\0"):
            return content.removeprefix(b"Software\0")
        position += 12 + length
    return None


def _json(content: bytes) -> dict[str, Any]:
    """The object that a JSON text holds; an empty one if it is something else."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _json_kind(document: dict[str, Any]) -> str | None:
    if "generator" in document:
        return _kind(document["generator"])
    if set(document) >= _ORIGIN and isinstance(document["benchmark"], str):
        return record_kind(document)
    return None


def _is_below(name: object) -> bool:
    return isinstance(name, str) and bool(name) and not os.path.isabs(name) and ".." not in Path(name).parts


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()
