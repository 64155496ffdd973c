"""What annotations allow, how each deviation is told, and that writing is the inverse of reading."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapengine.runtime.errors import InputError, MapEngineError
from mapengine.runtime.typed_json.codec import Fail, decode, encode, read_json
from mapengine.runtime.typed_json.fields import (
    FLAT,
    Bounds,
    Count,
    EveryKey,
    Key,
    KeyedBy,
    Multiple,
    OneOf,
    Sha256,
    Text,
)
from mapengine.runtime.typed_json.text import Document, parse_json, shorten

DOCUMENT = Document("plan.json", "plan again", InputError)
BY_HAND = Document("views.json: view 2", "correct the file", InputError, root="", defaults=True)


@dataclass(frozen=True)
class Part:
    name: str
    size: Annotated[int, Multiple(8)]


@dataclass(frozen=True)
class Span:
    low: int
    high: Annotated[int, Bounds("low")]


@dataclass(frozen=True)
class Whole:
    kind: Annotated[str, OneOf(("a", "b"))]
    inner: Annotated[Part | None, FLAT]
    author: Annotated[str, Key("origin.author")]
    year: Annotated[int, Key("origin.year"), Bounds(1900, 2100)]
    spans: Annotated[tuple[Span, ...], Bounds(1, 9)]
    parts: Annotated[tuple[Part, ...], KeyedBy("name")]
    pair: tuple[float, bool]
    axis: int | str
    share: Annotated[float, Bounds(0, 1)] | None
    counts: Mapping[Annotated[str, OneOf(("x", "y"))], Count]
    both: Annotated[Mapping[Annotated[str, OneOf(("x", "y"))], Sha256], EveryKey()]
    nested: tuple[Whole, ...]
    free: Any
    path: Annotated[str, Text("the path of a file", r"[^\0]+", printable=False)] = "."

    def check_fields(self, fail: Fail) -> None:
        if self.kind == "b" and self.nested:
            fail("nested", "must be empty for b")
        if self.kind == "b" and self.counts:
            fail("", "has counts, which b has not")


SMALL = Whole(
    kind="a", inner=None, author="me", year=2000, spans=(), parts=(), pair=(0.0, False), axis="x", share=None,
    counts={}, both={"x": "0" * 64, "y": "1" * 64}, nested=(), free=None,
)  # fmt: skip
WHOLE = Whole(
    kind="a", inner=Part("in", 8), author="you", year=1999, spans=(Span(1, 1), Span(2, 9)),
    parts=(Part("p", 16), Part("q", 0)), pair=(-1.5, True), axis=7, share=0.5, counts={"y": 3},
    both={"x": "a" * 64, "y": "b" * 64}, nested=(SMALL,), free={"limit": math.inf, "list": [1, None, "t"]}, path="ä b",
)  # fmt: skip


def changed(path: str, value: Any) -> Any:
    document = json.loads(json.dumps(encode(WHOLE)))
    *steps, last = [int(step) if step.isdigit() else step for step in path.split("/")]
    target = document
    for step in steps:
        target = target[step]
    target[last] = value
    return document


def test_the_form_in_json() -> None:
    document = encode(WHOLE)
    assert list(document) == [
        "kind", "name", "size", "origin", "spans", "parts", "pair", "axis", "share", "counts", "both", "nested",
        "free", "path",
    ]  # fmt: skip
    assert document["origin"] == {"author": "you", "year": 1999}
    assert document["parts"] == {"p": {"size": 16}, "q": {"size": 0}}
    assert document["free"]["limit"] == "Infinity"
    assert (encode(SMALL)["name"], encode(SMALL)["size"]) == (None, None)


@pytest.mark.parametrize("value", [SMALL, WHOLE], ids=["small", "whole"])
def test_writing_is_the_inverse_of_reading(value: Whole) -> None:
    text = json.dumps(encode(value), allow_nan=False)
    assert read_json(Whole, text, DOCUMENT) == value
    assert encode(read_json(Whole, text.encode(), DOCUMENT)) == json.loads(text)


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("kind", "c", "kind must be one of a, b, not 'c'"),
        ("kind", 1, "kind must be a string, not an integer"),
        ("kind", "b", "nested must be empty for b"),
        ("size", 9, "size must be a multiple of 8, not 9"),
        ("name", None, "name must be a string, not null"),
        ("origin", None, "origin must be an object, not null"),
        ("origin", {"author": "you"}, "origin lacks the field 'year'"),
        ("origin/extra", 1, "origin has the unknown field 'extra' (known are author, year)"),
        ("origin/year", 1899, "origin.year must be from 1900 to 2100, not 1899"),
        ("spans/1/high", 1, "spans[1].high must be from 2 to 9, not 1"),
        ("spans/1/low", 10, "spans[1].low must be from 1 to 9, not 10"),
        ("parts/p/size", 1, "parts.p.size must be a multiple of 8, not 1"),
        ("parts/p/name", "p", "parts.p has the field 'name', which is its key"),
        ("parts/a b", {}, "parts['a b'] lacks the field 'size'"),
        ("pair", [1.0], "pair must have 2 elements, not 1"),
        ("pair/1", 1, "pair[1] must be true or false, not an integer"),
        ("pair/0", math.nan, "pair[0] must be a finite number, not nan"),
        ("axis", None, "axis must be an integer or a string, not null"),
        ("share", 1.5, "share must be from 0 to 1, not 1.5"),
        ("share", True, "share must be a number or null, not a boolean"),
        ("counts/z", 1, "counts names 'z', which is none of x, y"),
        ("counts/x", -1, "counts.x must be from 0 to 9223372036854775807, not -1"),
        ("both", {"x": "a" * 64}, "both lacks the field 'y'"),
        ("both/y", "A" * 64, "both.y must be a SHA-256 of 64 lowercase hexadecimal digits, not "),
        ("nested/0/kind", "", "nested[0].kind must be 1 to 256 printable characters, not ''"),
        ("free/list", [2**64], "free.list[0] must be from -9223372036854775807 to 9223372036854775807, not "),
        ("free", (1,), "free must be a JSON value, not a tuple"),
        ("path", "a\0b", "path must be the path of a file, not 'a\\x00b'"),
        ("path", 1, "path must be the path of a file, not an integer"),
        ("knd", "a", "the top level has the unknown field 'knd' (did you mean 'kind'?)"),
    ],
)
def test_each_deviation_is_one_sentence_with_its_place(path: str, value: Any, problem: str) -> None:
    with pytest.raises(InputError) as caught:
        decode(Whole, changed(path, value), DOCUMENT)
    assert str(caught.value).startswith(f"plan.json: {problem}")
    assert str(caught.value).endswith("; plan again")
    assert str(caught.value).isascii()


def test_a_rule_about_the_whole_names_the_whole() -> None:
    document = {**encode(WHOLE), "kind": "b", "nested": []}
    with pytest.raises(InputError, match=r"^plan\.json: the top level has counts, which b has not; plan again$"):
        decode(Whole, document, DOCUMENT)
    with pytest.raises(InputError, match=r"^views\.json: view 2: has counts, which b has not; correct the file$"):
        decode(Whole, document, BY_HAND)


def test_only_a_document_by_hand_may_leave_out_what_has_a_default() -> None:
    document = encode(SMALL)
    del document["path"]
    assert decode(Whole, document, BY_HAND) == SMALL
    with pytest.raises(InputError, match="the top level lacks the field 'path'"):
        decode(Whole, document, DOCUMENT)
    del document["kind"]
    with pytest.raises(InputError, match=r"view 2: lacks the field 'kind'"):
        decode(Whole, document, BY_HAND)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b'{"a": 1, "a": 2}', "is not valid JSON (the key 'a' appears twice in one object)"),
        (b"[NaN]", "is not valid JSON (the token NaN is not JSON)"),
        (b"[Infinity]", "is not valid JSON (the token Infinity is not JSON)"),
        (b"[9223372036854775808]", "is not valid JSON (the integer '9223372036854775808' needs more than 64 bits)"),
        (b"\xff", "is not valid JSON (it is not UTF-8)"),
        (b"[" * 100_000, "is nested too deeply"),
        (b"[1,]", "is not valid JSON ("),
    ],
)
def test_what_is_no_strict_json(text: bytes, problem: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_json(text, DOCUMENT)
    assert str(caught.value).startswith(f"plan.json {problem}")
    assert str(caught.value).endswith("; plan again")


@pytest.mark.slow
def test_nesting_of_a_recursive_type_ends_in_a_refusal() -> None:
    document = encode(SMALL)
    for _ in range(5000):
        document = {**encode(SMALL), "nested": [document]}
    with pytest.raises(InputError, match=r"plan\.json is nested too deeply; plan again"):
        decode(Whole, document, DOCUMENT)


def test_texts_in_messages_are_short_and_printable() -> None:
    assert shorten("ä" * 200) == "'" + "\\xe4" * 14 + "..."
    assert shorten(10**5000) == "a huge integer"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(key=st.sampled_from(sorted(encode(WHOLE))), value=JSON)
def test_any_value_is_read_back_or_refused(key: str, value: Any) -> None:
    try:
        found = decode(Whole, {**encode(WHOLE), key: value}, DOCUMENT)
    except MapEngineError:
        return
    assert decode(Whole, json.loads(json.dumps(encode(found), allow_nan=False)), DOCUMENT) == found
