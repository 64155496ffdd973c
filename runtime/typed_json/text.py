"""Strict JSON text from untrusted files, and the document that complaints name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from ..errors import MapEngineError

MAX_INTEGER = 2**63 - 1


@dataclass(frozen=True)
class Document:
    """What is read.

    Attributes:
        name: of the file, which messages begin with. remedy: what to do, which they end with.
        error: class of what is raised. root: what messages call the value as a whole.
        defaults: whether a field with a default may be left out, as in a file that a person writes.
    """

    name: str
    remedy: str
    error: Callable[[str], MapEngineError]
    root: str = "the top level"
    defaults: bool = False

    def complaint(self, problem: str) -> MapEngineError:
        """The error that says ``problem``, such as ``": name must be a string"``, and what to do."""
        return self.error(f"{self.name}{problem}; {self.remedy}")


def parse_json(text: str | bytes, document: Document, *, infinities: bool = False) -> Any:
    """Parse strict JSON: no NaN or Infinity tokens, no repeated keys, no integers beyond 64 bits, bounded nesting.

    Args:
        infinities: whether the tokens Infinity and -Infinity may stand for numbers, as Python writes them.

    Raises:
        ``document.error``: ``text`` is not strict JSON.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        constant = _infinity if infinities else _refuse_constant
        return json.loads(text, parse_int=_parse_integer, parse_constant=constant, object_pairs_hook=_unique)
    except RecursionError:
        raise document.complaint(" is nested too deeply") from None
    except ValueError as error:
        problem = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise document.complaint(f" is not valid JSON ({problem})") from None


def shorten(value: object, limit: int = 60) -> str:
    """``value`` as printable ASCII of at most ``limit`` characters, for messages about untrusted text."""
    if isinstance(value, int) and abs(value) > 10**limit:
        return "a huge integer"  # Python refuses to print integers of more than 4300 digits
    text = ascii(value[:limit] if isinstance(value, str) else value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _parse_integer(digits: str) -> int:
    # int() of a very long literal takes quadratic time, so the length is checked first.
    if len(digits) > 20 or abs(int(digits)) > MAX_INTEGER:
        raise ValueError(f"the integer {shorten(digits)} needs more than 64 bits")
    return int(digits)


def _infinity(token: str) -> float:
    if token == "NaN":
        _refuse_constant(token)
    return float(token)


def _refuse_constant(token: str) -> NoReturn:
    raise ValueError(f"the token {token} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {shorten(key)} appears twice in one object")
        result[key] = value
    return result
