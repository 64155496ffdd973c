"""The marks for ``typing.Annotated`` that :mod:`.codec` reads and writes by, and the fields of a dataclass in JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

MAX_TEXT = 256


@dataclass(frozen=True)
class Bounds:
    """Smallest and largest value of a number; a name is an earlier field of the same object.

    On a dataclass it holds for those of its numbers that have no bound of their own on that side.
    """

    minimum: float | str | None = None
    maximum: float | str | None = None

    def within(self, outer: Bounds, known: Mapping[str, Any]) -> Bounds:
        """Return the same as numbers, with what it leaves open taken from ``outer``; ``known`` are earlier fields."""
        low, high = (known[end] if isinstance(end, str) else end for end in (self.minimum, self.maximum))
        return Bounds(outer.minimum if low is None else low, outer.maximum if high is None else high)


NO_BOUNDS = Bounds()


@dataclass(frozen=True)
class Multiple:
    """An integer is a multiple of ``of``."""

    of: int


@dataclass(frozen=True)
class Text:
    """A string is what ``description`` says (``"a plain file name"``): it matches ``pattern`` as a whole."""

    description: str
    pattern: str
    printable: bool = True
    """Whether it also has 1 to ``MAX_TEXT`` printable characters, as strings without this mark have."""


@dataclass(frozen=True)
class OneOf:
    """A string is one of ``options``."""

    options: tuple[str, ...]


@dataclass(frozen=True)
class Key:
    """Name of the field in JSON; ``"options.method"`` is the member ``method`` of an object ``options``."""

    path: str


@dataclass(frozen=True)
class KeyedBy:
    """A tuple of dataclasses is an object in JSON, whose keys are the values of their field ``name``."""

    name: str


@dataclass(frozen=True)
class _Mark:
    name: str


FLAT = _Mark("flat")
"""The fields of a dataclass stand in JSON beside those of the one that has it; all of them are null for None."""
ADDED = _Mark("added")
"""A field with a default was added to its schema: documents that were written before may lack it."""


@dataclass(frozen=True)
class EveryKey:
    """An object has all of the keys that its mapping allows (by :class:`OneOf`), and is read in their order.

    The keys in ``added`` were added to the schema: documents that were written before may lack them.
    """

    added: tuple[str, ...] = ()


@dataclass(frozen=True)
class JsonField:
    """One field of a dataclass, as JSON has it.

    Attributes:
        name: in Python. path: in JSON. hint: type, with its marks. optional: whether it has a default.
        added: whether it has the mark ``ADDED``. flat: the names in JSON of a field with the mark ``FLAT``.
        keyed_by: see :class:`KeyedBy`.
    """

    name: str
    path: tuple[str, ...]
    hint: Any
    optional: bool
    added: bool = False
    flat: tuple[str, ...] = ()
    keyed_by: str = ""


@cache
def json_fields(kind: Any) -> tuple[JsonField, ...]:
    """The fields of a dataclass in their order."""
    hints = get_type_hints(kind, include_extras=True)
    result = []
    for field in fields(kind):
        _, marks = split_marks(hints[field.name])
        path: tuple[str, ...] = (field.name,)
        flat: tuple[str, ...] = ()
        keyed_by = ""
        for mark in marks:
            if isinstance(mark, Key):
                path = tuple(mark.path.split("."))
            elif isinstance(mark, KeyedBy):
                keyed_by = mark.name
            elif mark is FLAT:
                inner: Any = next(option for option in options_of(hints[field.name]) if is_dataclass(option))
                flat = tuple(part.path[0] for part in json_fields(inner))
        optional = field.default is not MISSING or field.default_factory is not MISSING
        result.append(JsonField(field.name, path, hints[field.name], optional, ADDED in marks, flat, keyed_by))
    return tuple(result)


def split_marks(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type and what ``Annotated`` says of it."""
    if get_origin(hint) is Annotated:
        kind, *marks = get_args(hint)
        return kind, tuple(marks)
    return hint, ()


def names_fields(hint: Any) -> bool:
    """Whether bounds of a type, or of one that it is made of, name fields of the object that has it."""
    kind, marks = split_marks(hint)
    named = any(isinstance(end, str) for mark in marks if isinstance(mark, Bounds) for end in vars(mark).values())
    return named or any(names_fields(argument) for argument in get_args(kind))


def options_of(hint: Any) -> tuple[Any, ...]:
    """The members of a union; of any other type the type itself."""
    kind, _ = split_marks(hint)
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


Count = Annotated[int, Bounds(0)]
Positive = Annotated[int, Bounds(1)]
Measure = Annotated[float, Bounds(0)]
AnyText = Annotated[str, Text("a string", r"[\s\S]*", printable=False)]
Sha256 = Annotated[str, Text("a SHA-256 of 64 lowercase hexadecimal digits", "[0-9a-f]{64}")]
