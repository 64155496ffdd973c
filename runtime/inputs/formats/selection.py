"""Which views of a sequence are taken, and the order of file names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ...errors import InputError
from .view_files import ReadOptions, ViewFiles

Item = TypeVar("Item")
_JITTER = 0.01  # of an interval that a view may come too early


def natural_key(name: str | Path) -> list[Any]:
    """Return what sorts ``frame2`` before ``frame10``, and upper and lower case together."""
    text = name.as_posix() if isinstance(name, Path) else name
    # Text and numbers alternate, so that only like is compared; the text itself decides between 1 and 01.
    parts: list[Any] = [
        int(part) if index % 2 else part.casefold() for index, part in enumerate(re.split(r"(\d{1,300})", text))
    ]
    return [parts, text]


def chosen(views: list[ViewFiles], options: ReadOptions) -> list[ViewFiles]:
    """Return the views of a sequence that ``every`` and ``fps`` leave.

    Raises:
        InputError: ``fps`` for views without a time.
    """
    views = views[:: options.every]
    return views if options.fps is None else _at_rate(views, options.fps)


def spread(items: list[Item], most: int | None) -> list[Item]:
    """Return at most so many items, spread evenly from the first to the last."""
    if most is None or len(items) <= most:
        return items
    return [items[int(index)] for index in np.rint(np.linspace(0, len(items) - 1, most))]


def _at_rate(views: list[ViewFiles], rate: float) -> list[ViewFiles]:
    """The first view of each interval of 1 / rate seconds."""
    taken: list[ViewFiles] = []
    start, last = 0.0, -1
    for view in views:
        if view.time is None:
            name = view.name or getattr(view.image, "name", "an image")
            raise InputError(f"fps needs views with a time, as of a video, and {name} has none; use every instead")
        start = view.time if not taken else start
        interval = int(np.floor((view.time - start) * rate + _JITTER))
        if interval > last:
            taken.append(view)
            last = interval
    return taken


def listed(names: Iterable[str], most: int = 3) -> str:
    """Return the first of some names, and how many there are more, for a message."""
    names = list(names)
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
