"""Which records can be drawn, each by its own plot."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mapengine.runtime.errors import InputError

from .evaluation import draw_evaluations
from .layers import draw_layers
from .profile import draw_profile
from .sequences import draw_sequences

_Record = Mapping[str, Any]


_PLOTS: Mapping[str, tuple[str, Callable[[Sequence[_Record], Path], None]]] = {
    "profile": ("profile", lambda records, path: draw_profile(records[0], path)),
    "evaluation": ("eval", draw_evaluations),
    "sequence-evaluation": ("eval --sequence", lambda records, path: draw_sequences(records[0], path)),
    "layers": ("verify --layers", lambda records, path: draw_layers(records[0], path)),
}
"""Of each benchmark, the command that writes its records, and what draws them."""
COMMANDS = ", ".join(f"`mapengine {command} --json`" for command, _ in _PLOTS.values())


def draw_records(paths: Sequence[Path], target: Path) -> None:
    """Draw records, all of one benchmark, into one picture.

    Raises:
        InputError: a record is missing, is none that can be drawn, is not whole, or is of another benchmark.
        BackendUnavailableError: matplotlib is not installed.
        OutputError: the picture could not be written.
    """
    documents = [_read(path) for path in paths]
    kinds = [document["benchmark"] for document in documents]
    for path, kind in zip(paths, kinds, strict=True):
        if kind != kinds[0]:
            raise InputError(f"{path}: is a record of {kind}, and {paths[0]} one of {kinds[0]}; draw them one by one")
    if len(paths) > 1 and kinds[0] != "evaluation":
        raise InputError(f"{len(paths)} records were given, and only evaluations are drawn together; give one")
    command, draw = _PLOTS[kinds[0]]
    try:
        draw(documents, target)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        names = ", ".join(map(str, paths))
        raise InputError(f"{names}: is no whole record of `mapengine {command}`; measure again") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; check the path") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is no JSON; give what one of {COMMANDS} wrote") from error
    kind = document.get("benchmark") if isinstance(document, dict) else None
    if not isinstance(kind, str) or kind not in _PLOTS:
        what = f"a record of {kind}" if isinstance(kind, str) else "no record"
        raise InputError(f"{path}: is {what[:60]}, and only those of {COMMANDS} are drawn")
    return dict(document)
