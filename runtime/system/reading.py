"""Opening files that somebody else made: regular files alone, and no more of them than is wanted."""

from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO

PathLike = str | os.PathLike[str]

_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISDIR, "a folder"),
)
_NO_PATH = "the path has a character that no path can have"
_LONGEST_SHOWN = 160
_FLAGS = ("O_BINARY", "O_NOCTTY", "O_NONBLOCK")  # of which a system has some


def open_file(path: PathLike) -> BinaryIO:
    """Open a regular file to read its bytes.

    A pipe would wait for somebody to write into it, a device may have no end: they are refused without being waited
    for.

    Raises:
        OSError: it cannot be opened; ``strerror`` says why in words, for an unusable path too.
    """
    flags = os.O_RDONLY
    for name in _FLAGS:
        flags |= getattr(os, name, 0)
    try:
        descriptor = os.open(path, flags)
    except ValueError:  # NUL, or what the file system's encoding lacks
        raise OSError(errno.EINVAL, _NO_PATH) from None
    except OSError:
        _refuse_other(os.stat(path).st_mode)  # a socket cannot even be opened
        raise
    try:
        _refuse_other(os.fstat(descriptor).st_mode)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _refuse_other(mode: int) -> None:
    kind = next((words for is_kind, words in _KINDS if is_kind(mode)), None)
    if kind is not None:
        raise OSError(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, f"it is {kind}, not a file")


def read_file(path: PathLike, most: int) -> bytes:
    """Return the content of a regular file; raises as :func:`open_file`, also if it is more than ``most`` bytes."""
    with open_file(path) as file:
        content = file.read(most + 1) or b""  # None where a file of /proc has nothing to give now
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it is larger than the {most} bytes that such a file may have")
    return content


def path_problem(path: PathLike) -> str | None:
    """Return why there can be nothing at a path, such as a name that is too long; None where there is, or could be."""
    if not os.fspath(path):  # a Path of it would be the working folder
        return "the path is empty"
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        return _NO_PATH
    except OSError as error:
        return error.strerror or str(error)
    return None


def shown_path(path: PathLike) -> str:
    """Return a path for a message: short, and without characters that would change how the message is read."""
    text = os.fsdecode(path)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    half = _LONGEST_SHOWN // 2
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:half]}...{text[-half:]}"
