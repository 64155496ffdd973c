"""A temporary folder of this process."""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
from pathlib import Path

import psutil


def own_folder(program: str) -> Path:
    """Return a new folder for temporary files of this process, in which only this user can read.

    What earlier processes of the program left that were killed is removed.
    """
    for place in Path(tempfile.gettempdir()).glob(f"{program}-*-*"):
        found = re.fullmatch(rf"{re.escape(program)}-(\d+)-.*", place.name)
        try:
            status = place.lstat()
        except OSError:
            continue
        ours = stat.S_ISDIR(status.st_mode) and (not hasattr(os, "geteuid") or status.st_uid == os.geteuid())
        if found and ours and not psutil.pid_exists(int(found[1])):
            shutil.rmtree(place, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{program}-{os.getpid()}-"))
