"""Readers of files that others made, fuzzed: whatever is in them, a reader answers, or refuses in one sentence.

Run briefly with the other tests. As long as one likes: ``MAPENGINE_FUZZ=100000 pytest -n 0 tests/abuse/test_fuzz.py``,
which is the number of examples per reader.
"""

from __future__ import annotations

import json
import os
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mapengine.calibration.ranges import Calibration, LayerCalibration, TokenStatistics, load_calibration
from mapengine.runtime.bundle.manifest import Manifest
from mapengine.runtime.errors import CalibrationError, ManifestError, MapEngineError
from mapengine.runtime.inputs.formats.colmap_model import read_model
from mapengine.runtime.inputs.formats.view_lists import load_view_list
from mapengine.runtime.typed_json.codec import decode, encode
from mapengine.runtime.typed_json.text import Document, parse_json

fuzzed = settings(
    max_examples=int(os.environ.get("MAPENGINE_FUZZ", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


def answers(call: Callable[[], Any]) -> None:
    """The call gives something, or raises one of our errors with one line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call()
            message = ""
        except MapEngineError as error:
            message = str(error)
    assert "\n" not in message


def changed(sample: Any, data: st.DataObject) -> Any:
    """A JSON value with some of its parts replaced, taken away or added."""
    if data.draw(st.integers(0, 9)) == 0:
        return data.draw(VALUES)
    if isinstance(sample, dict):
        result = {key: changed(value, data) for key, value in sample.items() if data.draw(st.integers(0, 19))}
        return {**result, data.draw(st.text(max_size=8)): None} if not data.draw(st.integers(0, 19)) else result
    return [changed(value, data) for value in sample] if isinstance(sample, list) else sample


@pytest.mark.slow
@fuzzed
@given(st.data())
def test_manifests(tiny_bundle: Path, data: st.DataObject) -> None:
    sample = json.loads((tiny_bundle / "manifest.json").read_text(encoding="utf-8"))
    text = json.dumps(changed(sample, data))

    def read() -> Manifest:
        return Manifest.from_json(parse_json(text, Document("manifest.json", "build again", ManifestError)), "x")

    answers(read)


@pytest.mark.slow
@fuzzed
@given(st.data())
def test_view_lists(tmp_path: Path, data: st.DataObject) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    view = {"image": "a.png", "intrinsics": [1, 1, 0, 0], "depth": "a.png", "depth_scale": 0.1, "metric": False}
    sample = [view, {"image": "a.png", "pose": np.eye(4).tolist(), "mask": "a.png"}]
    (tmp_path / "views.json").write_text(json.dumps(changed(sample, data)), encoding="utf-8")
    answers(lambda: load_view_list(tmp_path / "views.json"))


@pytest.mark.slow
@fuzzed
@given(st.one_of(st.binary(max_size=200), VALUES.map(lambda value: json.dumps(value).encode())))
def test_view_lists_of_any_content(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "views.json").write_bytes(content)
    answers(lambda: load_view_list(tmp_path / "views.json"))


@pytest.mark.slow
@fuzzed
@given(st.data())
def test_calibration_records(tmp_path: Path, data: st.DataObject) -> None:
    tokens = {"patch": TokenStatistics(100, 2.5, 1e-4)}
    layers = (
        LayerCalibration("a.qkv", "aggregator", 2.25, tokens, False, 0.5, (-1, 0, 3), False, (0.25, -1e-7), 1e-4, 2e-4),
        LayerCalibration("a.proj", "aggregator", 0.0, tokens, True, None, None, True),
    )
    record = Calibration(
        "m", "a" * 64, "8 cases", "b" * 64, "int8", "mse", True, True, False, layers, ("a.proj",), {"x": 0.9}, 99.0
    )
    document = Document("record.json", "calibrate again", CalibrationError)
    answers(lambda: decode(Calibration, changed(json.loads(json.dumps(encode(record))), data), document))
    (tmp_path / "record.json").write_text(json.dumps(changed(encode(record), data)), encoding="utf-8")
    answers(lambda: load_calibration(tmp_path / "record.json"))


CAMERAS = struct.pack("<QIiQQ4d", 1, 1, 1, 40, 30, 30, 30, 20, 15)
IMAGES = struct.pack("<QI7dI", 1, 1, 1, 0, 0, 0, 0.1, 0.2, 0.3, 1) + b"a.png\0" + struct.pack("<Qddq", 1, 3, 4, 7)
POINTS = struct.pack("<QQ3d3Bd", 1, 7, 0, 0, 2, 1, 2, 3, 0.5) + struct.pack("<QII", 1, 1, 0)


@st.composite
def edited(draw: Callable[[Any], Any], content: bytes) -> bytes:
    result = bytearray(content)
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(result)))
        piece = draw(st.binary(max_size=8) | st.sampled_from([b"\xff" * 8, b"\0" * 8]))
        result[place : place + draw(st.integers(0, 8))] = piece
    return bytes(result)


@pytest.mark.slow
@pytest.mark.parametrize("points", [True, False])
@fuzzed
@given(st.tuples(edited(CAMERAS), edited(IMAGES), edited(POINTS)))
def test_colmap_models_in_binary(tmp_path: Path, points: bool, content: tuple[bytes, bytes, bytes]) -> None:
    for name, part in zip(("cameras", "images", "points3D"), content, strict=True):
        (tmp_path / f"{name}.bin").write_bytes(part)
    answers(lambda: read_model(tmp_path, points))


@pytest.mark.slow
@fuzzed
@given(
    st.tuples(
        edited(b"# cameras\n1 PINHOLE 40 30 30 30 20 15\n"),
        edited(b"1 1 0 0 0 0.1 0.2 0.3 1 a.png\n3 4 7\n"),
        edited(b"7 0 0 2 1 2 3 0.5 1 0\n"),
    )
)
def test_colmap_models_in_text(tmp_path: Path, content: tuple[bytes, bytes, bytes]) -> None:
    for name, part in zip(("cameras", "images", "points3D"), content, strict=True):
        (tmp_path / f"{name}.txt").write_bytes(part)
    answers(lambda: read_model(tmp_path, True))
