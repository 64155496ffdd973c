"""The user's cache folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder() -> Path | None:
    """The cache folder: ``MAPENGINE_CACHE``, else the platform's per-user one; None if this user has none.

    ``XDG_CACHE_HOME`` counts only when it is absolute, as the XDG base directory specification demands.
    """
    chosen = os.environ.get("MAPENGINE_CACHE")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return Path(local) / "mapengine" if local else None
    xdg = os.environ.get("XDG_CACHE_HOME")
    if xdg and Path(xdg).is_absolute():
        return Path(xdg) / "mapengine"
    try:
        return Path.home() / ".cache" / "mapengine"
    except RuntimeError:  # no home folder, as for some service accounts
        return None
