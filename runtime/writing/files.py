"""Writing results so that a reader never meets half of one.

Everything is written under a temporary name in the same folder (so on the same disk) and moved into place with
``os.replace`` when it is complete. Whatever fails on the way, the temporary files are removed, an older result stays as
it was, and the caller gets one :class:`~.errors.OutputError`.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import MapEngineError, OutputError

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
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` with the same suffix; move it onto ``path`` if the block succeeds.

    Missing parent folders are created. A symbolic link is followed, an existing file is replaced. The block must create
    the temporary file.

    Raises:
        OutputError: no permission, full disk, a folder or a device in the way, or any other failure to write.
            Errors of the block that are not about writing pass through. In both cases nothing half-written remains.
    """
    target = output_path(path)
    made: list[Path] = []
    temporary: Path | None = None
    try:
        target = Path(os.path.realpath(target))
        check_file_target(target)
        made = _make_folders(target.parent)
        temporary = target.parent / f".mapengine-{secrets.token_hex(6)}{target.suffix}"
        yield temporary
        _flush(temporary)
        if target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except BaseException as error:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()
        _remove_empty(made)
        if isinstance(error, OSError) and not isinstance(error, MapEngineError):
            raise output_error(Path(path), error) from error
        raise


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as indented JSON in one step.

    Raises:
        OutputError: as :func:`atomic_write`.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


@contextmanager
def atomic_folder(path: str | os.PathLike[str], stale: Iterable[str] = ()) -> Iterator[Path]:
    """Yield an empty temporary folder; when the block succeeds its content becomes the content of ``path``.

    A new folder appears in one step. In an existing folder, files of the same name are replaced, the files named by
    ``stale`` (relative paths that would contradict the new result) are removed and all others are left alone; if that
    fails half-way, every file is put back.

    Raises:
        OutputError: as :func:`atomic_write`; also where ``path`` or a folder of the result is an existing file.
    """
    target = output_path(path)
    made: list[Path] = []
    temporary: Path | None = None
    try:
        target = Path(os.path.realpath(target))
        if target.exists() and not target.is_dir():
            raise no_folder(path)
        existing = target.is_dir()
        # Inside an existing folder, since that may be a mount point or have a parent that is not writable.
        parent = target if existing else target.parent
        made = _make_folders(parent)
        temporary = parent / f".mapengine-{secrets.token_hex(6)}"
        (temporary / "new").mkdir(parents=True)
        yield temporary / "new"
        for file in _files_below(temporary / "new"):
            _flush(temporary / "new" / file)
        if existing:
            _merge(temporary / "new", target, temporary / "old", stale)
        else:
            os.replace(temporary / "new", target)
    except BaseException as error:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        _remove_empty(made)
        if isinstance(error, OSError) and not isinstance(error, MapEngineError):
            raise output_error(Path(path), error) from error
        raise
    shutil.rmtree(temporary, ignore_errors=True)


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


def _make_folders(folder: Path) -> list[Path]:
    """Create ``folder`` and its missing parents; the created ones, deepest first."""
    missing = [folder, *folder.parents]
    missing = missing[: next((i for i, f in enumerate(missing) if f.exists()), len(missing))]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        _remove_empty(missing)
        raise
    return missing


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _flush(file: Path) -> None:
    """Force the file onto the disk: some file systems report a full disk only then."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files_below(folder: Path) -> list[Path]:
    return sorted(f.relative_to(folder) for f in folder.rglob("*") if not f.is_dir())


def _merge(new: Path, target: Path, old: Path, stale: Iterable[str]) -> None:
    """Move the files of ``new`` into ``target``, replaced and stale ones into ``old``; undo all of it on a failure."""
    undo: list[tuple[Path, Path]] = []
    made: list[Path] = []

    def move(source: Path, destination: Path) -> None:
        made[:0] = _make_folders(destination.parent)
        os.replace(source, destination)
        undo.append((destination, source))

    try:
        files = _files_below(new)
        for file in [*files, *(Path(s) for s in stale)]:
            if (target / file).is_dir():
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(target / file))
            if (target / file).exists() or (target / file).is_symlink():
                move(target / file, old / file)
        for file in files:
            move(new / file, target / file)
    except BaseException:
        for destination, source in reversed(undo):
            os.replace(destination, source)
        _remove_empty(made)
        raise
