"""``mapengine demo`` and ``mapengine samples``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image

from mapengine.calibration.data.samples import sample_scene
from mapengine.cli.commands.scenes import demo as demo_command
from mapengine.runtime import Engine
from mapengine.runtime.writing.recognition import RECORD

from ....stage_files import change_manifest

FILES = ["demo.glb", "demo.html", "demo.png", RECORD, "truth.glb"]
QUICK = ("--size", "70x56", "--backend", "onnxruntime", "--threads", "1")


def changed_profile(bundle: Path, copy: Path, **profile: Any) -> Path:
    """A copy of a bundle that says it was built for something else."""
    shutil.copytree(bundle, copy)
    change_manifest(copy, lambda document: document["profile"].update(profile))
    return copy


@pytest.mark.slow
def test_a_picture_and_two_scenes(cli: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "demo"
    result = cli("demo", tiny_bundle, "--out", out, *QUICK)
    assert result.code == 0, result.err
    assert result.problems == []
    assert sorted(path.name for path in out.iterdir()) == FILES
    for words in ("preset:tiny", "4 of 70x56", "images", "depth AbsRel", "rotation, degrees", "metric scale AbsRel"):
        assert words in result.out
    assert "Note: Random weights" in result.out
    for name in set(FILES) - {RECORD}:
        assert f"Wrote {out / name} (" in result.out
    assert "geometry" not in result.err
    with Image.open(out / "demo.png") as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        assert picture.width > 900
    page = (out / "demo.html").read_text(encoding="utf-8")
    assert f"<title>preset:tiny, fp32 (bundle {tiny_bundle.name}): a rendered scene, reconstructed from images" in page
    assert page.index('"name":"Prediction"') < page.index('"name":"Truth"')
    assert f"Look at it: open {out / 'demo.html'} in a browser" in " ".join(result.out.split())
    truth = trimesh.load(out / "truth.glb")
    assert set(truth.geometry) == {"points", "camera_0", "camera_1", "camera_2", "camera_3"}
    scene = sample_scene(4, 70, 56)
    # In the frame of view 0 and in glTF's axes: z backward.
    ahead = -np.asarray(truth.geometry["points"].vertices)[: 70 * 56, 2]
    np.testing.assert_allclose(ahead, scene.depth_z[0].ravel(), rtol=1e-5)
    assert set(trimesh.load(out / "demo.glb").geometry) == set(truth.geometry)


@pytest.mark.slow
def test_random_weights_are_named_in_the_picture(
    cli: Any, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[str, ...]] = []
    real = demo_command.draw_demo

    def draw(*arguments: Any) -> Image.Image:
        drawn.append(arguments[3:])
        return real(*arguments)

    monkeypatch.setattr(demo_command, "draw_demo", draw)
    assert cli("demo", tiny_bundle, "--out", tmp_path, "--views", "2", *QUICK).code == 0
    trained = tmp_path / "trained"
    shutil.copytree(tiny_bundle, trained)
    change_manifest(trained, lambda document: document["model"].update(id="mine"))
    result = cli("demo", trained, "--out", tmp_path, "--seed", "7", "--views", "2", "--give", "poses", *QUICK)
    assert result.code == 0, result.err
    assert "Random weights" not in result.out
    (title, facts, warning), (other, about, nothing) = drawn
    assert title == "preset:tiny: a rendered scene reconstructed from images only"
    assert "kept out of training; 2 views of 70x56" in facts
    assert "the prediction means nothing" in warning
    assert other == "mine: a rendered scene reconstructed from images, poses"
    assert "Scene 7, from the seeds of training" in about
    assert nothing == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("give", "shown", "keys"),
    [
        (["--give", "images"], "images", set()),
        (["--give", "intrinsics", "--give", "poses"], "images, intrinsics, poses", {"intrinsics", "camera_poses"}),
        (["--give", "depth"], "images, intrinsics, dense depth", {"intrinsics", "depth_z"}),
        (
            ["--give", "images, poses,depth"],
            "images, intrinsics, dense depth, poses",
            {"intrinsics", "depth_z", "camera_poses"},
        ),
    ],
)
def test_what_is_given_arrives(
    cli: Any,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    give: list[str],
    shown: str,
    keys: set[str],
) -> None:
    seen: list[list[dict[str, Any]]] = []
    real = Engine.infer

    def infer(self: Engine, views: list[dict[str, Any]], **options: Any) -> Any:
        seen.append(views)
        return real(self, views, **options)

    monkeypatch.setattr(Engine, "infer", infer)
    result = cli("demo", tiny_bundle, "--out", tmp_path, "--views", "2", *give, *QUICK)
    assert result.code == 0, result.err
    assert f"given   {shown}" in result.out.splitlines()
    (views,) = seen
    for view in views:
        assert set(view) - {"img", "data_norm_type", "is_metric_scale"} == keys


@pytest.mark.slow
def test_size_and_views_follow_the_bundle(cli: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = changed_profile(
        tiny_bundle, tmp_path / "bundle", views={"min": 1, "opt": 1, "max": 2}, sizes=[[112, 42], [56, 42]]
    )
    result = cli("demo", bundle, "--out", tmp_path / "demo", "--threads", "1", "--backend", "onnxruntime")
    assert result.code == 0, result.err
    assert "2 of 56x42" in result.out
    many = cli("demo", bundle, "--out", tmp_path / "many", "--views", "3")
    assert many.code == 1
    assert "3 views in one call, but this bundle was built for 1 to 2" in many.problems[0]
    other = cli("demo", bundle, "--out", tmp_path / "many", "--size", "70x56")
    assert other.code == 1
    assert "--resolution 70x56" in other.problems[0]
    assert not (tmp_path / "many").exists()
    crowd = changed_profile(tiny_bundle, tmp_path / "crowd", views={"min": 9, "opt": 9, "max": 16})
    few = cli("demo", crowd, "--out", tmp_path / "many")
    assert few.code == 1
    assert "9 views or more, and a rendered scene has at most 8; build it with --views 4:9:16" in few.problems[0]


@pytest.mark.slow
def test_an_older_demonstration_is_replaced_and_other_files_stay(cli: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert cli("demo", tiny_bundle, "--out", tmp_path, "--views", "1", *QUICK).code == 0
    older = (tmp_path / "demo.png").read_bytes()
    assert cli("demo", tiny_bundle, "--out", tmp_path, "--views", "2", *QUICK).code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*FILES, "mine.txt"])
    assert (tmp_path / "demo.png").read_bytes() != older
    (tmp_path / "truth.glb").write_bytes(b"mine")
    refused = cli("demo", tiny_bundle, "--out", tmp_path, "--views", "1", *QUICK)
    assert refused.code == 1
    assert "truth.glb: was changed since mapengine wrote it" in refused.problems[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--give", "dept"), "did you mean depth?"),
        (("--give", "xyz"), "there are images, intrinsics, poses, depth"),
        (("--give", "poses,"), "'' cannot be given"),
        (("--views", "0"), "--views"),
        (("--views", "9"), "--views"),
        (("--seed", "-1"), "--seed"),
        (("--size", "100x112"), "98x112"),
        (("--out", "bundle"), "one of the inputs that are read"),
        (("--out", "bundle/demo"), "among what is read"),
    ],
)
def test_usage_errors(
    cli: Any, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(bundle_folder.parent)
    result = cli("demo", "bundle", *options)
    assert (result.code, result.out) == (2, "")
    assert len(result.err.splitlines()) == 1
    assert words in result.problems[0]
    assert [path.name for path in bundle_folder.parent.iterdir()] == ["bundle"]


@pytest.mark.slow
def test_bundles_and_places_that_are_none(
    cli: Any, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("it was rendered first")

    monkeypatch.setattr("mapengine.calibration.demonstration.comparison.render_scene", forbidden)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken" / "demo.png").mkdir(parents=True)
    for bundle, out, words in (
        (tmp_path / "none", tmp_path / "x", "does not exist"),
        (tmp_path / "empty", tmp_path / "x", "no engine bundle"),
        (tmp_path / "file", tmp_path / "x", "is a file"),
        (tiny_bundle, tmp_path / "file", "it is a file, not a folder"),
        (tiny_bundle, tmp_path / "file" / "deeper", "a part of the path is a file"),
        (tiny_bundle, tmp_path / "taken", "demo.png: is there already"),
    ):
        result = cli("demo", bundle, "--out", out)
        assert (result.code, result.out) == (1, "")
        assert len(result.err.splitlines()) == 1
        assert words in result.problems[0]
    assert (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_nothing_half_written_remains(
    cli: Any, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mapengine.runtime.outputs.formats.gltf.BinaryGltf.write", interrupt)
    result = cli("demo", tiny_bundle, "--out", tmp_path / "new" / "demo", "--views", "1", *QUICK)
    assert result.code == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_samples(cli: Any, tmp_path: Path) -> None:
    result = cli("samples", tmp_path / "a", "--views", "2")
    assert (result.code, result.out) == (0, f"Wrote 2 views to {tmp_path / 'a'}\n")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "depth",
        RECORD,
        "sample_0.png",
        "sample_1.png",
        "views.json",
    ]
    with Image.open(tmp_path / "a" / "sample_0.png") as image:
        assert image.size == (560, 448)
    assert cli("samples", tmp_path / "b", "--views", "1", "--seed", "1000003").code == 0
    one, other = (np.asarray(Image.open(tmp_path / name / "sample_0.png")) for name in "ab")
    assert not np.array_equal(one, other)
    assert cli("samples", tmp_path / "c", "--views", "9").code == 2
    (tmp_path / "file").write_text("mine")
    refused = cli("samples", tmp_path / "file", "--views", "1")
    assert refused.code == 1
    assert "not a folder" in refused.problems[0]
