"""Refuse, before long work, what writing its result would refuse at the end, and in the same words."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from .files import check_file_target, no_folder, output_path, real_path, writing
from .folders import Ours
from .recognition import check_ours, our_files

_Identity = tuple[int, int]


def check_writable(
    path: str | os.PathLike[str],
    kind: str | None,
    *,
    folder: bool = False,
    names: Sequence[str] | None = None,
    ours: Ours | None = None,
) -> None:
    """Refuse a path that a file, or a ``folder`` of files, cannot be written to. Nothing is made.

    Missing parent folders are no reason, because writing makes them.

    Args:
        kind: of what is to be written, as :mod:`.recognition` knows it.
        names, ours: as :func:`.folders.atomic_folder` takes them.

    Raises:
        OutputError: something is in the way (a folder, a file that is not ours, a device), or there is no permission.
    """
    named = output_path(path)
    with writing(path):
        target = real_path(named)
        mode = _mode(target)
        if not folder:
            check_file_target(target)
            if mode is not None:
                check_ours(target, kind)
        elif mode is not None and not stat.S_ISDIR(mode):
            raise no_folder(path)
        nearest = target if folder else target.parent
        while (mode := _mode(nearest)) is None:
            nearest = nearest.parent
        if not stat.S_ISDIR(mode):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        if folder and ours is not None:
            ours(target)
        elif folder and kind is not None:
            our_files(target, kind, names)


class InputPaths:
    """What a command reads, so that none of it is written over; the same file is known by any of its names."""

    def __init__(self, files: Iterable[str | os.PathLike[str]], folders: Iterable[str | os.PathLike[str]] = ()) -> None:
        """Note what is there.

        Args:
            files: that are read, and folders of which only some files are.
            folders: that are read as a whole, such as bundles: nothing is written into them.
        """
        self._files = _Places()
        self._parents = _Places()
        self._folders = _Places()
        for folder in folders:
            self._folders.add(folder, str(folder))
        seen: set[Path] = set()
        for name in [*files, *folders]:
            self._files.add(name, str(name))
            if _identity(Path(name)) is None:
                continue
            for parent in real_path(Path(name)).parents:
                if parent in seen:  # and so are those above it; thousands of images share them
                    break
                seen.add(parent)
                self._parents.add(parent, str(name))

    def conflict(
        self, path: str | os.PathLike[str], *, folder: bool = False, names: Sequence[str] | None = None
    ) -> str | None:
        """Return why an output must not be at ``path``, or None.

        Args:
            folder: whether the output is a folder.
            names: what is written into it; None for anything.
        """
        target = real_path(output_path(path))
        if target in self._files:
            return f"{path} is one of the inputs that are read; choose another name"
        if any(parent in self._folders for parent in target.parents):
            return f"{path} is among what is read; choose another place"
        for name in ("",) if folder and names is None else names or ():
            found = self._files.get(target / name) or self._parents.get(target / name)
            if found:
                return f"{path} would be written over {found}, which is read; choose another folder"
        return None


class _Places:
    """Names of files and folders; the same one is found by whatever path leads there."""

    def __init__(self) -> None:
        self._names: dict[_Identity | str, str] = {}

    def add(self, path: str | os.PathLike[str], name: str) -> None:
        for key in _keys(Path(path)):
            self._names.setdefault(key, name)

    def get(self, path: Path) -> str | None:
        return next((self._names[key] for key in _keys(path) if key in self._names), None)

    def __contains__(self, path: Path) -> bool:
        return self.get(path) is not None


def _keys(path: Path) -> list[_Identity | str]:
    """What a path is known by: where it leads, and device and number of what is there."""
    identity = _identity(path)
    try:
        real = os.path.normcase(os.path.realpath(path))
    except (OSError, ValueError):
        return []
    return [real] if identity is None else [real, identity]


def _identity(path: Path) -> _Identity | None:
    """Device and number of what is at a path, which all its names share; None if there is nothing."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None
