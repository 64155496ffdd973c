"""Every program of ``examples/`` does what it says."""

from __future__ import annotations

import functools
import re
import runpy
from pathlib import Path

import pytest

from mapengine.calibration.data import cases
from mapengine.calibration.data.cases import rendered_cases
from mapengine.runtime import Scene

from .documents import ROOT

EXAMPLES = ROOT / "examples"


def run(program: str, *arguments: object) -> None:
    """Run a program of the folder with these arguments."""
    runpy.run_path(str(EXAMPLES / program))["main"](*map(str, arguments))


@pytest.mark.slow
def test_files_to_scene(made_engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("01_files_to_scene.py", made_engine / "build/engine", made_engine / "build/samples", tmp_path / "scene.npz")
    shown = capsys.readouterr().out
    scene = Scene.load(tmp_path / "scene.npz")
    assert scene.depth.shape == (4, 112, 140)
    assert f"with {scene.mask.sum()} points" in shown
    assert shown.count(" m on average, camera at ") == 4


@pytest.mark.slow
def test_drop_in_infer(made_engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("02_drop_in_infer.py", made_engine / "build/engine", made_engine / "build/samples")
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 4
    assert all(re.match(rf"view {view}: [1-9]\d* points in metres", line) for view, line in enumerate(shown))


@pytest.mark.slow
def test_robot_poses_depth(made_engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("03_robot_poses_depth.py", made_engine / "build/engine", made_engine / "build/samples/views.json")
    shown = capsys.readouterr().out
    known, points = (int(number) for number in re.search(r"(\d+) depths became (\d+) points", shown).groups())  # type: ignore[union-attr]
    assert known > 1000
    assert points > 0
    assert "In the map they reach from" in shown


@pytest.mark.slow
def test_video(made_engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("04_video.py", made_engine / "build/engine", made_engine / "build/samples", tmp_path / "video.npz")
    shown = capsys.readouterr().out
    frames = [re.findall(r"with \[([\d, ]+)\]", line) for line in shown.splitlines()]
    assert [found[0] for found in frames if found] == ["0", "0, 1", "0, 1, 2", "0, 1, 2, 3"]
    assert Scene.load(tmp_path / "video.npz").names == ["frame 0", "frame 1", "frame 2", "frame 3"]


@pytest.mark.slow
def test_map(made_engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("06_map.py", made_engine / "build/engine", made_engine / "build/samples", tmp_path / "map")
    shown = capsys.readouterr().out
    assert re.findall(r"frame (\d) of submap", shown) == ["0", "1", "2", "3"]
    assert f"4 frames in {tmp_path / 'map'}" in shown
    assert len(list((tmp_path / "map").glob("view-*.npz"))) == 4


@pytest.mark.slow
@pytest.mark.usefixtures("shared_traces")
def test_calibrate_int8(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from mapengine.export import quantization  # here, because the other programs need no PyTorch

    # Two of its eight calibration scenes, which are as many kinds of inputs; and nothing is folded into the weights, so
    # that both engines have the traces of other tests.
    monkeypatch.setattr(cases, "rendered_cases", lambda count, *more: rendered_cases(2, *more))
    plain = quantization.CalibrationOptions(smooth=False, rotate=False, correct_bias=False)
    monkeypatch.setattr(quantization, "calibrate", functools.partial(quantization.calibrate, options=plain))
    run("05_calibrate_int8.py", "preset:tiny", tmp_path / "compared", 1)
    float32, int8 = (re.fullmatch(r"\w+: ([\d.]+) MB, .*", line) for line in capsys.readouterr().out.splitlines())
    assert float32 is not None
    assert int8 is not None
    assert float(int8[1]) < float(float32[1])


def test_every_program_is_short_listed_and_numbered() -> None:
    programs = sorted(path.name for path in EXAMPLES.glob("*.py"))
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert [name[:3] for name in programs] == [f"{number:02d}_" for number in range(1, len(programs) + 1)]
    for name in programs:
        assert f"[{name}]({name})" in listed
        assert f"python examples/{name} " in listed
        assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) <= 40
