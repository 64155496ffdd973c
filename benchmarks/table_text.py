"""What the tables of every benchmark share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def origin_text(record: dict[str, Any]) -> str:
    """Processor, threads and versions of a record."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    machine = record["machine"]
    threads = f", {record['threads']} threads" if "threads" in record else ""
    return f"{machine['cpu']}{threads}; {versions}."
