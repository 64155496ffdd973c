"""The documents of the project, and the code and commands that stand in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
GUIDE = sorted((ROOT / "docs" / "guide").glob("*.md"))
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "examples").glob("*.md"),
        *(ROOT / "export").rglob("*.md"),
    ]
)


class Block(NamedTuple):
    """A fenced block of code."""

    language: str
    text: str
    not_run: str | None
    """Why it cannot be run here, as a comment before it says."""


def blocks(document: Path, *languages: str) -> list[Block]:
    """The fenced blocks of a document that are in one of the languages, in order."""
    text = document.read_text(encoding="utf-8")
    found = re.findall(r"(?:^<!-- not run: (.*?) -->\n)?^```(\w+)\n(.*?)^```", text, re.M | re.S)
    return [Block(language, code, reason or None) for reason, language, code in found if language in languages]


def commands(code: str) -> Iterator[list[str]]:
    """The words of every command line in a block of shell, without comments."""
    for line in code.splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words
