"""What became of a scene, in a file beside its result: read to know what need not be done again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from mapengine.runtime.errors import InputError, OutputError
from mapengine.runtime.system.reading import read_file
from mapengine.runtime.typed_json.codec import encode, read_json
from mapengine.runtime.typed_json.fields import OneOf, Text
from mapengine.runtime.typed_json.text import Document
from mapengine.runtime.writing.folders import atomic_folder
from mapengine.runtime.writing.replacement import files_below

from .addresses import is_remote, signature_of, signatures
from .listing import SceneEntry

SCENES = "scenes"
"""The folder of a batch that holds a folder per scene."""
RECORD = "result.json"
KIND = "scene of a batch"
DONE, FAILED, PENDING = "done", "failed", "pending"
_MOST_BYTES = 2**26
_LONGEST_NAME = 200
_KEPT = frozenset("-_.,+=@() ")
_Free = Annotated[str, Text("a text", r"(?s:.*)", printable=False)]


@dataclass(frozen=True)
class SourceFile:
    """A file that a scene was read from, and what changes when it is written to."""

    path: _Free
    signature: str


@dataclass(frozen=True)
class SceneResult:
    """What became of a scene.

    Attributes:
        id: of the scene. state: ``done`` or ``failed``.
        seconds: in the worker, from reading to the finished result; engine_seconds: of these, the engine's call.
        views, points, scale: of the scene; None where there is none.
        error: why there is none, in a sentence.
        bundle, options, inputs: SHA-256 of what decided the result: the bundle's manifest, the options, and names and
            contents of the files.
        sources: the files. outputs: the files of the result with their bytes.
        warnings: what was said meanwhile.
        run: which run of the command it was done in.
    """

    id: _Free
    state: Annotated[str, OneOf((DONE, FAILED))]
    bundle: str
    options: str
    run: str
    seconds: float = 0.0
    engine_seconds: float = 0.0
    views: int | None = None
    points: int | None = None
    scale: float | None = None
    error: _Free | None = None
    inputs: str | None = None
    sources: tuple[SourceFile, ...] = ()
    outputs: Mapping[str, int] | None = None
    warnings: tuple[_Free, ...] = ()

    def failed(self, error: str) -> SceneResult:
        """Return the same scene as one that failed, with the sentence that says why."""
        return replace(self, state=FAILED, error=error or "it failed without a word", outputs=None)


def folder_name(scene: str) -> str:
    """Return the name of a scene's folder: its id, with ``%`` and the hexadecimal bytes for what names cannot have.

    Letters and digits of every script, ``-_.,+=@()`` and spaces inside stay. Different ids have different names.

    Raises:
        InputError: it would be too long.
    """
    last = len(scene) - 1

    def stays(place: int, character: str) -> bool:
        at_an_end = (place == 0 and character in ". ") or (place == last and character in ". ")
        return (character.isalnum() or character in _KEPT) and character.isprintable() and not at_an_end

    coded = "".join(
        c if stays(i, c) else "".join(f"%{byte:02X}" for byte in c.encode("utf-8", "surrogatepass"))
        for i, c in enumerate(scene)
    )
    if len(coded.encode()) > _LONGEST_NAME:
        raise InputError(
            f"the id {scene[:40]!r}... is too long for the name of a folder; give ids of at most {_LONGEST_NAME} bytes"
        )
    return coded


def read_result(folder: Path) -> SceneResult | None:
    """Return what became of the scene of a folder; None if nothing did, or nothing that can be read."""
    try:
        content = read_file(folder / RECORD, _MOST_BYTES)
        return read_json(SceneResult, content, Document(str(folder / RECORD), "remove the folder", OutputError))
    except OSError:  # an OutputError is one
        return None


def write_result(folder: Path, result: SceneResult, save: Callable[[Path], None] | None = None) -> SceneResult:
    """Write a scene's folder in one step, and return the result with its files; an older one of ours goes.

    Args:
        save: writes the scene's files into a folder that it is given.

    Raises:
        OutputError: something that is not ours is there, or it could not be written; the folder is as it was.
    """
    with atomic_folder(folder, KIND, tidy=False) as new:
        if save is not None:
            save(new)
            result = replace(result, outputs={name: (new / name).stat().st_size for name in files_below(new)})
        (new / RECORD).write_text(json.dumps(encode(result), indent=1) + "\n", encoding="utf-8")
    return result


def is_complete(folder: Path, result: SceneResult) -> bool:
    """Return whether the files of a result are still there, as long as they were."""
    for name, size in (result.outputs or {}).items():
        try:
            if os.stat(folder / name).st_size != size:
                return False
        except OSError:
            return False
    return True


def are_unchanged(sources: tuple[SourceFile, ...], entry: SceneEntry, more: list[str]) -> bool:
    """Return whether a scene's files are those that it was read from, by their times and sizes alone.

    Args:
        more: further paths that are read, of the options.
    """
    known = {source.path: source.signature for source in sources}
    now = signatures([*entry.inputs, *more])
    if any(known.get(path) != signature for path, signature in now.items()):
        return False
    # What was read besides the inputs, such as images that a list names; fetched files are compared by the inputs.
    rest = (path for path in known if path not in now)
    return all(not is_remote(path) and signature_of(path) == known[path] for path in rest)
