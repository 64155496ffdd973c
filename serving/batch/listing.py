"""The scenes of a batch, one by one: a folder of scenes, JSON lines or Parquet. Nothing of them is kept."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mapengine.runtime.errors import InputError
from mapengine.runtime.inputs.formats.table import find_format
from mapengine.runtime.inputs.formats.video import VIDEO
from mapengine.runtime.inputs.formats.view_lists import VIEW_LIST
from mapengine.runtime.inputs.images import image_suffixes
from mapengine.runtime.system.reading import shown_path
from mapengine.runtime.typed_json.text import Document, parse_json, shorten

from .addresses import entries_of, is_folder, is_remote, joined, local_path, open_address, parent_of
from .scene_options import PATHS

JSON_LINES = (".jsonl", ".ndjson")
PARQUET = (".parquet", ".pq")
_COLUMNS = ("id", "inputs", "options")
_MOST_LINE = 2**24
_ROWS = 1000


@dataclass(frozen=True)
class SceneEntry:
    """One scene as it is listed.

    Attributes:
        id: its name, which its result stands under.
        inputs: what `run` takes: paths, patterns, addresses.
        options: of this scene, which go before those of the command.
        where: in the list, for messages.
    """

    id: str
    inputs: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""

    def as_line(self) -> str:
        """Return the entry as a line of JSON for :meth:`of_line`."""
        return json.dumps([self.id, self.inputs, self.options, self.where]) + "\n"

    @classmethod
    def of_line(cls, line: str | bytes) -> SceneEntry:
        """Return the entry that :meth:`as_line` wrote."""
        name, inputs, options, where = json.loads(line)
        return cls(name, tuple(inputs), options, where)


def list_scenes(address: str) -> Iterator[SceneEntry]:
    """Yield the scenes of a folder (in no order), of JSON lines or of Parquet (in theirs).

    In a folder each folder is a scene, and each video and view list; the id is its name. A line or row has ``id``,
    ``inputs`` (one or several) and, if wanted, ``options``; relative paths are relative to the list's folder.

    Raises:
        InputError: there is no such thing, or a line or row is no scene; names it.
    """
    address = address.rstrip("/") if is_remote(address) else os.path.abspath(local_path(address))
    lowered = address.lower()
    if is_folder(address):
        parts = sorted(name for name, folder in entries_of(address) if name.lower().endswith(PARQUET) and not folder)
        if not parts:
            yield from _of_folder(address)
        for part in parts:
            yield from _of_parquet(joined(address, part), address)
    elif lowered.endswith(PARQUET):
        yield from _of_parquet(address, parent_of(address))
    elif lowered.endswith(JSON_LINES):
        yield from _of_lines(address)
    else:
        open_address(address).close()  # says what is wrong with a path that leads nowhere
        raise InputError(
            f"{shown_path(address)}: is no list of scenes; give a folder of scenes, JSON lines ({JSON_LINES[0]}) or "
            f"Parquet ({PARQUET[0]})"
        )


def _of_folder(folder: str) -> Iterator[SceneEntry]:
    found = images = False
    for name, is_a_folder in entries_of(folder):
        place = joined(folder, name)
        if is_a_folder or _is_scene_file(place):
            found = True
            yield SceneEntry(name, (place,), {}, shown_path(place))
        images = images or name.lower().endswith(tuple(image_suffixes()))
    if not found:
        what = "holds images, not scenes; give the folder above it" if images else "holds no scenes; give another one"
        raise InputError(f"{shown_path(folder)}: {what}, or a list")


def _is_scene_file(address: str) -> bool:
    if is_remote(address):
        return address.lower().endswith(".mp4")
    return find_format(Path(address)) in (VIDEO, VIEW_LIST)


def _of_lines(address: str) -> Iterator[SceneEntry]:
    folder = parent_of(address)
    count = 0
    with open_address(address) as file:
        number = 0
        while line := file.readline(_MOST_LINE):
            number += 1
            where = f"{shown_path(address)}, line {number}"
            if len(line) == _MOST_LINE:
                raise InputError(f"{where}: is longer than {_MOST_LINE} bytes; each scene is one line of JSON")
            if line.strip():
                document = Document(where, "each line is one JSON object with id and inputs", InputError, root="")
                count += 1
                yield _entry(parse_json(line.decode("utf-8-sig", "replace"), document), folder, where)
    _check_count(count, address)


def _of_parquet(address: str, folder: str) -> Iterator[SceneEntry]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    name = shown_path(address)
    count = 0
    with open_address(address) as file:
        try:
            table = ParquetFile(file)
            columns = [column for column in _COLUMNS if column in table.schema_arrow.names]
            batches = table.iter_batches(batch_size=_ROWS, columns=columns)
            for batch in batches:
                for row in batch.to_pylist():
                    yield _entry(row, folder, f"{name}, row {count}")
                    count += 1
        except (ArrowException, OSError) as error:
            first = str(error).strip().splitlines()[0].rstrip(".")
            raise InputError(f"{name}: cannot be read as Parquet: {first}; write it again") from error
    _check_count(count, address)


def _check_count(count: int, address: str) -> None:
    if not count:
        raise InputError(f"{shown_path(address)}: lists no scenes; write one per line or row")


def _entry(row: Any, folder: str, where: str) -> SceneEntry:
    if not isinstance(row, dict):
        raise InputError(f"{where}: is {shorten(row)}; each scene is an object with id and inputs")
    unknown = [name for name in row if name not in _COLUMNS]
    if unknown:
        raise InputError(f"{where}: there is no {shorten(unknown[0])} in a scene; it has {', '.join(_COLUMNS)}")
    name, inputs, options = row.get("id"), row.get("inputs"), row.get("options")
    if type(name) is int:
        name = str(name)
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"{where}: id is {shorten(name)}; give each scene a name of its own")
    inputs = [inputs] if isinstance(inputs, str) else inputs
    if not isinstance(inputs, list) or not inputs or not all(isinstance(i, str) and i for i in inputs):
        raise InputError(f"{where}: inputs is {shorten(inputs)}; give a path, or a list of paths")
    if isinstance(options, str):  # Parquet has no free-form objects
        options = parse_json(options, Document(f"{where}: options", "give a JSON object", InputError))
    if isinstance(options, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in options):
        options = dict(options)  # a map of Arrow
    if options is None:
        options = {}
    if not isinstance(options, dict):
        raise InputError(f"{where}: options is {shorten(options)}; give an object, such as {{'max_views': 8}}")
    options = {key: value for key, value in options.items() if value is not None}
    for key in PATHS:
        if isinstance(options.get(key), str):
            options[key] = joined(folder, options[key])
    return SceneEntry(name, tuple(joined(folder, address) for address in inputs), options, where)
