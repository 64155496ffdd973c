"""One folder in the place of another: in one step where the system can, else file by file with a journal.

Both ways begin with a journal in the staging folder, and both end in :func:`recover`, which is also what happens after
a process was killed on the way: there is one way to finish.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import OutputError

JOURNAL = "journal.json"
NEW = "new"
PREFIX = ".mapengine-"

_PLACE = re.compile(re.escape(PREFIX) + r"[0-9a-f]{16}(-[0-9a-f]{12})?")
_OLD = "old"
_MAX_JOURNAL_BYTES = 64 * 2**20


def is_staging(name: str) -> bool:
    """Return whether a file name is that of a staging folder."""
    return _PLACE.fullmatch(name) is not None


def files_below(folder: Path) -> list[str]:
    """Return what is in a folder and its folders, but for folders: relative paths with ``/``, sorted; no link is
    followed."""
    found: list[str] = []
    for parent, folders, files in os.walk(folder, onerror=_raise):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        relative = Path(parent).relative_to(folder)
        found += [(relative / name).as_posix() for name in (*files, *links)]
        folders[:] = [name for name in folders if not (relative == Path() and is_staging(name))]
    return sorted(name for name in found if not is_staging(name))


def replace_folder(place: Path, new_folder: Path, target: Path, inside: bool, ours: Iterable[str]) -> None:
    """Let the folder ``new_folder`` take the place of the folder ``target``; what is not ours moves over.

    Args:
        place: the locked staging folder that holds ``new_folder``.
        inside: whether ``place`` is in ``target``, not beside it.
        ours: the files of the old folder that may go, as paths relative to it with ``/``.

    Raises:
        OSError: it could not be done; ``target`` is then as it was.
    """
    old, new = target.stat(), new_folder.stat()
    names = files_below(new_folder)
    facts: dict[str, Any] = {"target": target.name, "inside": inside, "ours": sorted(ours)}
    _check_free(target, names, facts["ours"])
    if not inside and not _is_current(target):
        shutil.copymode(target, new_folder)
        if hasattr(os, "chown") and (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
            with suppress(OSError):  # only root may
                os.chown(new_folder, old.st_uid, old.st_gid)
        _write_journal(place, {**facts, "old": old.st_ino, "new": new.st_ino})
        try:
            if exchange(new_folder, target):
                return
        finally:
            recover(place)  # as after a kill: the journal tells whether the two changed places
    _merge(place, new_folder, target, names, facts)


def _merge(place: Path, new_folder: Path, target: Path, names: list[str], facts: dict[str, Any]) -> None:
    """Move the files one by one, replaced and stale ones into ``old``; undo all of it on a failure."""
    replaced = [name for name in facts["ours"] if os.path.lexists(target / name)]
    _write_journal(place, {**facts, "merged": names, "replaced": replaced})
    try:
        for name in replaced:
            _move(target / name, place / _OLD / name)
            _remove_empty_parents(target, name)
        for name in names:
            _move(new_folder / name, target / name)
        (place / JOURNAL).unlink()  # from here on the new files stay
    finally:
        recover(place)


def recover(place: Path) -> None:
    """Finish or undo a replacement whose journal is in the locked staging folder ``place``.

    After an exchange ``place`` holds the old folder: what is not ours in it moves into the new one and the rest is
    removed. Files that moved one by one are put back. Without a journal there is nothing to do.

    Raises:
        OSError: a file could not be moved; it is still in ``place``, and the next call goes on.
    """
    facts = _read_journal(place)
    if facts is None:
        return
    target = place.parent if facts["inside"] else place.parent / facts["target"]
    held = place / f"{NEW}{Path(facts['target']).suffix[:32]}"
    if "merged" in facts:
        _put_back(place, held, target, facts)
    elif _inode(held) == facts["old"]:
        if _inode(target) is None:
            os.rename(held, target)
        elif _inode(target) == facts["new"]:
            _move_foreign(held, target, frozenset(facts["ours"]))
            shutil.rmtree(held)
        else:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    elif _inode(held) not in (None, facts["new"]):
        raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), str(held))
    (place / JOURNAL).unlink()


def _put_back(place: Path, new: Path, target: Path, facts: dict[str, Any]) -> None:
    for name in facts["merged"]:
        if not os.path.lexists(new / name) and os.path.lexists(target / name):
            _move(target / name, new / name)
    for name in facts["replaced"]:
        if os.path.lexists(place / _OLD / name):
            _move(place / _OLD / name, target / name)
    for name in facts["merged"]:
        _remove_empty_parents(target, name)


def _move_foreign(old: Path, target: Path, ours: frozenset[str], relative: str = "") -> None:
    """Move everything but the files ``ours`` out of an old folder into the one that took its place."""
    for entry in sorted(os.scandir(old), key=lambda entry: entry.name):
        name = f"{relative}{entry.name}"
        destination = target / entry.name
        is_folder = entry.is_dir(follow_symlinks=False)
        if name in ours and not is_folder:
            continue
        if is_folder and any(file.startswith(f"{name}/") for file in ours):
            if _has_foreign(Path(entry.path), ours, f"{name}/"):
                destination.mkdir(exist_ok=True)
                _move_foreign(Path(entry.path), destination, ours, f"{name}/")
        elif is_folder and destination.is_dir() and not destination.is_symlink():
            _move_foreign(Path(entry.path), destination, ours, f"{name}/")
        else:
            os.rename(entry.path, _free_name(destination))


def _has_foreign(folder: Path, ours: frozenset[str], relative: str) -> bool:
    return any(f"{relative}{name}" not in ours for name in files_below(folder))


def _free_name(path: Path) -> Path:
    """``path``, or where something came to that name at the last moment, one beside it."""
    free = path
    for number in itertools.count(2):
        if not os.path.lexists(free):
            break
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free


def _check_free(target: Path, new: Iterable[str], ours: Iterable[str]) -> None:
    """Refuse new files that would take the place of something that is not ours."""
    taken = set(ours)
    for name in new:
        path = target / name
        if os.path.lexists(path) and name not in taken:
            raise OutputError(f"{path}: is in the way and not ours; move it, or choose another folder")
        for parent in list(Path(name).parents)[:-1]:
            there = target / parent
            if os.path.lexists(there) and (there.is_symlink() or not there.is_dir()) and parent.as_posix() not in taken:
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))


def _move(source: Path, destination: Path) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, destination)


def _remove_empty_parents(folder: Path, name: str) -> None:
    for parent in list(Path(name).parents)[:-1]:
        with suppress(OSError):
            (folder / parent).rmdir()


def exchange(first: Path, second: Path) -> bool:
    """Let two folders change places in one step.

    Returns:
        Whether the system can do that here; nothing was changed if not.

    Raises:
        OSError: it can, and failed.
    """
    swap = _swap()
    if swap is None:
        return False
    ctypes.set_errno(0)
    if swap(os.fsencode(first), os.fsencode(second)) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBUSY, errno.EXDEV):
        return False
    raise OSError(code, os.strerror(code), str(second))


def _write_journal(place: Path, facts: dict[str, Any]) -> None:
    with (place / f"{JOURNAL}.part").open("w", encoding="utf-8") as file:
        json.dump(facts, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(place / f"{JOURNAL}.part", place / JOURNAL)


def _read_journal(place: Path) -> dict[str, Any] | None:
    try:
        with (place / JOURNAL).open("rb") as file:
            facts = json.loads(file.read(_MAX_JOURNAL_BYTES))
    except (OSError, ValueError):
        return None
    texts = ("ours", *(("merged", "replaced") if isinstance(facts, dict) and "merged" in facts else ()))
    valid = (
        isinstance(facts, dict)
        and isinstance(facts.get("target"), str)
        and Path(facts["target"]).name == facts["target"]
        and isinstance(facts.get("inside"), bool)
        and all(isinstance(facts.get(key), list) and all(map(_is_inside, facts[key])) for key in texts)
        and ("merged" in facts or all(isinstance(facts.get(key), int) for key in ("old", "new")))
    )
    return facts if valid else None


def _is_inside(name: object) -> bool:
    """Whether a name of a journal is a relative path that stays inside its folder."""
    return isinstance(name, str) and bool(name) and not name.startswith("/") and ".." not in name.split("/")


def _inode(path: Path) -> int | None:
    try:
        return os.lstat(path).st_ino
    except OSError:
        return None


def _is_current(folder: Path) -> bool:
    """Whether a folder is this process's current one, which the shell that started it would lose."""
    try:
        return os.path.samefile(folder, os.curdir)
    except OSError:
        return False


def _raise(error: OSError) -> None:
    raise error


def _swap() -> Callable[[bytes, bytes], int] | None:
    """The system's call that exchanges two names, or None."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
    except (OSError, TypeError):
        return None
    if sys.platform == "darwin":
        function = getattr(library, "renamex_np", None)
        return None if function is None else lambda a, b: int(function(a, b, ctypes.c_uint(2)))
    function = getattr(library, "renameat2", None)
    here = ctypes.c_int(-100)
    return None if function is None else lambda a, b: int(function(here, a, here, b, ctypes.c_uint(2)))
