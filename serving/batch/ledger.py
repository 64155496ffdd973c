"""What became of each scene of a batch, in a table on disk: memory does not grow with their number."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from mapengine.runtime.errors import InputError
from mapengine.runtime.writing.files import atomic_write
from mapengine.runtime.writing.recognition import marker

from .listing import SceneEntry
from .records import PENDING, SceneResult, folder_name

RESULTS = "results.parquet"
_COLUMNS = ("id", "state", "seconds", "views", "points", "scale", "error")
_ROWS = 5000


class Ledger:
    """The scenes of a batch and their states; for one thread."""

    def __init__(self) -> None:
        # A database without a name is a temporary file that goes with the process.
        self._table = sqlite3.connect("", isolation_level=None)
        self._table.execute("PRAGMA journal_mode=OFF")
        self._table.execute(
            "CREATE TABLE scenes (folder TEXT PRIMARY KEY, id TEXT, place TEXT, number INTEGER, state TEXT, "
            "seconds REAL, views INTEGER, points INTEGER, scale REAL, error TEXT) WITHOUT ROWID"
        )
        self._count = 0

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._table.close()

    def add(self, entry: SceneEntry) -> None:
        """Note a scene that is listed.

        Raises:
            InputError: another has the same id; names both.
        """
        try:
            folder = folder_name(entry.id)
        except InputError as error:
            raise InputError(f"{entry.where}: {error}") from None
        row = (folder, _storable(entry.id), _storable(entry.where), self._count, PENDING)
        try:
            self._table.execute("INSERT INTO scenes (folder, id, place, number, state) VALUES (?, ?, ?, ?, ?)", row)
        except sqlite3.IntegrityError:
            (first,) = self._table.execute("SELECT place FROM scenes WHERE folder = ?", row[:1]).fetchone()
            raise InputError(
                f"{entry.where}: has the id {entry.id!r}, which {first} has already; give each scene one of its own"
            ) from None
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def finish(self, result: SceneResult) -> None:
        """Note what became of a scene."""
        values = (result.state, result.seconds, result.views, result.points, result.scale)
        error = None if result.error is None else _storable(result.error)
        self._table.execute(
            "UPDATE scenes SET state = ?, seconds = ?, views = ?, points = ?, scale = ?, error = ? WHERE folder = ?",
            (*values, error, folder_name(result.id)),
        )

    def pending(self) -> Iterator[str]:
        """Yield the ids of the scenes of which nothing is known; none may be finished meanwhile."""
        for (scene,) in self._table.execute("SELECT id FROM scenes WHERE state = ?", (PENDING,)):
            yield scene

    def write_results(self, path: Path, by_id: bool) -> None:
        """Write the table as Parquet: a row per scene, in the order of the list or of their ids.

        Raises:
            OutputError: it could not be written.
        """
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter

        types = (pa.string(), pa.string(), pa.float64(), pa.int64(), pa.int64(), pa.float64(), pa.string())
        mark = {"generator": marker("batch results")}
        schema = pa.schema(list(zip(_COLUMNS, types, strict=True)), metadata=mark)
        # The folder is ours, so an older table in it is, too.
        with atomic_write(path, None) as temporary, ParquetWriter(temporary, schema) as writer:
            for rows in self._rows("id" if by_id else "number"):
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))

    def _rows(self, order: str) -> Iterator[list[dict[str, object]]]:
        found = self._table.execute(f"SELECT {', '.join(_COLUMNS)} FROM scenes ORDER BY {order}")
        while rows := found.fetchmany(_ROWS):
            yield [dict(zip(_COLUMNS, row, strict=True)) for row in rows]


def _storable(text: str) -> str:
    """A text without the halves of characters that file names may have, and tables may not."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
