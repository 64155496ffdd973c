"""The user's cache folder."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_folder() -> Path | None:
    """Return the cache folder: ``MAPENGINE_CACHE``, else the platform's per-user one; None if this user has none."""
    chosen = os.environ.get("MAPENGINE_CACHE")
    if chosen:
        return Path(chosen)
    try:
        folder = platformdirs.user_cache_path("mapengine", appauthor=False)
    except RuntimeError:  # no home folder, as for some service accounts
        return None
    return folder if folder.is_absolute() else None
