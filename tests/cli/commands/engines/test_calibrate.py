"""``mapengine calibrate``: what it writes, keeps and refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mapengine.calibration.ranges import load_calibration

SMALL = ("--cases", "2", "--size", "56x42")


@pytest.mark.slow
def test_calibrates_once(cli: Any, tmp_path: Path) -> None:
    out = tmp_path / "build" / "calibration.json"
    result = cli("calibrate", "preset:tiny", str(out), *SMALL, "--no-rotate")
    assert result.code == 0, result.err
    assert "36 of 36 layers in int8, 100.0% of their multiplications" in result.out
    assert f"Calibrated preset:tiny for int8 in {out}" in result.out
    found = load_calibration(out)
    assert found.smooth
    assert not any(layer.rotated for layer in found.layers)
    assert [path.name for path in out.parent.iterdir()] == ["calibration.json"]
    before = out.stat().st_mtime_ns
    result = cli("calibrate", "preset:tiny", str(out), *SMALL, "--no-rotate")
    assert "nothing to do" in result.out
    assert out.stat().st_mtime_ns == before
    result = cli("calibrate", "preset:tiny", str(out), *SMALL, "--no-rotate", "--no-smooth", "--method", "max")
    assert "Calibrated" in result.out
    assert load_calibration(out).method == "max"


@pytest.mark.slow
def test_what_was_measured_otherwise_is_measured_anew(cli: Any, tmp_path: Path) -> None:
    out = tmp_path / "calibration.json"
    asked = ("calibrate", "preset:tiny", str(out), *SMALL, "--no-smooth", "--no-rotate", "--accuracy", "50")
    for metric, shown in (
        ((), "Measured by: outputs of the stages over the calibration data"),
        (
            ("--metric", "geometry", "--scenes", "1"),
            "Measured by: geometry, beyond chance, over the rendered scenes 600000 to 600000, 56x42",
        ),
    ):
        result = cli(*asked, *metric)
        assert result.code == 0, result.err
        assert "Calibrated preset:tiny" in result.out
        assert shown in result.out
        assert load_calibration(out).report["kept accuracy"] > 0.5
        assert "nothing to do" in cli(*asked, *metric).out


@pytest.mark.slow
def test_bad_data(cli: Any, tmp_path: Path) -> None:
    out, data = tmp_path / "calibration.json", tmp_path / "data"

    def refused(*words: str) -> None:
        result = cli("calibrate", "preset:tiny", str(out), "--data", str(data), *SMALL)
        assert (result.code, result.out) == (1, "")
        message = result.err.splitlines()[-1]
        assert message.startswith("Error: ")
        assert all(word in message for word in words), message
        assert not out.exists()

    refused("is no folder")
    data.mkdir()
    refused("holds no images")
    Image.fromarray(np.zeros((42, 56, 3), np.uint8)).save(data / "a.png")
    refused("holds one image")
    Image.fromarray(np.zeros((42, 56, 3), np.uint8)).save(data / "b.png")
    refused("all black")
    (data / "b.png").write_bytes(b"nothing")
    refused("b.png")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--accuracy", "100"), "--accuracy"),
        (("--size", "50x42"), "multiple of 14"),
        (("--method", "best"), "mse"),
        (("--precision", "fp16"), "int8"),
        (("--cases", "0"), "--cases"),
        (("--metric", "geometry"), "--accuracy or --compare"),
        (("--accuracy", "99", "--scenes", "3"), "--metric geometry"),
    ],
)
def test_wrong_options(options: tuple[str, ...], said: str, cli: Any, tmp_path: Path) -> None:
    result = cli("calibrate", "preset:tiny", str(tmp_path / "x.json"), *options)
    assert (result.code, result.out) == (2, "")
    assert said in result.err
