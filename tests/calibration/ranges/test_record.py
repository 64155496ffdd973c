"""Calibration files: written whole, read strictly."""

from __future__ import annotations

import json
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
from mapengine.runtime.errors import CalibrationError, OutputError
from mapengine.runtime.typed_json.codec import encode


@pytest.fixture
def calibration() -> Calibration:
    tokens = {"patch": TokenStatistics(100, 2.5, 1e-4), "class": TokenStatistics(4, 9.0, 0.02)}
    layers = (
        LayerCalibration("a.qkv", "aggregator", 2.25, tokens, False, 0.5, (-1, 0, 3), False, (0.25, -1e-7), 1e-4, 2e-4),
        LayerCalibration("a.proj", "aggregator", 0.0, tokens, True, None, None, True),
    )
    return Calibration(
        "preset:tiny",
        "a" * 64,
        "8 cases",
        "b" * 64,
        "int8",
        "mse",
        True,
        True,
        False,
        layers,
        ("a.proj",),
        {"x": 0.9},
        99.0,
        "outputs",
    )


def test_round_trip(calibration: Calibration, tmp_path: Path) -> None:
    path = tmp_path / "new" / "calibration.json"
    save_calibration(calibration, path)
    assert load_calibration(path) == calibration
    text = path.read_text()
    assert len(text.splitlines()) < 60  # a layer is a line
    assert [layer.name for layer in calibration.quantized] == ["a.qkv"]
    assert calibration.described() == "mse ranges, smoothing, rotation"
    save_calibration(load_calibration(path), path)
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema_version": 1}, "schema_version"),
        ({"precision": "int4"}, "precision must be one of int8, fp8"),
        ({"kept_layers": ["b"]}, "names b, which is none of the layers"),
        ({"layers": {"a": {}}}, "lacks the field 'stage'"),
        ({"extra": 1}, "unknown field 'extra'"),
        ({"data": {"description": "x", "sha256": "0"}}, "data.sha256 must be a SHA-256"),
        (
            {
                "options": {
                    "method": "mse",
                    "smooth": 1,
                    "rotate": True,
                    "correct_bias": True,
                    "accuracy": None,
                    "measure": None,
                }
            },
            "must be true or false",
        ),
    ],
)
def test_damaged_files(change: dict[str, Any], said: str, calibration: Calibration, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(encode(calibration) | change))
    with pytest.raises(CalibrationError, match="calibrate again") as caught:
        load_calibration(path)
    assert said in str(caught.value)
    assert "manifest" not in str(caught.value)
    assert "bundle" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": NaN}', "\xff"])
def test_what_is_no_calibration(text: str, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(CalibrationError, match="is no calibration"):
        load_calibration(path)
    with pytest.raises(CalibrationError, match="check the path"):
        load_calibration(tmp_path / "missing.json")


def test_nothing_half_written(calibration: Calibration, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError):
        save_calibration(calibration, tmp_path / "file" / "calibration.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_another_model_is_refused(calibration: Calibration) -> None:
    calibration.check_model("a" * 64, "preset:tiny", "int8")
    with pytest.raises(CalibrationError, match="other weights than preset:giant has; calibrate this model"):
        calibration.check_model("c" * 64, "preset:giant", "int8")
    with pytest.raises(CalibrationError, match="is for int8, and the build is fp8; calibrate for fp8"):
        calibration.check_model("a" * 64, "preset:tiny", "fp8")
