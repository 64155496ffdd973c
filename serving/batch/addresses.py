"""Files of scenes, here or at any address that fsspec knows: opened, listed, compared, fetched."""

from __future__ import annotations

import glob
import hashlib
import os
import posixpath
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mapengine.runtime.errors import ImageReadError, InputError
from mapengine.runtime.system.reading import open_file, shown_path

_LOCAL = ("file://", "local://")
_BLOCK = 2**22
_LISTS_NEIGHBOURS = ".json"
"""Ending of files that name others beside them: their whole folder is fetched."""


def is_remote(address: str) -> bool:
    """Return whether an address is one for fsspec, such as ``s3://bucket/scenes``, and no path of this machine."""
    return "://" in address and not address.startswith(_LOCAL)


def local_path(address: str) -> str:
    """Return the path of a local address, with ``file://`` or without."""
    return next((address.removeprefix(prefix) for prefix in _LOCAL if address.startswith(prefix)), address)


def joined(folder: str, name: str) -> str:
    """Return the address of ``name`` seen from ``folder``; one that is absolute stays as it is."""
    if "://" in name or (not is_remote(folder) and os.path.isabs(name)):
        return local_path(name) if not is_remote(name) else name
    return posixpath.join(folder, name) if is_remote(folder) else os.path.join(folder, name)


def parent_of(address: str) -> str:
    """Return the folder of a file."""
    return address.rpartition("/")[0] if is_remote(address) else os.path.dirname(os.path.abspath(address))


def is_folder(address: str) -> bool:
    """Return whether there is a folder.

    Raises:
        InputError: a remote address that cannot be asked.
    """
    if not is_remote(address):
        return os.path.isdir(address)
    system, path = remote(address)
    with asking(address):
        return bool(system.isdir(path))


def remote(address: str) -> tuple[Any, str]:
    """Return fsspec's file system and the path in it.

    Raises:
        InputError: a protocol that is not known, or whose package is not installed.
    """
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise InputError(f"{shown_path(address)}: {_sentence(error)}; install what it names") from error
    except Exception as error:  # every file system has errors of its own
        raise InputError(f"{shown_path(address)}: cannot be opened: {_sentence(error)}; check the address") from error
    return system, str(path)


class asking:
    """Turns whatever a remote file system raises into an :class:`ImageReadError` about ``address``."""

    def __init__(self, address: str) -> None:
        self._address = address

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, at: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, InputError):
            raise ImageReadError(
                f"{shown_path(self._address)}: cannot be read: {_sentence(error)}; check the address"
            ) from error


def open_address(address: str) -> BinaryIO:
    """Open a file to read its bytes.

    Raises:
        InputError: it cannot be opened.
    """
    if is_remote(address):
        system, path = remote(address)
        with asking(address):
            opened: BinaryIO = system.open(path, "rb")
            return opened
    try:
        return open_file(address)
    except FileNotFoundError:
        raise InputError(f"{shown_path(address)}: there is no such file or folder; check the path") from None
    except OSError as error:
        raise InputError(f"{shown_path(address)}: cannot be read: {error.strerror}; check the path") from error


def entries_of(folder: str) -> Iterator[tuple[str, bool]]:
    """Yield name and whether it is a folder, of everything in a folder that is not hidden, in no order."""
    if is_remote(folder):
        system, path = remote(folder)
        with asking(folder):
            found = [(posixpath.basename(e["name"].rstrip("/")), e["type"] == "directory") for e in system.ls(path)]
    else:
        try:
            with os.scandir(folder) as entries:
                yield from ((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
        except OSError as error:
            raise InputError(f"{shown_path(folder)}: cannot be listed: {error.strerror}; check the path") from error
        return
    yield from (entry for entry in found if entry[0] and not entry[0].startswith("."))


def signatures(inputs: Iterable[str]) -> dict[str, str]:
    """Return the files behind the inputs of a scene, and of each what changes when it is written to.

    Folders are listed with all that is in them but hidden files. What is not there is left out: reading says so.
    """
    found: dict[str, str] = {}
    for address in inputs:
        if is_remote(address):
            found |= _remote_signatures(address)
            continue
        paths = [address] if os.path.lexists(address) else glob.glob(address, recursive=True)
        for path in sorted(paths):
            for file in _files_below(path) if os.path.isdir(path) else (path,):
                signature = signature_of(file)
                if signature is not None:
                    found[file] = signature
    return found


def signature_of(file: str) -> str | None:
    """Return what changes when a local file is written to; None if it is not there."""
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return None
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"


def content_digest(files: Iterable[tuple[str, str]]) -> str:
    """Return the SHA-256 of names and contents of local files.

    Args:
        files: of each the name that it counts under and its path.

    Raises:
        ImageReadError: one that cannot be read.
    """
    digest = hashlib.sha256()
    for name, path in files:
        own = hashlib.sha256()
        try:
            with open_file(path) as file:
                while block := file.read(_BLOCK):
                    own.update(block)
        except OSError as error:
            raise ImageReadError(f"{shown_path(path)}: cannot be read: {error.strerror}") from error
        digest.update(f"{name}\0{own.hexdigest()}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def named_files(inputs: Iterable[str]) -> list[tuple[str, str]]:
    """Return the local files behind inputs for :func:`content_digest`, under names that do not say where they lie."""
    found = []
    for number, address in enumerate(inputs):
        top = address if os.path.isdir(address) else os.path.dirname(address)
        found += [(f"{number}/{os.path.relpath(file, top)}", file) for file in signatures([address])]
    return found


def fetched(inputs: Iterable[str], folder: Path) -> list[str]:
    """Return local paths of inputs; what is remote is fetched into ``folder``.

    Raises:
        InputError: it cannot be fetched.
    """
    return [_fetch(address, folder / str(n)) if is_remote(address) else address for n, address in enumerate(inputs)]


def _fetch(address: str, folder: Path) -> str:
    system, path = remote(address)
    folder.mkdir(parents=True, exist_ok=True)
    with asking(address):
        name = posixpath.basename(path.rstrip("/"))
        if system.isdir(path):
            target = folder / name
            system.get(path.rstrip("/") + "/", f"{target}/", recursive=True)
            return str(target)
        if path.endswith(_LISTS_NEIGHBOURS):
            system.get(posixpath.dirname(path) + "/", f"{folder}/", recursive=True)
            return str(folder / name)
        matches = [path] if system.exists(path) else system.glob(path)
        if not matches:
            raise ImageReadError(f"{shown_path(address)}: there is no such file; check the address")
        for match in matches:
            system.get(match, str(folder / posixpath.basename(match)))
    return str(folder / (glob.escape(name) if matches == [path] else name)) if matches != [path] else str(folder / name)


def _remote_signatures(address: str) -> dict[str, str]:
    system, path = remote(address)
    with asking(address):
        found: dict[str, Any] = {}
        for match in [path] if system.exists(path) else system.glob(path):
            top = posixpath.dirname(match) if match.endswith(_LISTS_NEIGHBOURS) else match
            found |= system.find(top, detail=True)
    prefix = address.partition("://")[0]
    return {
        f"{prefix}://{name}": hashlib.sha256(repr(sorted((k, str(v)) for k, v in info.items())).encode()).hexdigest()
        for name, info in sorted(found.items())
    }


def _files_below(folder: str) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(parent, name) for name in sorted(files) if not name.startswith("."))


def _sentence(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text.rstrip(".") if text else type(error).__name__
