"""Where a result is made before it is in place: a folder beside its target, locked by the process that fills it.

A lock ends with its process, however that ends. A staging folder without a living owner is what a killed process left:
whoever writes into the same folder next finishes or undoes what was half done there, and removes it. A file moves into
place in one step, and so does a folder. A folder that replaces another changes places with it where the system can
do that in one step (Linux, macOS); elsewhere, in a folder that is a mount point, and in the current folder, files move
one by one and a journal says how to put them back.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import OutputError
from .replacement import JOURNAL, NEW, PREFIX, is_staging, recover

WAIT_SECONDS = 5.0
"""How long a folder that another process writes is waited for."""

_LOCK = "lock"


@dataclass(frozen=True)
class Staging:
    """A locked staging folder: ``new`` and its suffix is what is made in it, ``target`` where it goes."""

    place: Path
    target: Path
    inside: bool = False

    @property
    def new(self) -> Path:
        """What is being made; a file has the suffix of its target."""
        return self.place / f"{NEW}{self.target.suffix[:32]}"


@contextmanager
def staging(target: Path, *, inside: bool = False, exclusive: bool = False, tidy: bool = True) -> Iterator[Staging]:
    """Yield a locked, empty staging folder for ``target``, and remove it with what is left in it.

    Args:
        target: absolute path without links.
        inside: whether the folder ``target`` holds the staging folder, not its parent.
        exclusive: whether two processes must not make the same target at the same time.
        tidy: whether leftovers of dead processes in the same folder are finished or removed before.

    Raises:
        OutputError: another process makes ``target``.
        OSError: the staging folder could not be made.
    """
    if tidy:
        clean(target if inside else target.parent)
    place = _place_of(target, inside)
    if not exclusive:
        place = place.with_name(f"{place.name}-{secrets.token_hex(6)}")
    lock = _acquire(place, target, WAIT_SECONDS)
    try:
        recover(place)
        if (place / JOURNAL).exists():
            raise OutputError(f"{place}: was left by a process that was killed; move what is yours out and remove it")
        yield Staging(place, target, inside)
    finally:
        _release(place, lock)


def clean(home: Path) -> None:
    """Finish or remove what dead processes left in the folder ``home``; what is not ours or is in use stays."""
    try:
        places = [entry.name for entry in os.scandir(home) if is_staging(entry.name)]
    except OSError:
        return  # writing there says why
    for name in places:
        _clean_place(home / name)


def recover_folder(target: Path) -> None:
    """Finish or undo what a killed process left of a replacement of the folder ``target``, if there is such a thing."""
    try:
        real = Path(os.path.realpath(target))
    except (OSError, ValueError):
        return  # opening it says why
    for inside in (False, True):
        place = _place_of(real, inside)
        if os.path.lexists(place):
            _clean_place(place)


# ---- the staging folder and its lock -----------------------------------------------------------------------------


def _place_of(target: Path, inside: bool) -> Path:
    digest = hashlib.sha256(os.fsencode(os.path.normcase(target.name))).hexdigest()[:16]
    return (target if inside else target.parent) / f"{PREFIX}{digest}"


def _acquire(place: Path, target: Path, patience: float) -> int:
    """Make a staging folder and lock it; returns the descriptor of the lock."""
    end = time.monotonic() + patience
    while True:
        lock = _try_lock(place, make=True)
        if lock is not None:
            return lock
        if time.monotonic() > end:
            raise OutputError(
                f"{target}: another process writes it now; wait until that is done, or choose another name"
            )
        time.sleep(0.05)


def _try_lock(place: Path, make: bool = False) -> int | None:
    """The descriptor of the lock of ``place``; None if another process has it, or the folder went.

    Raises:
        OutputError: something that is not ours has the name.
        OSError: it could not be made.
    """
    if make:
        with suppress(FileExistsError):
            os.mkdir(place, 0o700)
    if not _is_our_folder(place):
        if make and os.path.lexists(place):
            raise OutputError(f"{place}: is in the way and not of this user; remove it, or choose another place")
        return None
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        descriptor = os.open(place / _LOCK, flags, 0o600)
    except FileNotFoundError:
        return None
    try:
        if _lock(descriptor) and os.path.samestat(os.fstat(descriptor), os.stat(place / _LOCK)):
            return descriptor
    except OSError:
        pass  # its owner removed it at this moment
    os.close(descriptor)
    return None


def _release(place: Path, lock: int) -> None:
    """Remove a staging folder and give its lock back; without a journal nothing in it is of anybody else."""
    try:
        if not (place / JOURNAL).exists():
            for entry in list(os.scandir(place)):
                if entry.name != _LOCK:
                    _remove(Path(entry.path))
            if os.name == "nt":  # an open file cannot be removed there
                os.close(lock)
                lock = -1
            with suppress(OSError):
                (place / _LOCK).unlink()
                place.rmdir()
    finally:
        if lock >= 0:
            os.close(lock)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _clean_place(place: Path) -> None:
    """Recover and remove a staging folder that no living process owns."""
    try:
        lock = _try_lock(place)
    except OSError:
        return
    if lock is None:
        return
    try:
        recover(place)
    except OSError:
        pass  # what it holds stays there, with its journal, for the next time
    finally:
        _release(place, lock)


def _is_our_folder(path: Path) -> bool:
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and (not hasattr(os, "geteuid") or status.st_uid == os.geteuid())


def _lock(descriptor: int) -> bool:
    """Whether this process has the lock now; true on file systems without locks."""
    try:
        if os.name == "nt":
            import msvcrt  # exists there only

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)
    return True
