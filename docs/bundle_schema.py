"""Write ``docs/reference/bundle.schema.json``: the JSON Schema of a bundle's manifest, from the runtime's annotations.

It says what each field is. Rules that concern several fields are the runtime's alone, which refuses more.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

from mapengine.runtime.bundle.manifest import SCHEMA_VERSION, Manifest
from mapengine.runtime.typed_json.fields import (
    MAX_TEXT,
    NO_BOUNDS,
    Bounds,
    EveryKey,
    Multiple,
    OneOf,
    Text,
    json_fields,
    options_of,
    split_marks,
)

TARGET = Path(__file__).resolve().parent / "reference" / "bundle.schema.json"
PRINTABLE = {"type": "string", "minLength": 1, "maxLength": MAX_TEXT}

Schema = dict[str, Any]


def manifest_schema() -> Schema:
    """Return the JSON Schema (draft 2020-12) of ``manifest.json``."""
    definitions: dict[str, Schema] = {}
    manifest = _object(Manifest, NO_BOUNDS, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"manifest.json of an engine bundle, schema version {SCHEMA_VERSION}",
        **manifest,
        "$defs": dict(sorted(definitions.items())),
    }


def _schema(hint: Any, outer: Bounds, definitions: dict[str, Schema]) -> Schema:
    """The schema of a type; ``outer`` are bounds for one without its own, and ``definitions`` what references name."""
    kind, marks = split_marks(hint)
    found = {type(mark): mark for mark in marks}
    bounds = _numeric(found[Bounds]).within(outer, {}) if Bounds in found else outer
    options, arguments = options_of(kind), get_args(kind)
    if len(options) > 1:
        return {"anyOf": [_schema(option, bounds, definitions) for option in options]}
    if kind is Any:
        return {}
    if kind in (bool, NoneType):
        return {"type": "boolean" if kind is bool else "null"}
    if kind in (int, float):
        limits = {"minimum": bounds.minimum, "maximum": bounds.maximum}
        if Multiple in found:
            limits["multipleOf"] = found[Multiple].of
        name = "integer" if kind is int else "number"
        return {"type": name, **{limit: value for limit, value in limits.items() if value is not None}}
    if kind is str:
        if OneOf in found:
            return {"type": "string", "enum": list(found[OneOf].options)}
        return {**PRINTABLE, **_text(found.get(Text))}
    if is_dataclass(kind):
        if bounds != NO_BOUNDS:
            return _object(kind, bounds, definitions)
        if kind.__name__ not in definitions:
            definitions[kind.__name__] = {}  # before what is inside, which may be the same again
            definitions[kind.__name__] = _object(kind, bounds, definitions)
        return {"$ref": f"#/$defs/{kind.__name__}"}
    if get_origin(kind) is Mapping:
        member = _schema(arguments[1], bounds, definitions)
        names = _schema(arguments[0], NO_BOUNDS, definitions)
        if EveryKey in found:
            return _exactly(dict.fromkeys(names["enum"], member), found[EveryKey].added)
        return {"type": "object", "propertyNames": names, "additionalProperties": member}
    if arguments[-1] is Ellipsis:
        return {"type": "array", "items": _schema(arguments[0], bounds, definitions)}
    items = [_schema(argument, bounds, definitions) for argument in arguments]
    return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}


def _object(kind: Any, bounds: Bounds, definitions: dict[str, Schema]) -> Schema:
    groups: dict[tuple[str, ...], dict[str, Schema]] = {(): {}}
    added = {field.path[-1] for field in json_fields(kind) if field.added}
    for field in json_fields(kind):
        if field.flat:
            inner = next(option for option in options_of(field.hint) if is_dataclass(option))
            nullable = NoneType in options_of(field.hint)
            for name, schema in _object(inner, bounds, definitions)["properties"].items():
                groups[()][name] = {"anyOf": [schema, {"type": "null"}]} if nullable else schema
            continue
        *above, last = field.path
        groups.setdefault(tuple(above), {})[last] = _schema(field.hint, bounds, definitions)
        for depth in range(len(above)):
            groups[tuple(above[:depth])].setdefault(above[depth], {})
    for path in sorted(groups, key=len, reverse=True):
        if path:
            groups[path[:-1]][path[-1]] = _exactly(groups[path])
    description = (inspect.getdoc(kind) or "").partition("\n\n")[0].replace("\n", " ").replace("``", "`")
    return {"description": description, **_exactly(groups[()], added)}


def _exactly(properties: dict[str, Schema], added: Collection[str] = ()) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in added],
        "additionalProperties": False,
    }


def _numeric(bounds: Bounds) -> Bounds:
    """Without the ends that are fields: a schema cannot compare two."""
    low, high = (None if isinstance(end, str) else end for end in (bounds.minimum, bounds.maximum))
    return Bounds(low, high)


def _text(text: Text | None) -> Schema:
    return {} if text is None else {"description": text.description, "pattern": f"^{text.pattern}$"}


if __name__ == "__main__":
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(json.dumps(manifest_schema(), indent=1) + "\n", encoding="utf-8")
