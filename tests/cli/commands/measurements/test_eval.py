"""``mapengine eval``."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from mapengine.calibration.evaluation import METRICS, TASKS, ConstantDepth

from ....stage_files import change_manifest

QUICK = ("--scenes", "1", "--size", "56x42")
ENGINE = (*QUICK, "--backend", "onnxruntime", "--threads", "1")

OLDER = '{"generator": "mapengine evaluation record"}'


@pytest.mark.slow
def test_a_bundle_and_pytorch_get_the_same_figures(cli: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    engine, reference, table = tmp_path / "new" / "engine.json", tmp_path / "reference.json", tmp_path / "table.md"
    result = cli("eval", tiny_bundle, *ENGINE, "--json", engine, "--markdown", table)
    assert result.code == 0, result.err
    assert result.problems == []
    for word in (*(task.name for task in TASKS), *(metric.title for metric in METRICS), "constant depth", "1 rendered"):
        assert word in result.out
    assert f"Wrote {engine}\nWrote {table}" in result.out
    for step in (f"loading {tiny_bundle}", "evaluating", "evaluating: 50%"):
        assert step in result.err.splitlines()
    assert cli("eval", "preset:tiny", *QUICK, "--json", reference).code == 0
    one, two = (json.loads(path.read_text(encoding="utf-8")) for path in (engine, reference))
    assert (one["model"], one["precision"], one["data"], one["size"]) == ("preset:tiny", "fp32", "rendered", "56x42")
    assert "onnxruntime" in one["where"]
    assert "PyTorch" in two["where"]
    assert one["baseline"] == two["baseline"]
    for name, figures in one["results"].items():
        for metric, value in figures["metrics"].items():
            other = two["results"][name]["metrics"][metric]
            assert (value is None) == (other is None)
            # Shares of pixels and pairs jump where a pixel crosses its limit.
            assert value is None or value == pytest.approx(other, rel=1e-3, abs=2e-3), f"{name}: {metric}"
    text = table.read_text(encoding="utf-8")
    assert text.startswith("<!-- mapengine evaluation -->\n\n# preset:tiny\n")
    assert text.count("\n|") == 2 + len(TASKS) + 4


@pytest.mark.slow
def test_only_the_tasks_that_are_named(cli: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    options = (*ENGINE, "--tasks", "registration, image-only-1", "--seed", "1000005", "--json", out)
    assert cli("eval", tiny_bundle, *options).code == 0
    record = json.loads(out.read_text(encoding="utf-8"))
    assert list(record["results"]) == ["image-only-1", "registration"]
    assert record["seed"] == 1000005


@pytest.mark.slow
def test_recorded_views(cli: Any, tiny_bundle: Path, samples: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    result = cli("eval", tiny_bundle, *ENGINE, "--rgbd", samples, "--json", out)
    assert result.code == 0, result.err
    assert "1 recorded scene at 56x42" in result.out
    assert "seeds" not in result.out
    record = json.loads(out.read_text(encoding="utf-8"))
    assert (record["data"], record["seed"]) == ("rgbd", None)
    assert list(record["results"]) == ["image-only-1", "image-only-2", "registration"]


@pytest.mark.slow
def test_a_bundle_for_few_views_leaves_tasks_out_and_says_so(cli: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    few = {"min": 1, "opt": 1, "max": 2}
    change_manifest(bundle, lambda document: document["profile"].update(views=few))
    result = cli("eval", bundle, *ENGINE)
    assert result.code == 0, result.err
    assert result.out.count("Left out: ") == sum(task.views > 2 for task in TASKS)
    assert "Left out: image-only-8: 8 views in one call" in result.out
    named = cli("eval", bundle, *ENGINE, "--tasks", "image-only-2,image-only-8")
    assert named.code == 1
    assert named.problems[0].startswith("Error: image-only-8: 8 views in one call")
    assert "--views 1:1:8" in named.problems[0]
    one = cli("eval", bundle, *ENGINE, "--rgbd", tmp_path / "nowhere")
    assert one.problems[0].startswith(f"Error: {tmp_path / 'nowhere'}: there is no such folder")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("preset:tiny", "--tasks", "depht"), "did you mean depth"),
        (("preset:tiny", "--tasks", ","), "there is no task"),
        (("preset:tiny", "--size", "100x112"), "98x112"),
        (("preset:tiny", "--scenes", "0"), "--scenes"),
        (("preset:tiny", "--seed", "-1"), "--seed"),
        (("preset:tiny", "--seed", "1", "--rgbd", "x"), "--rgbd"),
        (("preset:tiny", "--backend", "openvino"), "PyTorch"),
        (("preset:tiny", "--json", "a", "--markdown", "./a"), "--markdown"),
        (("preset:tiny", "--rgbd", "x", "--json", "x/views.json"), "among what is read"),
        (("BUNDLE", "--json", "BUNDLE/manifest.json"), "among what is read"),
        (("BUNDLE", "--revision", "main"), "--revision"),
    ],
)
def test_usage_errors(
    cli: Any, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(bundle_folder.parent)
    result = cli("eval", *(option.replace("BUNDLE", bundle_folder.name) for option in options))
    assert result.code == 2, result.err
    assert result.out == ""
    assert len(result.problems) == 1
    assert words in result.problems[0]
    assert [path.name for path in bundle_folder.parent.iterdir()] == [bundle_folder.name]


@pytest.mark.slow
def test_models_that_are_not_there(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for model, word in (
        ("preset:huge", "preset:huge"),
        (tmp_path / "empty", "manifest.json"),
        ("./nowhere", "nowhere"),
    ):
        result = cli("eval", model, *QUICK)
        assert result.code == 1
        assert len(result.problems) == 1
        assert word in result.problems[0]


def test_results_that_cannot_be_written_are_refused_first(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    result = cli("eval", "preset:nothing", *QUICK, "--json", tmp_path / "folder")
    assert result.code == 1
    assert "it is a folder" in result.problems[0]
    assert "loading" not in result.err


@pytest.mark.slow
def test_a_failure_leaves_nothing_and_an_older_result_alone(
    cli: Any, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = tmp_path / "a.json"
    older.write_text(OLDER, encoding="utf-8")
    mode = stat.S_IMODE(older.stat().st_mode)

    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ConstantDepth, "infer", fail)
    result = cli("eval", tiny_bundle, *ENGINE, "--json", older, "--markdown", tmp_path / "b" / "c.md")
    assert result.code == 130
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert older.read_text(encoding="utf-8") == OLDER
    assert stat.S_IMODE(older.stat().st_mode) == mode


@pytest.mark.slow
def test_scenes_of_the_training_give_a_warning(cli: Any, tiny_bundle: Path) -> None:
    result = cli("eval", tiny_bundle, *ENGINE, "--seed", "3", "--tasks", "image-only-1")
    assert result.code == 0
    assert len(result.problems) == 1
    assert result.problems[0].startswith("Warning: scenes with seeds below 1000000")
