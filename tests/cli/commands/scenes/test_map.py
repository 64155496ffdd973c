"""``mapengine map``: a sequence becomes a path, points, a folder of frames and a summary."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mapengine.runtime.outputs.view_files import view_files

from ....seven_scenes import write_seven_scenes


@pytest.mark.slow
def test_a_recording_becomes_a_map(cli: Any, tiny_bundle: Path, samples: Path, tmp_path: Path, quick: Any) -> None:
    names = ("frames", "path.txt", "map.ply", "map.json", "map.png")
    folder, path, cloud, summary, plot = (tmp_path / name for name in names)
    options = ["--window", "2", "--overlap", "1", "--ignore", "poses", "--threads", "1", *quick]
    results = ["--stream", folder, "--trajectory", path, "--out", cloud, "--json", summary, "--plot", plot]
    result = cli("map", tiny_bundle, samples / "views.json", *options, *results)
    assert result.code == 0, result.err
    facts = json.loads(summary.read_text())
    assert (facts["frames"], facts["blank_frames"]) == (2, 0)
    assert facts["truth"]["frames"] in (1, 2)
    assert facts["truth"]["path_length"] > 0
    assert facts["truth"]["ate"] is None  # of two cameras
    assert len(view_files(folder)) == 2
    with np.load(folder / "map.npz") as stored:
        lines = np.loadtxt(path)
        np.testing.assert_allclose(lines[:, 1:4], stored["poses"][:, :3, 3], atol=1e-8)
        np.testing.assert_allclose(np.linalg.norm(lines[:, 4:], axis=1), 1, atol=1e-8)
    assert cloud.read_bytes().startswith(b"ply")
    with Image.open(plot) as picture:
        assert picture.width > 1000
    assert facts["saved"] == [str(file) for file in (cloud, folder, path, plot)]
    for word in ("drift", "submaps", "frames", "map.ply"):
        assert word in result.out
    again = cli("map", tiny_bundle, samples / "views.json", *options, "--stream", folder)
    assert again.code == 1
    assert "views of another run" in again.problems[0]


@pytest.mark.slow
def test_errors_of_the_path_are_those_of_the_evaluation(cli: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = write_seven_scenes(tmp_path / "kitchen", views=4, size=(56, 42))
    summary, record = tmp_path / "map.json", tmp_path / "eval.json"
    options = ("--size", "56x42", "--window", "4", "--overlap", "1", "--backend", "onnxruntime", "--threads", "1")
    result = cli("map", tiny_bundle, folder, "--give", "intrinsics", *options, "--json", summary)
    assert result.code == 0, result.err
    result = cli("eval", tiny_bundle, "--sequence", folder, *options, "--json", record)
    assert result.code == 0, result.err
    found = json.loads(record.read_text(encoding="utf-8"))["results"]["kitchen"]["metrics"]
    truth = json.loads(summary.read_text(encoding="utf-8"))["truth"]
    assert truth["ate"] is not None
    for key in ("ate", "ate_similarity", "rpe_window", "end_error", "drift_percent"):
        assert truth[key] == pytest.approx(found[key], rel=1e-4), key


@pytest.mark.slow
def test_without_truth_a_map_says_how_far_it_agrees_with_itself(
    cli: Any, tiny_bundle: Path, samples: Path, quick: Any
) -> None:
    images = sorted(samples.glob("*.png"))
    result = cli("map", tiny_bundle, *images, "--window", "2", "--overlap", "1", "--json", "-", *quick)
    assert result.code == 0, result.err
    facts = json.loads(result.out)
    assert facts["truth"] is None
    assert facts["saved"] == []


@pytest.mark.slow
def test_windows_are_made_of_keyframes(cli: Any, tiny_bundle: Path, samples: Path, quick: Any) -> None:
    image = samples / "sample_0.png"
    options = ["--keyframes", "overlap", "--window", "2", "--overlap", "1", "--no-loops", "--json", "-", *quick]
    result = cli("map", tiny_bundle, *[image] * 4, samples / "sample_1.png", *options)
    assert result.code == 0, result.err
    facts = json.loads(result.out)
    assert facts["frames"] == 5
    assert 2 <= facts["keyframes"] < 5


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--join", "glue"), 2, "'glue' is not one of align, poses, poses+depth"),
        (("--keyframes", "some"), 2, "'some' is not one of all, overlap, features"),
        (("--keyframe-threshold", "0.5"), 1, "keyframe_threshold is 0.5, but keyframes is 'all'"),
        (("--overlap", "4", "--window", "4"), 1, "overlap is 4 of windows of 4 frames"),
        (("--trajectory", "no/such/folder/file.txt", "--out", "a.xyz"), 2, ".xyz"),
    ],
)
def test_what_cannot_be_is_refused(
    cli: Any, tiny_bundle: Path, samples: Path, quick: Any, options: Any, code: int, message: str
) -> None:
    result = cli("map", tiny_bundle, samples, *options, *quick)
    assert result.code == code
    assert len(result.problems) == 1
    assert message in result.problems[0]


def test_a_picture_is_refused_before_anything_is_read(
    cli: Any, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes((samples / "sample_0.png").read_bytes())
    before = photo.read_bytes()
    result = cli("map", tmp_path / "no-bundle", tmp_path / "no-frames", "--plot", photo)
    assert result.code == 1
    assert str(photo) in result.problems[0]
    assert photo.read_bytes() == before
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = cli("map", tmp_path / "no-bundle", tmp_path / "no-frames", "--plot", tmp_path / "map.png")
    assert result.code == 1
    assert "mapengine[viz]" in result.problems[0]
