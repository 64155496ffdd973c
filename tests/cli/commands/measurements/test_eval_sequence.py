"""``mapengine eval --sequence``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mapengine.calibration.sequences import SEQUENCE_METRICS

from ....seven_scenes import write_seven_scenes

ENGINE = ("--size", "56x42", "--backend", "onnxruntime", "--threads", "1", "--window", "4", "--overlap", "1")


@pytest.mark.slow
def test_walks_are_mapped_and_judged(cli: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    record, table, plot = tmp_path / "a.json", tmp_path / "a.md", tmp_path / "a.png"
    options = ("--sequence", "rendered", "--scenes", "2", "--frames", "60", *ENGINE, "--join", "align")
    result = cli("eval", tiny_bundle, *options, "--json", record, "--markdown", table, "--plot", plot)
    assert result.code == 0, result.err
    assert result.problems == []
    assert "2 rendered walks at 56x42, seeds 1000000 to 1000001; given images, intrinsics; join align" in result.out
    for metric in SEQUENCE_METRICS:
        assert metric.title in result.out
    found = json.loads(record.read_text(encoding="utf-8"))
    assert list(found["results"]) == ["1000000", "1000001"]
    for entry in found["results"].values():
        assert entry["frames"] == 60
        assert entry["metrics"]["ate"] > 0
    assert found["mapper"] == {"join": "align", "window": 4, "overlap": 1, "keyframes": "all"}
    assert table.read_text(encoding="utf-8").count("\n|") == 2 + 3
    again = tmp_path / "again.png"
    assert cli("plot", record, "--out", again).code == 0
    with Image.open(plot) as one, Image.open(again) as two:
        assert one.size == two.size
        assert one.size[0] > 400


@pytest.mark.slow
def test_a_recording_is_mapped_and_judged(cli: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = write_seven_scenes(tmp_path / "kitchen", views=8)
    record = tmp_path / "a.json"
    options = ("--sequence", folder, "--frames", "3", "--every", "2", "--give", "depth,poses", *ENGINE)
    result = cli("eval", tiny_bundle, *options, "--json", record)
    assert result.code == 0, result.err
    found = json.loads(record.read_text(encoding="utf-8"))
    assert list(found["results"]) == ["kitchen"]
    assert found["results"]["kitchen"]["frames"] == 3
    assert (found["data"], found["seed"], found["given"]) == ("recorded", None, ["depth", "poses"])
    assert "1 recorded sequence at 56x42" in result.out


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("--frames", "60"), "--frames: it belongs to --sequence, which is not given"),
        (("--give", "depth"), "--give: it belongs to --sequence"),
        (("--sequence", "rendered", "--tasks", "all"), "--tasks: it belongs to scenes"),
        (("--sequence", "rendered", "--every", "2"), "--every: it belongs to a recording"),
        (("--sequence", "missing", "--seed", "2"), "--seed: it belongs to rendered walks"),
        (("--sequence", "missing"), "missing: there is no such folder"),
        (("--sequence", "rendered", "--frames", "59"), "--frames: a rendered walk has 60 to 1000 frames, not 59"),
        (("--sequence", "rendered", "--give", "pose"), "did you mean poses?"),
        (("--sequence", "rendered", "--join", "glue"), "'glue' is not one of align, poses, poses+depth"),
        (("--sequence", "rendered", "--window", "4", "--overlap", "4"), "overlap is 4 of windows of 4"),
        (("--sequence", "rendered", "--size", "57x42"), "not a multiple of 14"),
    ],
)
def test_refusals(cli: Any, tiny_bundle: Path, options: tuple[str, ...], what: str) -> None:
    result = cli("eval", tiny_bundle, "--backend", "onnxruntime", "--threads", "1", *options)
    assert result.code != 0
    assert what in " ".join(result.err.split())
