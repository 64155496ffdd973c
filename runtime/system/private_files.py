"""Files in a folder that only this user can change, reached without following links.

What is kept to save time is believed later: a golden check is skipped, kernels are run. So a folder or a file that
another user owns, or that its group or everybody may write, is not used, and no link is followed on the way. Windows
has neither such modes nor these ways to open a file: there the folder's access list decides, which for the user's own
folders lets nobody else in.
"""

from __future__ import annotations

import os
import secrets
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_AT = {os.open, os.mkdir, os.rename, os.unlink} <= os.supports_dir_fd and os.scandir in os.supports_fd
"""Whether files can be named relative to an open folder, so that nobody exchanges it under our hands."""

_SAFE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | _SAFE
_PART = ".part"
_STALE_SECONDS = 3600


class PrivateFolder:
    """An open folder of this user's."""

    def __init__(self, path: Path, descriptor: int | None) -> None:
        """Made by :func:`private_folder`."""
        self._path = path
        self._descriptor = descriptor

    def read(self, name: str, most: int) -> bytes:
        """Return the content of a file.

        Raises:
            OSError: it cannot be read, is a link, not a file, of another user, writable by others, or larger than
                ``most`` bytes.
        """
        descriptor = self._open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            _check(status, self._path / name, stat.S_ISREG(status.st_mode))
            content = file.read(most + 1)
        if len(content) > most:
            raise OSError(f"{self._path / name}: is larger than {most} bytes")
        return content

    def write(self, name: str, content: bytes) -> None:
        """Write a file in one step; whatever had the name, a link among them, is replaced and not written to.

        Raises:
            OSError: it could not be written.
        """
        self._remove_parts()
        part = f".{name}-{secrets.token_hex(6)}{_PART}"
        descriptor = self._open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if self._descriptor is None:
                os.replace(self._path / part, self._path / name)
            else:
                os.rename(part, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        except BaseException:
            with suppress(OSError):
                self.remove(part)
            raise

    def remove(self, name: str) -> None:
        """Remove a file, or a link itself."""
        if self._descriptor is None:
            os.unlink(self._path / name)
        else:
            os.unlink(name, dir_fd=self._descriptor)

    def names(self) -> list[tuple[str, float]]:
        """Return name and time of the last change of every file, no link among them."""
        with os.scandir(self._path if self._descriptor is None else self._descriptor) as entries:
            files = [entry for entry in entries if entry.is_file(follow_symlinks=False)]
            return [(entry.name, entry.stat(follow_symlinks=False).st_mtime) for entry in files]

    def _open(self, name: str, flags: int) -> int:
        if self._descriptor is None:
            if (self._path / name).is_symlink():
                raise OSError(f"{self._path / name}: is a link")
            return os.open(self._path / name, flags | _SAFE, 0o600)
        return os.open(name, flags | _SAFE, 0o600, dir_fd=self._descriptor)

    def _remove_parts(self) -> None:
        """Remove what processes that were killed while they wrote have left."""
        for name, changed in self.names():
            if name.endswith(_PART) and time.time() - changed > _STALE_SECONDS:
                with suppress(OSError):
                    self.remove(name)


@contextmanager
def private_folder(root: Path, rooms: Sequence[str] = (), *, make: bool = False) -> Iterator[PrivateFolder]:
    """Open the folder ``root/rooms...``.

    Args:
        root: may be a link of this user's; the rooms in it may not.
        rooms: names of folders in each other.
        make: whether to make what is missing, for this user only.

    Raises:
        OSError: it is not there, or another user may write to it.
        ValueError: a path that is none.
    """
    status = os.lstat(root) if os.path.lexists(root) else None
    if status is not None and stat.S_ISLNK(status.st_mode):
        if hasattr(os, "geteuid") and status.st_uid not in (os.geteuid(), 0):
            raise PermissionError(f"{root}: is a link of another user")
        root = root.resolve()
    if make:
        root.parent.mkdir(parents=True, exist_ok=True)
    path, descriptor = root, _enter(root, root, None, make)
    try:
        for room in rooms:
            path = path / room
            inner = _enter(path, Path(room), descriptor, make)
            if descriptor is not None:
                os.close(descriptor)
            descriptor = inner
        yield PrivateFolder(path, descriptor)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _enter(path: Path, name: Path, parent: int | None, make: bool) -> int | None:
    """Open a folder relative to an open one, and check it; None where the system has no open folders."""
    if make:
        with suppress(FileExistsError):
            os.mkdir(path if parent is None else name, 0o700, **({} if parent is None else {"dir_fd": parent}))
    if not _AT:
        status = os.lstat(path)
        _check(status, path, stat.S_ISDIR(status.st_mode))
        return None
    descriptor = os.open(name, _FOLDER, dir_fd=parent)
    try:
        status = os.fstat(descriptor)
        _check(status, path, stat.S_ISDIR(status.st_mode))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _check(status: os.stat_result, path: Path, right_kind: bool) -> None:
    if not right_kind:
        raise OSError(f"{path}: is not what it should be")
    if not hasattr(os, "geteuid"):
        return
    if status.st_uid != os.geteuid():
        raise PermissionError(f"{path} belongs to another user")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{path} can be written by other users; run: chmod go-w {path}")
