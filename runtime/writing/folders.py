"""Writing folders: the new content is there whole, or the old one is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from .files import flush, make_folders, no_folder, output_path, real_path, writing
from .recognition import our_files, write_folder_record
from .replacement import files_below, replace_folder
from .staging import recover_folder, staging

Ours = Callable[[Path], Sequence[str]]


@contextmanager
def atomic_folder(
    path: str | os.PathLike[str],
    kind: str,
    names: Sequence[str] | None = None,
    ours: Ours | None = None,
    tidy: bool = True,
) -> Iterator[Path]:
    """Yield an empty temporary folder; when the block succeeds its content becomes the content of ``path``.

    A new folder appears in one step, and one that replaces an older result does, where the system can do that. Nothing
    of the older result stays; what else the user put into it does. One process at a time: a second one waits for a few
    seconds and is then refused.

    Args:
        kind: of the content, as :mod:`.recognition` knows it.
        names: of the files and folders that will be written into ``path`` itself. A folder that holds something else,
            but none of these, is then filled; by default it must be new, empty or an older result.
        ours: says which files of a folder we wrote (as :func:`.recognition.our_files`, which also keeps a list of
            them); for a folder with a list of its own.
        tidy: whether leftovers of dead processes beside the folder are removed, for which its parent is listed: False
            for one of very many folders. Those of the folder itself are, always.

    Raises:
        OutputError: as :func:`.files.atomic_write`; also where the folder holds something else, or something that is
            not ours has the name of a new file.
    """
    target = output_path(path)
    owned = ours or (lambda folder: our_files(folder, kind, names))
    with writing(path) as made:
        target = real_path(target)
        if target.exists() and not target.is_dir():
            raise no_folder(path)
        recover_folder(target)
        owned(target)
        inside = _must_stay(target)
        made += make_folders(target if inside else target.parent)
        with staging(target, inside=inside, exclusive=True, tidy=tidy) as place:
            old = owned(target)  # another process may have finished meanwhile
            place.new.mkdir()
            yield place.new
            if ours is None:
                write_folder_record(place.new, kind)
            for name in files_below(place.new):
                flush(place.new / name)
            if target.is_dir():
                replace_folder(place.place, place.new, target, inside, old)
            else:
                os.rename(place.new, target)


def _must_stay(folder: Path) -> bool:
    """Whether an existing folder cannot be replaced itself, only what is in it: a mount point, or one whose parent is
    not writable."""
    if not folder.is_dir():
        return False
    if os.path.ismount(folder) or not os.access(folder.parent, os.W_OK | os.X_OK):
        return True
    with suppress(OSError):  # a folder of the same file system can be mounted, too
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
        escaped = str(folder).replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011").replace("\n", "\\012")
        return any(line.split(" ")[4:5] == [escaped] for line in mounts.splitlines())
    return False
