"""Writing files so that a reader never meets half of one, and nothing is lost that is not ours.

Everything is written in a staging folder beside its target (so on the same disk) and moved into place when it is
complete. Whatever fails on the way, the staging folder is removed, an older result stays as it was, and the caller gets
one :class:`~.errors.OutputError`.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MapEngineError, OutputError
from .recognition import check_ours, mark_npz, marker, record_kind
from .replacement import is_staging
from .staging import staging

_REASONS = {
    errno.EACCES: "there is no permission to write there; choose another place or change its permissions",
    errno.EPERM: "there is no permission to write there; choose another place or change its permissions",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.ENOSPC: "the disk is full; free some space or choose another place",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another place",
    errno.EFBIG: "the file is too large for this file system; choose another place",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another place",
    errno.EEXIST: "a part of the path is a file, not a folder; choose another place",
    errno.ENOTEMPTY: "something else wrote to the same folder meanwhile; run it again or choose another place",
    errno.EISDIR: "it is a folder; give the name of a file",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ELOOP: "the path is a loop of symbolic links; choose another place",
}


def output_error(path: Path, error: OSError) -> OutputError:
    """The one-sentence :class:`OutputError` for an operating system error met while ``path`` was being written."""
    reason = _REASONS.get(error.errno or 0, error.strerror or str(error) or type(error).__name__)
    result = OutputError(f"{path}: could not be written: {reason}")
    result.errno = error.errno
    return result


def no_folder(path: str | os.PathLike[str]) -> OutputError:
    """Return the error for a folder of results whose path is that of a file."""
    return OutputError(f"{path}: could not be written: it is a file, not a folder; choose another name")


def output_path(path: str | os.PathLike[str]) -> Path:
    """``path`` as a :class:`~pathlib.Path`, or :class:`OutputError` for what cannot name a file."""
    try:
        text = os.fspath(path)
    except TypeError:
        raise OutputError(f"{path!r} is no path to write to; give a file name") from None
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise OutputError(f"{text!r} cannot be the name of a file; give another one")
    return Path(text)


@contextmanager
def atomic_write(path: str | os.PathLike[str], kind: str | None) -> Iterator[Path]:
    """Yield a temporary path with the suffix of ``path``; move it onto ``path`` if the block succeeds.

    Missing parent folders are created. A symbolic link is followed. An existing file is replaced if it is an older one
    of the same kind. The block must create the temporary file, with the mark of its kind.

    Args:
        kind: of the content, as :mod:`.recognition` knows it; None for a source file of this project.

    Raises:
        OutputError: an existing file that is not ours, no permission, full disk, a folder or a device in the way, or
            any other failure to write. Errors of the block that are not about writing pass through. In all cases
            nothing half-written remains.
    """
    target = output_path(path)
    with writing(path) as made:
        target = real_path(target)
        check_file_target(target)
        check_ours(target, kind)
        made += make_folders(target.parent)
        with staging(target) as place:
            yield place.new
            if not any(is_staging(name) for name in target.parent.parts):  # what is staged is flushed with its folder
                flush(place.new)
            if target.exists():
                shutil.copymode(target, place.new)
            check_file_target(target)
            check_ours(target, kind)  # once more: something may have come there meanwhile
            os.replace(place.new, target)


def write_record(path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Write a record, which names its ``benchmark``, as indented JSON in one step; errors as :func:`atomic_write`."""
    kind = record_kind(record)
    write_text(path, kind, json.dumps({"generator": marker(kind), **record}, indent=1) + "\n")


def write_text(path: str | os.PathLike[str], kind: str | None, text: str) -> None:
    """Write a text in UTF-8 in one step; errors as :func:`atomic_write`."""
    with atomic_write(path, kind) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_markdown(path: str | os.PathLike[str], kind: str, text: str) -> None:
    """Write a text in Markdown in one step; errors as :func:`atomic_write`."""
    write_text(path, kind, f"<!-- {marker(kind)} -->\n\n{text}\n")


def write_npz(path: str | os.PathLike[str], kind: str, arrays: Mapping[str, Any]) -> None:
    """Write arrays as ``.npz`` in one step, whatever the suffix of ``path``; errors as :func:`atomic_write`."""
    with atomic_write(path, kind) as temporary:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
        mark_npz(temporary, kind)


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[list[Path]]:
    """Turn errors of the system into :class:`OutputError` about ``path``.

    Yields:
        A list for folders that the block makes, deepest first; those that are empty go when it fails.
    """
    made: list[Path] = []
    try:
        yield made
    except BaseException as error:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError) and not isinstance(error, MapEngineError):
            raise output_error(Path(path), error) from error
        raise


def real_path(path: Path) -> Path:
    """Return where a path leads, with all links followed."""
    return Path(os.path.realpath(path))


def check_file_target(target: Path) -> None:
    """Refuse a target that ``os.replace`` would refuse late, or worse, would replace although it must not."""
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if not stat.S_ISREG(mode):
        raise OutputError(f"{target}: could not be written: it is a device or a pipe; give the name of a file")
    if not os.access(target, os.W_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(target))


def make_folders(folder: Path) -> list[Path]:
    """Create ``folder`` and its missing parents; return the created ones, deepest first."""
    missing = [folder, *folder.parents]
    missing = missing[: next((i for i, f in enumerate(missing) if f.exists()), len(missing))]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        for made in missing:
            with suppress(OSError):
                made.rmdir()
        raise
    return missing


def flush(file: Path) -> None:
    """Force the file onto the disk: some file systems report a full disk only then."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
