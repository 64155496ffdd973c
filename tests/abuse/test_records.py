"""Attempts on calibration records: damage, hostile values, and files that are none.

Each attempt says why it must fail. It has to end in a ``CalibrationError`` of one printable sentence; a seed names it,
so that it can be repeated.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mapengine.calibration.ranges import (
    Calibration,
    LayerCalibration,
    TokenStatistics,
    load_calibration,
    save_calibration,
)
from mapengine.runtime.errors import CalibrationError
from mapengine.runtime.system.reading import shown_path
from mapengine.runtime.typed_json.own_hash import ZEROS, with_own_hash

Document = dict[str, Any]
FIELD = "calibration_sha256"
LAYERS = ("encoder.model.blocks.0.attn.qkv", "info_sharing.self_attention_blocks.0.mlp.w3")


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """The file of a calibration of two layers."""
    tokens = {"patch": TokenStatistics(1000, 7.25, 1e-4), "class": TokenStatistics(4, 31.0, 0.02)}
    layers = (
        LayerCalibration(
            LAYERS[0], "image_encoder", 6.5, tokens, True, 0.5, (-3, 0, 2, 1), False, (0.25, -1e-7), 1e-4, 2e-4
        ),
        LayerCalibration(LAYERS[1], "aggregator", 2.25, tokens, rotated=True),
    )
    calibration = Calibration(
        "preset:tiny",
        "a" * 64,
        "8 cases",
        "b" * 64,
        "int8",
        "mse",
        True,
        True,
        True,
        layers,
        (LAYERS[1],),
        {"x": 0.9},
        99.0,
        "outputs",
    )
    path = tmp_path / "calibration.json"
    save_calibration(calibration, path)
    assert load_calibration(path) == calibration
    return path


def refused(path: Path, attempt: object, why: str) -> None:
    """Reading the record fails with a sentence."""
    try:
        load_calibration(path)
    except CalibrationError as error:
        text = str(error)
        assert text.isprintable(), (attempt, text)
        assert len(text) < 600, (attempt, text)
        assert text.startswith(shown_path(path)), (attempt, text)
        return
    raise AssertionError(f"{attempt} was read, but {why}")


@pytest.mark.slow
def test_truncations(record: Path) -> None:
    content = record.read_bytes()
    for length in range(len(content)):
        record.write_bytes(content[:length])
        refused(record, length, "a text that is cut off is no JSON, or has another hash")
    record.write_bytes(content)
    load_calibration(record)


@pytest.mark.slow
def test_flipped_bits(record: Path) -> None:
    content = record.read_bytes()
    draws = random.Random(1)
    for attempt in range(1500):
        changed = bytearray(content)
        places = [draws.randrange(len(content)) for _ in range(draws.choice((1, 1, 1, 2, 8)))]
        for place in places:
            changed[place] ^= 1 << draws.randrange(8)
        if changed != content:
            record.write_bytes(changed)
            refused(record, (attempt, places), "the record has a hash of itself")


def test_numbers_that_somebody_edited(record: Path) -> None:
    """All of these are valid JSON of the right types; only the hash tells them from what was measured."""
    text = record.read_text()
    edits = [('"largest": 6.5', f'"largest": {value}') for value in ("6.5e-6", "6.50", "6", "1e30")]
    edits += [("[-3, 0, 2, 1]", "[-3, 0, 2]"), ("[-3, 0, 2, 1]", "[-3, 0, 2, 1, 0]"), ("[0.25, -1e-07]", "null")]
    edits += [("\n", "\r\n"), ('"alpha": 0.5', '"alpha":  0.5'), ("8 cases", "9 cases")]
    for old, new in edits:
        assert old in text
        record.write_text(text.replace(old, new, 1), newline="")
        refused(record, (old, new), "the record has a hash of itself")


@pytest.mark.slow
def test_moved_blocks(record: Path) -> None:
    content = record.read_bytes()
    draws = random.Random(2)
    for attempt in range(300):
        first, second = sorted(draws.sample(range(len(content) + 1), 2))
        changed = draws.choice(
            (
                content[:first] + content[second:],
                content[:second] + content[first:],
                content[second:] + content[:second],
                content[:first] + bytes(second - first) + content[second:],
            )
        )
        if changed != content:
            record.write_bytes(changed)
            refused(record, (attempt, first, second), "bytes are missing, doubled, moved or zero")


def _layer(document: Document) -> Document:
    entry: Document = document["layers"][LAYERS[0]]
    return entry


HOSTILE: list[tuple[str, Callable[[Document], object]]] = [
    ("a range that float32 does not hold", lambda d: _layer(d).update(largest=1e39)),
    ("a negative range", lambda d: _layer(d).update(largest=-1.0)),
    ("a range in words", lambda d: _layer(d).update(largest="6.5")),
    ("no range", lambda d: _layer(d).pop("largest")),
    ("no stage", lambda d: _layer(d).pop("stage")),
    ("no statistics", lambda d: _layer(d).pop("tokens")),
    ("a field that there is not", lambda d: _layer(d).update(scale=1.0)),
    ("an exponent whose power float32 does not hold", lambda d: _layer(d).update(exponents=[200])),
    ("an exponent that is no whole number", lambda d: _layer(d).update(exponents=[0.5])),
    ("a bias that float32 does not hold", lambda d: _layer(d).update(bias=[1e300])),
    ("a bias of true", lambda d: _layer(d).update(bias=[True])),
    ("a rotation of 1", lambda d: _layer(d).update(rotated=1)),
    ("an error below zero", lambda d: _layer(d).update(error=-1e-9)),
    ("a count of tokens that is no count", lambda d: _layer(d)["tokens"]["patch"].update(count=1.5)),
    ("an entry that is a list", lambda d: d["layers"].update({LAYERS[0]: []})),
    ("a layer with its name inside", lambda d: _layer(d).update(name=LAYERS[0])),
    ("an unprintable layer", lambda d: d["layers"].update({"a\nb": _layer(d)})),
    ("a kept layer that there is not", lambda d: d.update(kept_layers=["x"])),
    ("an unknown format", lambda d: d.update(precision="int4")),
    ("an unknown method", lambda d: d["options"].update(method="../../x")),
    ("no options", lambda d: d.pop("options")),
    ("no layers", lambda d: d.pop("layers")),
    ("a hash that is none", lambda d: d["model"].update(weights_sha256="z" * 64)),
    ("an older version", lambda d: d.update(schema_version=1)),
    ("a newer version", lambda d: d.update(schema_version=3)),
    ("a version that is true", lambda d: d.update(schema_version=True)),
    ("a report of text", lambda d: d.update(report={"x": "y"})),
    ("a deep value", lambda d: d.update(report=json.loads("[" * 500 + "]" * 500))),
    ("no hash", lambda d: d.pop(FIELD)),
    ("a hash that is a number", lambda d: d.update({FIELD: 5})),
    ("a hash that is not ASCII", lambda d: d.update({FIELD: "é" * 64})),
    ("an empty hash", lambda d: d.update({FIELD: ""})),
]


@pytest.mark.parametrize(("attempt", "change"), HOSTILE, ids=[name for name, _ in HOSTILE])
def test_hostile_records_with_a_hash_that_is_right(
    attempt: str, change: Callable[[Document], object], record: Path
) -> None:
    document = json.loads(record.read_text()) | {FIELD: ZEROS}
    record.write_bytes(with_own_hash(json.dumps(document), FIELD))
    load_calibration(record)  # laid out otherwise, with its own hash, it is one
    change(document)
    record.write_bytes(with_own_hash(json.dumps(document), FIELD))
    refused(record, attempt, "its author made the hash, but the values have no meaning")


@pytest.mark.parametrize(
    "text",
    [
        "NaN",
        "null",
        '"text"',
        "[1]",
        f'{{"{FIELD}": 1, "{FIELD}": 1}}',
        '{"schema_version": ' + "9" * 5000 + "}",
        "[" * 100_000,
        "\ufeff{}",
        "{}\x00",
    ],
    ids=["NaN", "null", "text", "list", "twice", "huge integer", "deep", "mark", "zero"],
)
def test_texts_that_are_no_record(text: str, record: Path) -> None:
    record.write_text(text, encoding="utf-8")
    refused(record, text[:20], "it is no object with the fields of a record")


@pytest.mark.slow
def test_files_that_are_no_text(record: Path, tmp_path: Path) -> None:
    draws = random.Random(3)
    for length in (1, 10, 1000, 100_000):
        record.write_bytes(draws.randbytes(length))
        refused(record, length, "random bytes are no record")
    refused(tmp_path, "folder", "a folder is no record")
    refused(tmp_path / ("x" * 300), "a long name", "no file system has it")
    refused(tmp_path / "nothing", "nothing", "there is no file")
    with record.open("wb") as file:
        file.truncate(2**40)  # a hole: takes no room on the disk
    refused(record, "a terabyte", "reading it would take all memory")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_not_waited_for(record: Path) -> None:
    record.unlink()
    os.mkfifo(record)
    refused(record, "pipe", "reading would wait until somebody writes")
