"""Typed values from strict JSON and back: frozen dataclasses whose annotations are the schema.

    @dataclass(frozen=True)
    class Entry:
        name: str                                        # 1 to 256 printable characters
        count: Annotated[int, Bounds(1, 100)]
        kind: Annotated[str, OneOf(("a", "b"))] = "a"
        nested: tuple[Entry, ...] = ()

        def check_fields(self, fail: Fail) -> None:      # rules that concern several fields
            if self.kind == "b" and self.nested:
                fail("nested", "must be empty for b")

``decode`` gives the value, or one sentence with the document, the JSON path of the field and the remedy; ``encode`` is
its inverse. Types: bool, int (64 bits), float (finite), str, None, ``Any`` (free-form), tuples (lists), mappings
(objects with free keys), dataclasses (objects with exactly these fields) and unions of types that JSON tells apart;
:mod:`.fields` has the marks. msgspec, pydantic and cattrs were tried: none refuses an object with the same key twice.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping, Set
from dataclasses import is_dataclass
from functools import cache, lru_cache, partial
from types import NoneType, UnionType
from typing import Any, NoReturn, TypeVar, Union, get_args, get_origin

from .fields import (
    ADDED,
    MAX_TEXT,
    NO_BOUNDS,
    Bounds,
    EveryKey,
    KeyedBy,
    Multiple,
    OneOf,
    Text,
    json_fields,
    names_fields,
    options_of,
    split_marks,
)
from .text import MAX_INTEGER, Document, parse_json, shorten

MAX_DEPTH = 32
"""Nesting of free-form values; upstream's configuration uses 5 levels."""

T = TypeVar("T")
Read = Callable[[Any], Any]
Fail = Callable[[str, str], NoReturn]
"""Refuses a value in its ``check_fields``: path of the field (``""``: the value itself), and the problem."""

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_FOUND = {
    NoneType: "null", bool: "a boolean", int: "an integer", float: "a number", str: "a string", list: "a list",
    dict: "an object",
}  # fmt: skip
_WANTED = {**_FOUND, bool: "true or false"}
_INFINITIES = {"Infinity": math.inf, "-Infinity": -math.inf}
"""How free-form values hold what JSON has no token for, and upstream's configuration needs."""


def decode(kind: type[T], value: object, document: Document) -> T:
    """Return the value of type ``kind`` that parsed JSON stands for.

    Raises:
        ``document.error``: the first deviation, with its JSON path.
    """
    try:
        result: T = _reader(kind, document.defaults)(value)
    except _Wrong as wrong:
        place = wrong.path.lstrip(".") or document.root
        raise document.complaint(f": {place} {wrong.problem}" if place else f": {wrong.problem}") from None
    except RecursionError:
        raise document.complaint(" is nested too deeply") from None
    return result


def read_json(kind: type[T], text: str | bytes, document: Document) -> T:
    """Return :func:`decode` of what :func:`parse_json` finds in ``text``."""
    return decode(kind, parse_json(text, document), document)


def encode(value: Any) -> Any:
    """Return plain values, ready for ``json.dumps(..., allow_nan=False)``: the inverse of :func:`decode`."""
    if is_dataclass(value) and not isinstance(value, type):
        result: dict[str, Any] = {}
        for field in json_fields(type(value)):
            part, target = encode(getattr(value, field.name)), result
            if field.flat:
                result |= dict.fromkeys(field.flat) if part is None else part
                continue
            if field.keyed_by:
                part = {entry.pop(field.keyed_by): entry for entry in part}
            *groups, last = field.path
            for group in groups:
                target = target.setdefault(group, {})
            target[last] = part
        return result
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if isinstance(value, float) and math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


class _Wrong(Exception):
    """A deviation; on its way up each container puts its part of the path in front."""

    def __init__(self, problem: str, path: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.path = path

    def below(self, *keys: str | int) -> _Wrong:
        """The same, in a container that has it at ``keys``."""
        for key in reversed(keys):
            plain = isinstance(key, str) and _IDENTIFIER.fullmatch(key)
            self.path = (f".{key}" if plain else f"[{shorten(key)}]") + self.path
        return self


def _fail(place: str, problem: str) -> NoReturn:
    raise _Wrong(problem, place if place.startswith("[") or not place else f".{place}")


def _must_be(wanted: str, value: object) -> _Wrong:
    return _Wrong(f"must be {wanted}, not {_FOUND.get(type(value), f'a {type(value).__name__}')}")


def _reader(hint: Any, defaults: bool, outer: Bounds = NO_BOUNDS, known: Mapping[str, Any] = {}) -> Read:
    """What reads a value of the type ``hint``.

    Args:
        defaults: see :class:`.text.Document`.
        outer: bounds that hold where the type has none.
        known: the earlier fields of the object, which bounds may name.
    """
    kind, marks = split_marks(hint)
    found = {type(mark): mark for mark in marks}
    bounds = found[Bounds].within(outer, known) if Bounds in found else outer
    inner = partial(_reader, defaults=defaults, outer=bounds, known=known)
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return _read_free
    if kind in (bool, NoneType):
        return partial(_read_exactly, kind)
    if kind in (int, float):
        return partial(_read_number, kind, bounds, found.get(Multiple))
    if kind is str:
        return partial(_read_text, found.get(Text), found.get(OneOf))
    if is_dataclass(kind):
        return partial(_read_object, kind, defaults, bounds)
    if origin in (Union, UnionType):
        return partial(_read_union, {name: inner(option) for option in arguments for name in _json_types(option)})
    if origin is tuple and KeyedBy in found:
        return partial(_read_keyed, found[KeyedBy].name, inner(arguments[0]))
    if origin is tuple and arguments[-1] is Ellipsis:
        return partial(_read_list, inner(arguments[0]))
    if origin is tuple:
        return partial(_read_fixed, [inner(argument) for argument in arguments])
    if origin is Mapping:
        names = next((mark.options for mark in split_marks(arguments[0])[1] if isinstance(mark, OneOf)), None)
        return partial(_read_mapping, inner(arguments[1]), names=names, every=found.get(EveryKey))
    raise TypeError(f"{hint} has no JSON form")


def _json_types(hint: Any) -> tuple[type, ...]:
    """The Python types that parsed JSON has for a type."""
    kind, _ = split_marks(hint)
    if kind is float:
        return int, float
    if get_origin(kind) is tuple:
        return (list,)
    return (dict,) if is_dataclass(kind) or get_origin(kind) is Mapping else (kind,)


def _read_exactly(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise _must_be(_WANTED[kind], value)
    return value


def _read_union(readers: Mapping[type, Read], value: Any) -> Any:
    if type(value) not in readers:
        wanted = [_WANTED[kind] for kind in readers if kind is not int or float not in readers]
        raise _must_be(" or ".join(wanted), value)
    return readers[type(value)](value)


def _read_number(kind: type, bounds: Bounds, multiple: Multiple | None, value: Any) -> Any:
    if type(value) is not int and (kind is int or type(value) is not float):
        raise _must_be(_WANTED[kind], value)
    low: Any = -MAX_INTEGER if bounds.minimum is None else bounds.minimum
    high: Any = MAX_INTEGER if bounds.maximum is None else bounds.maximum
    if not low <= value <= high:  # as NaN and infinity are not
        wanted = f"from {low} to {high}" if kind is int or bounds.maximum is not None else "a finite number"
        sign = " that is not negative" if wanted == "a finite number" and low == 0 else ""
        raise _Wrong(f"must be {wanted}{sign}, not {shorten(value)}")
    if multiple is not None and value % multiple.of:
        raise _Wrong(f"must be a multiple of {multiple.of}, not {value}")
    return kind(value)


def _read_text(text: Text | None, choice: OneOf | None, value: Any) -> str:
    if type(value) is not str:
        raise _must_be("a string" if text is None else text.description, value)
    if (text is None or text.printable) and not (0 < len(value) <= MAX_TEXT and value.isprintable()):
        raise _Wrong(f"must be 1 to {MAX_TEXT} printable characters, not {shorten(value)}")
    if text is not None and not re.fullmatch(text.pattern, value):
        raise _Wrong(f"must be {text.description}, not {shorten(value)}")
    if choice is not None and value not in choice.options:
        raise _Wrong(f"must be one of {', '.join(choice.options)}, not {shorten(value)}")
    return value


def _read_free(value: Any, depth: int = 0) -> Any:
    if depth > MAX_DEPTH:
        raise _Wrong(f"is nested more than {MAX_DEPTH} levels deep")
    if type(value) is dict:
        return _read_mapping(partial(_read_free, depth=depth + 1), value)
    if type(value) is list:
        return list(_read_list(partial(_read_free, depth=depth + 1), value))
    if type(value) is str:
        return _INFINITIES.get(value, value)
    if type(value) is int:
        return _read_number(int, NO_BOUNDS, None, value)
    if type(value) is float and not math.isfinite(value):
        raise _Wrong(f"must be a finite number, not {shorten(value)}")
    if value is not None and type(value) not in (bool, float):
        raise _must_be("a JSON value", value)
    return value


def _read_list(item: Read, value: Any) -> tuple[Any, ...]:
    _read_exactly(list, value)
    result: list[Any] = []
    try:
        for element in value:
            result.append(item(element))
    except _Wrong as wrong:
        raise wrong.below(len(result)) from None
    return tuple(result)


def _read_fixed(items: list[Read], value: Any) -> tuple[Any, ...]:
    if len(_read_exactly(list, value)) != len(items):
        raise _Wrong(f"must have {len(items)} elements, not {len(value)}")
    readers = iter(items)
    return _read_list(lambda element: next(readers)(element), value)


def _read_mapping(
    member: Read, value: Any, names: tuple[str, ...] | None = None, every: EveryKey | None = None
) -> dict[str, Any]:
    members = _members(value) if every is None else _exactly(value, names or (), frozenset(every.added))
    for name in members:
        if names is not None and name not in names:
            raise _Wrong(f"names {shorten(name)}, which is none of {', '.join(names)}")
    result = {}
    for name in members if names is None else [name for name in names if name in members]:
        try:
            result[name] = member(members[name])
        except _Wrong as wrong:
            raise wrong.below(name) from None
    return result


def _read_keyed(field: str, item: Read, value: Any) -> tuple[Any, ...]:
    def read(name: str, element: Any) -> Any:
        if field in _members(element):
            raise _Wrong(f"has the field {field!r}, which is its key")
        return item({field: name, **element})

    return tuple(_read_mapping(partial(read, name), {name: element})[name] for name, element in _members(value).items())


def _read_object(kind: Any, defaults: bool, bounds: Bounds, value: Any) -> Any:
    values: dict[str, Any] = {}
    members = _gather(_layout(kind), defaults, value)
    for field, ready in zip(json_fields(kind), _readers(kind, defaults, bounds), strict=True):
        read = _reader(field.hint, defaults, bounds, values) if ready is None else ready
        if field.flat:
            part = {name: members[(name,)] for name in field.flat}
            absent = NoneType in options_of(field.hint) and set(map(type, part.values())) == {NoneType}
            values[field.name] = None if absent else read(part)
        elif field.path in members:
            try:
                values[field.name] = read(members[field.path])
            except _Wrong as wrong:
                raise wrong.below(*field.path) from None
    result = kind(**values)
    if hasattr(result, "check_fields"):
        result.check_fields(_fail)
    return result


@lru_cache(maxsize=1024)
def _readers(kind: Any, defaults: bool, bounds: Bounds) -> tuple[Read | None, ...]:
    """What reads the fields of a dataclass; None where a bound names an earlier field of the object."""
    return tuple(
        None if names_fields(field.hint) else _reader(field.hint, defaults, bounds) for field in json_fields(kind)
    )


@cache
def _layout(kind: type) -> dict[str, Any]:
    """The members of a dataclass's object: whether each may be left out (``ADDED``: by every document), or in turn the
    members of a group."""
    layout: dict[str, Any] = {}
    for field in json_fields(kind):
        *groups, last = field.path
        target = layout
        for group in groups:
            target = target.setdefault(group, {})
        target |= dict.fromkeys(field.flat, False) if field.flat else {last: ADDED if field.added else field.optional}
    return layout


def _gather(layout: Mapping[str, Any], defaults: bool, value: Any) -> dict[tuple[str, ...], Any]:
    """The members of an object and of its groups, by their paths."""
    optional = {name for name, may_lack in layout.items() if may_lack is ADDED or (defaults and may_lack is True)}
    members = _exactly(value, tuple(layout), optional)
    result: dict[tuple[str, ...], Any] = {}
    for name, group in layout.items():
        if isinstance(group, dict):
            try:
                inside = _gather(group, defaults, members[name])
            except _Wrong as wrong:
                raise wrong.below(name) from None
            result |= {(name, *path): member for path, member in inside.items()}
        elif name in members:
            result[(name,)] = members[name]
    return result


def _members(value: Any) -> dict[str, Any]:
    for name in _read_exactly(dict, value):
        if type(name) is not str or not 0 < len(name) <= MAX_TEXT or not name.isprintable():
            raise _Wrong(f"has the unusable key {shorten(name)}")
    return dict(value)


def _exactly(value: Any, names: tuple[str, ...], optional: Set[str] = frozenset()) -> dict[str, Any]:
    """The members of an object that has the fields ``names`` and no others."""
    members = _members(value)
    for name in names:
        if name not in members and name not in optional:
            raise _Wrong(f"lacks the field {name!r}")
    for name in members:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            advice = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(names)}"
            raise _Wrong(f"has the unknown field {shorten(name)} ({advice})")
    return members
