"""Strict reading of untrusted JSON: every complaint names the place in the document.

A ``Reader`` is one value together with its JSON path (``stages.aggregator.inputs[1].shape``). Its methods return the
value with the type that was asked for, or raise ``ManifestError``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any, NoReturn

from ..errors import ManifestError

MAX_INTEGER = 2**63 - 1
MAX_DEPTH = 32
"""Nesting of free-form values; upstream's configuration uses 5 levels."""
MAX_TEXT = 256
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
SHA256 = re.compile(r"[0-9a-f]{64}")
IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
TYPE_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
}


def shorten(value: object, limit: int = 60) -> str:
    """``value`` as printable ASCII of at most ``limit`` characters, for messages about untrusted text."""
    if isinstance(value, int) and abs(value) > 10**limit:
        return "a huge integer"  # Python refuses to print integers of more than 4300 digits
    text = ascii(value[:limit] if isinstance(value, str) else value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def type_name(value: object) -> str:
    """What JSON calls the type of ``value``, with its article."""
    return "null" if value is None else TYPE_NAMES.get(type(value), f"a {type(value).__name__}")


def parse_json(text: str | bytes) -> Any:
    """Parse strict JSON: no NaN or Infinity tokens, no repeated keys, no integers beyond 64 bits, bounded nesting.

    Raises:
        ManifestError: ``text`` is not strict JSON.
    """

    def integer(digits: str) -> int:
        # int() of a very long literal takes quadratic time, so the length is checked first.
        if len(digits) > 20 or abs(int(digits)) > MAX_INTEGER:
            raise ValueError(f"the integer {shorten(digits)} needs more than 64 bits")
        return int(digits)

    def constant(token: str) -> NoReturn:
        raise ValueError(f"the token {token} is not JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise ValueError(f"the key {shorten(key)} appears twice in one object")
            result[key] = value
        return result

    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        return json.loads(text, parse_int=integer, parse_constant=constant, object_pairs_hook=unique)
    except RecursionError:
        raise ManifestError("manifest.json is not valid: it is nested too deeply; build the bundle again") from None
    except ValueError as error:
        problem = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise ManifestError(f"manifest.json is not valid JSON ({problem}); build the bundle again") from None


class Reader:
    """One JSON value and where it stands in the document."""

    __slots__ = ("path", "value")

    def __init__(self, value: object, path: str = "") -> None:
        self.value = value
        self.path = path

    def fail(self, problem: str) -> NoReturn:
        """Raise ``ManifestError`` about this value."""
        where = self.path or "the top level"
        raise ManifestError(f"manifest.json: {where} {problem}; it is damaged or was edited, build the bundle again")

    def _expect(self, kind: str) -> NoReturn:
        self.fail(f"must be {kind}, not {type_name(self.value)}")

    def is_null(self) -> bool:
        """Whether the value is null."""
        return self.value is None

    def key(self, name: str) -> str:
        """JSON path of the member ``name``."""
        if IDENTIFIER.fullmatch(name):
            return f"{self.path}.{name}" if self.path else name
        return f"{self.path}[{shorten(name)}]"

    def members(self) -> dict[str, Reader]:
        """The members of an object with free keys."""
        if type(self.value) is not dict:
            self._expect("an object")
        for name in self.value:
            if type(name) is not str or not 0 < len(name) <= MAX_TEXT or not name.isprintable():
                self.fail(f"has the unusable key {shorten(name)}")
        return {name: Reader(value, self.key(name)) for name, value in self.value.items()}

    def fields(self, *names: str) -> dict[str, Reader]:
        """The members of an object that has exactly the fields ``names``."""
        members = self.members()
        for name in names:
            if name not in members:
                self.fail(f"lacks the field {name!r}")
        for name in members:
            if name not in names:
                self.fail(f"has the unknown field {shorten(name)}")
        return members

    def items(self) -> list[Reader]:
        """The elements of a list."""
        if type(self.value) is not list:
            self._expect("a list")
        return [Reader(value, f"{self.path}[{index}]") for index, value in enumerate(self.value)]

    def text(self) -> str:
        """A non-empty printable string."""
        if type(self.value) is not str:
            self._expect("a string")
        if not 0 < len(self.value) <= MAX_TEXT or not self.value.isprintable():
            self.fail(f"must be 1 to {MAX_TEXT} printable characters, not {shorten(self.value)}")
        return self.value

    def choice(self, options: Iterable[str]) -> str:
        """One of the strings ``options``."""
        text, known = self.text(), list(options)
        if text not in known:
            self.fail(f"must be one of {', '.join(known)}, not {shorten(text)}")
        return text

    def integer(self, minimum: int = 0, maximum: int = MAX_INTEGER) -> int:
        """An integer (never a boolean) from ``minimum`` to ``maximum``."""
        if type(self.value) is not int:
            self._expect("an integer")
        if not minimum <= self.value <= maximum:
            self.fail(f"must be from {minimum} to {maximum}, not {shorten(self.value)}")
        return self.value

    def number(self) -> float:
        """A finite number that is not negative, as a float."""
        if type(self.value) not in (int, float):
            self._expect("a number")
        assert isinstance(self.value, int | float)
        if not 0 <= self.value <= MAX_INTEGER:  # which NaN and infinity are not either
            self.fail(f"must be a finite number that is not negative, not {shorten(self.value)}")
        return float(self.value)

    def sha256(self) -> str:
        """64 lowercase hexadecimal digits."""
        text = self.text()
        if not SHA256.fullmatch(text):
            self.fail(f"must be a SHA-256 of 64 lowercase hexadecimal digits, not {shorten(text)}")
        return text

    def file_name(self) -> str:
        """The name of a file in the bundle's own folder: no separators, no ``..``, no drive, not hidden."""
        text = self.text()
        if not FILE_NAME.fullmatch(text) or text.endswith("."):
            self.fail(f"must be a plain file name inside the bundle, not {shorten(text)}")
        return text

    def free(self, depth: int = 0) -> Any:
        """A free-form value; the strings ``Infinity`` and ``-Infinity`` become floats (see ``encode_free``)."""
        value = self.value
        if depth > MAX_DEPTH:
            self.fail(f"is nested more than {MAX_DEPTH} levels deep")
        if type(value) is dict:
            return {name: member.free(depth + 1) for name, member in self.members().items()}
        if type(value) is list:
            return [item.free(depth + 1) for item in self.items()]
        if type(value) is str and value in ("Infinity", "-Infinity"):
            return math.inf if value == "Infinity" else -math.inf
        if type(value) is int:
            return self.integer(-MAX_INTEGER)
        if type(value) is float and not math.isfinite(value):
            self.fail(f"must be a finite number, not {shorten(value)}")
        if value is not None and type(value) not in (bool, float, str):
            self.fail(f"must be a JSON value, not {type_name(value)}")
        return value


def encode_free(value: Any) -> Any:
    """Upstream's configuration as strict JSON: the floats inf and -inf become the strings ``Infinity``, ``-Infinity``.

    JSON has no token for infinity, and upstream's files use one that many parsers refuse.
    """
    if isinstance(value, dict):
        return {key: encode_free(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode_free(item) for item in value]
    if isinstance(value, float) and math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value
