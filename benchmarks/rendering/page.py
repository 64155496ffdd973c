"""What the tables of every benchmark share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mapengine.runtime.profiling.report import table

Record = Mapping[str, Any]


def page(record: Record, head: Sequence[str], rows: Sequence[Sequence[str]], what: str) -> str:
    """Return a table, and below it ``what`` was measured where."""
    return f"{table(head, rows)}\n\n{what} {origin(record)}"


def origin(record: Record) -> str:
    """Return processor, threads and versions of a record in words."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    threads = f", {record['threads']} threads" if "threads" in record else ""
    return f"{record['machine']['cpu']}{threads}; {versions}."


def capitalised(text: str) -> str:
    """Return a text whose first letter is a capital; the others stay."""
    return text[:1].upper() + text[1:]
