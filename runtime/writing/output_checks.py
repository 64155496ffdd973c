"""Refuse, before long work, what writing its result would refuse at the end, and in the same words."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from ..errors import OutputError
from .files import check_file_target, no_folder, output_error


def check_writable(path: str | os.PathLike[str], *, folder: bool = False) -> None:
    """Refuse a path that a file, or a ``folder`` of files, cannot be written to. Nothing is made.

    Missing parent folders are no reason, because writing makes them.

    Raises:
        OutputError: something is in the way (a folder, a file, a device), or there is no permission.
    """
    target = Path(os.path.realpath(path))
    try:
        mode = _mode(target)
        if not folder:
            check_file_target(target)
        elif mode is not None and not stat.S_ISDIR(mode):
            raise no_folder(path)
        nearest = target if folder else target.parent
        while (mode := _mode(nearest)) is None:
            nearest = nearest.parent
        if not stat.S_ISDIR(mode):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    except OutputError:
        raise
    except OSError as error:
        raise output_error(Path(path), error) from error


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None
