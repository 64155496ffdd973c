"""``mapengine run``: every kind of input and output, and what cannot be used."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mapengine.runtime import Scene, load_view
from mapengine.runtime.backends.host_pipeline import Pipeline
from mapengine.runtime.outputs.formats.table import FORMATS

PROGRAM = Path(sys.executable).parent / "mapengine"


@pytest.mark.slow
def test_photos_to_every_format(tiny_bundle: Path, samples: Path, tmp_path: Path, quick: tuple[str, ...]) -> None:
    names = [f"{form.name}{(*form.suffixes, '')[0]}" for form in FORMATS]
    outputs = [word for name in names for word in ("--out", str(tmp_path / "made" / name))]
    outputs += [word for form in FORMATS for word in ("--format", form.name)] + ["--mesh", "--map-format", "exr"]
    command = [PROGRAM, "run", tiny_bundle, samples / "sample_0.png", samples / "sample_1.png", *outputs]
    command += ["--preview", tmp_path / "preview.png", "--threads", "1", *quick]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "2 (sample_0.png, sample_1.png)" in result.stdout
    for word in ("112x84", "metric scale", "median depth", "seconds", "random weights", *names, "preview.png"):
        assert word in result.stdout
    assert "image encoder: 2 of 2 views" in result.stderr
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == sorted(names)
    scene = Scene.load(tmp_path / "made" / "npz.npz")
    assert scene.points.shape == (2, 84, 112, 3)
    assert f"{int(scene.mask.sum()):,} of {2 * 84 * 112:,} pixels" in result.stdout
    assert (tmp_path / "made" / "colmap" / "sparse" / "0" / "cameras.txt").is_file()
    assert (tmp_path / "made" / "maps" / "depth" / "sample_1.exr").is_file()
    assert (tmp_path / "made" / "transforms" / "images" / "sample_0.png").is_file()
    with Image.open(tmp_path / "preview.png") as picture:
        assert picture.width > 300


@pytest.mark.slow
def test_a_folder_is_its_images(cli: Any, tiny_bundle: Path, samples: Path, quick: tuple[str, ...]) -> None:
    result = cli("run", tiny_bundle, samples, "--ignore", "intrinsics,depth,poses", *quick)
    assert result.code == 0
    assert "2 (sample_0.png, sample_1.png)" in result.out
    assert "nothing" in result.out
    assert "--out scene.glb" in result.out
    assert "geometry" not in result.err
    assert "geometry encoder" in cli("run", tiny_bundle, samples, *quick).err  # what its views.json knows


@pytest.mark.slow
def test_a_view_list_brings_cameras_depth_and_poses(
    cli: Any, tiny_bundle: Path, samples: Path, tmp_path: Path, quick: tuple[str, ...]
) -> None:
    result = cli("run", tiny_bundle, samples / "views.json", "--out", tmp_path / "s.npz", *quick)
    assert result.code == 0
    assert "geometry encoder: 2 of 2 views" in result.err
    with_geometry = Scene.load(tmp_path / "s.npz")
    images = [samples / "sample_0.png", samples / "sample_1.png"]
    assert cli("run", tiny_bundle, *images, "--out", tmp_path / "i.npz", *quick).code == 0
    assert not np.allclose(with_geometry.points, Scene.load(tmp_path / "i.npz").points)


@pytest.mark.slow
def test_a_summary_for_programs_and_silence(
    cli: Any, tiny_bundle: Path, samples: Path, tmp_path: Path, quick: tuple[str, ...]
) -> None:
    result = cli("run", tiny_bundle, samples, "--json", tmp_path / "s.json", "--quiet", *quick)
    assert (result.code, result.out, result.err) == (0, "", "")
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["views"] == [{"name": "sample_0.png"}, {"name": "sample_1.png"}]
    assert summary["engine"]["model"] == "preset:tiny"
    assert 0 < summary["points"] <= summary["pixels"] == 2 * summary["width"] * summary["height"]
    rerun = ("--rerun", tmp_path / "stream.rrd", "--max-points", 100)
    stream = cli("run", tiny_bundle, samples, "--stream", tmp_path / "stream", "--json", "-", *rerun, *quick)
    named = json.loads(stream.out)["views"]
    assert json.loads(stream.out)["saved"] == [{"path": str(tmp_path / "stream.rrd"), "format": "rrd"}]
    assert b"preset:tiny, fp32 (bundle " in (tmp_path / "stream.rrd").read_bytes()
    assert [entry["name"] for entry in named] == ["sample_0.png", "sample_1.png"]
    assert [str(load_view(entry["file"])["name"]) for entry in named] == ["sample_0.png", "sample_1.png"]
    refused = cli("run", tiny_bundle, samples, "--json", tiny_bundle / "manifest.json")
    assert refused.code == 2
    refused = cli("run", tiny_bundle, samples, "--rerun", "scene.glb")
    assert (refused.code, len(refused.err.splitlines())) == (2, 1)
    assert "--rerun: scene.glb is no .rrd file" in refused.err


@pytest.mark.slow
def test_a_colmap_project_at_the_original_size(
    cli: Any, tiny_bundle: Path, samples: Path, tmp_path: Path, quick: tuple[str, ...]
) -> None:
    options = ("--out", tmp_path / "project", "--colmap-size", "original", "--voxel", 0.2)
    assert cli("run", tiny_bundle, samples, *options, *quick).code == 0
    for name in ("sample_0.png", "sample_1.png"):
        assert (tmp_path / "project" / "images" / name).read_bytes() == (samples / name).read_bytes()
    cameras = (tmp_path / "project" / "sparse" / "0" / "cameras.txt").read_text().splitlines()[1:]
    with Image.open(samples / "sample_0.png") as image:
        assert [line.split()[2:4] for line in cameras] == [[str(image.width), str(image.height)]] * 2
    for wrong in (("--voxel", 0), ("--colmap-size", "large"), ("--voxel", 1, "--out", tmp_path / "a.ply")):
        out = () if "--out" in wrong else ("--out", tmp_path / "p")
        assert cli("run", tiny_bundle, samples, *wrong, *out).code == 2


@pytest.mark.slow
def test_results_are_in_the_world_of_the_poses(
    cli: Any, tiny_bundle: Path, samples: Path, tmp_path: Path, quick: tuple[str, ...]
) -> None:
    document = json.loads((samples / "views.json").read_text())
    for view in document["views"]:
        view["image"], view["depth"] = str(samples / view["image"]), str(samples / view["depth"])
        view["pose"] = (np.diag([-1.0, -1, 1, 1]) @ view["pose"] + np.eye(4, 4, 3) * [[2], [0], [0], [0]]).tolist()
    (tmp_path / "v.json").write_text(json.dumps(document))
    summaries = {}
    for frame in ("given", "view0"):
        json_file, out = tmp_path / f"{frame}.json", tmp_path / f"{frame}.npz"
        options = ("--frame", frame, "--json", json_file, "--out", out)
        result = cli("run", tiny_bundle, tmp_path / "v.json", *options, *quick)
        assert result.code == 0
        summaries[frame] = json.loads(json_file.read_text())
        assert summaries[frame]["frame"] == frame
        assert ("of 2 given poses, rigid; off by" in result.out) == (frame == "given")
    moved, own = Scene.load(tmp_path / "given.npz"), Scene.load(tmp_path / "view0.npz")
    facts = summaries["given"]["alignment"]
    assert (facts["given_poses"], facts["metric"], facts["scale"]) == (2, True, 1)
    assert moved.alignment is not None
    assert moved.alignment.facts() == facts
    matrix = np.array(facts["matrix"])
    wanted = own.points[own.mask] @ matrix[:3, :3].T + matrix[:3, 3]
    np.testing.assert_allclose(moved.points[moved.mask], wanted, atol=1e-4)
    stream = cli("run", tiny_bundle, tmp_path / "v.json", "--stream", tmp_path / "s", "--json", "-", *quick)
    np.testing.assert_allclose(json.loads(stream.out)["alignment"]["matrix"], facts["matrix"], atol=1e-6)
    view = load_view(tmp_path / "s" / "view-0001.npz")
    np.testing.assert_allclose(view["pts3d"][0], moved.points[1], atol=1e-5)
    assert cli("run", tiny_bundle, samples, "--frame", "world").code == 2


@pytest.mark.slow
def test_masked_pixels_give_no_points(
    cli: Any, tiny_bundle: Path, samples: Path, tmp_path: Path, quick: tuple[str, ...]
) -> None:
    (tmp_path / "masks").mkdir()
    half = np.zeros((84, 112), np.uint8)
    half[:, :56] = 255
    Image.fromarray(half).save(tmp_path / "masks" / "sample_1.png")
    out = ("--out", tmp_path / "s.npz")
    assert cli("run", tiny_bundle, samples, "--masks", tmp_path / "masks", "--no-mask-edges", *out, *quick).code == 0
    scene = Scene.load(tmp_path / "s.npz")
    right = slice(scene.mask.shape[2] // 2 + 1, None)
    assert scene.mask[0, :, right].any()
    assert not scene.mask[1, :, right].any()
    assert not scene.depth[1, :, right].any()
    assert scene.mask[1].any()
    options = ("--stream", tmp_path / "stream", "--masks", tmp_path / "masks")
    assert cli("run", tiny_bundle, samples, *options, *quick).code == 0
    view = load_view(tmp_path / "stream" / "view-0001.npz")
    assert not view["mask"][0, :, right].any()
    assert not view["pts3d"][0, :, right].any()
    assert view["mask"].any()


@pytest.mark.slow
def test_intrinsics_for_all(cli: Any, tiny_bundle: Path, samples: Path, tmp_path: Path, quick: tuple[str, ...]) -> None:
    entry = json.loads((samples / "views.json").read_text())["views"][0]
    np.savetxt(tmp_path / "K.txt", np.array(entry["intrinsics"]))
    result = cli("run", tiny_bundle, samples, "--intrinsics", tmp_path / "K.txt", *quick)
    assert result.code == 0
    assert "geometry encoder: 2 of 2 views" in result.err
    result = cli("run", tiny_bundle, samples, "--intrinsics", tmp_path / "none.txt", *quick)
    assert result.code == 1
    assert "none.txt" in result.problems[0]


@pytest.mark.slow
def test_options_that_choose_points(
    cli: Any, tiny_bundle: Path, samples: Path, tmp_path: Path, quick: tuple[str, ...]
) -> None:
    def points(*options: object) -> tuple[int, Scene]:
        out = ("--out", tmp_path / "s.ply", "--out", tmp_path / "s.npz")
        assert cli("run", tiny_bundle, samples, *quick, *out, *options).code == 0
        header = (tmp_path / "s.ply").read_bytes()[:1000].split(b"element vertex ")[1]
        return int(header.split()[0]), Scene.load(tmp_path / "s.npz")

    count, scene = points()
    assert count == scene.mask.sum()
    assert points("--max-points", 50)[0] == 50
    assert points("--no-mask-edges")[1].mask.sum() > scene.mask.sum()
    assert 0.6 < points("--confidence-percentile", 30, "--no-mask-edges")[1].mask.mean() <= 0.71
    confident = points("--confidence-percentile", 60)[1].mask
    assert 0 < confident.sum() < scene.mask.sum()
    assert confident.mean(axis=(1, 2)).max() <= 0.41
    chunked = points("--minibatch-size", 2)[1]
    np.testing.assert_allclose(chunked.depth[chunked.mask & scene.mask], scene.depth[chunked.mask & scene.mask], 1e-3)


@pytest.mark.slow
def test_formats_by_option(cli: Any, tiny_bundle: Path, samples: Path, tmp_path: Path, quick: tuple[str, ...]) -> None:
    out = ("--out", tmp_path / "a.bin", "--out", tmp_path / "b.bin")
    result = cli("run", tiny_bundle, samples, *quick, *out, "--format", "ply", "--format", "npz")
    assert result.code == 0
    assert (tmp_path / "a.bin").read_bytes().startswith(b"ply")
    assert Scene.load(tmp_path / "b.bin").points.shape[0] == 2
    assert cli("run", tiny_bundle, samples, *quick, *out, "--format", "ply").code == 0
    assert (tmp_path / "b.bin").read_bytes().startswith(b"ply")


def _broken_images(folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "note.jpg").write_text("no picture")
    Image.effect_noise((200, 100), 40).convert("RGB").save(folder / "ok.jpg")
    data = (folder / "ok.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(data[: len(data) // 2])
    (folder / "odd.json").write_text('[{"image": "ok.jpg", "intrinsic": 1}]')
    (folder / "nan.json").write_text('[{"image": "ok.jpg", "intrinsics": [NaN, 100, 50, 50]}]')
    (folder / "depth.json").write_text('[{"image": "ok.jpg", "depth": "ok.jpg"}]')
    pose = [[-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    (folder / "mirror.json").write_text(json.dumps([{"image": "ok.jpg", "pose": pose}]))
    pose[0][0] = 1
    (folder / "late.json").write_text(json.dumps([{"image": "ok.jpg"}, {"image": "ok.jpg", "pose": pose}]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["missing.jpg"], "no such file"),
        (["empty"], "holds no images"),
        (["note.jpg"], "not an image"),
        (["ok.jpg", "cut.jpg"], "view 1: image: "),
        (["missing.json"], "no such view list"),
        (["odd.json"], "did you mean 'intrinsics'"),
        (["nan.json"], "NaN"),
        (["depth.json"], "no intrinsics"),
        (["mirror.json"], "view 0"),
        (["late.json"], "view 0"),
        (["ok.jpg"] * 33, "--views 1:4:33"),
        (["ok.jpg", "--size", "1036x518"], "--resolution 1036x518"),
        (["ok.jpg", "--out", "ok.jpg/a/scene.ply"], "a part of the path is a file"),
        (["ok.jpg", "--out", "ok.jpg/colmap"], "a part of the path is a file"),
        (["ok.jpg", "--out", "note.jpg", "--format", "colmap"], "it is a file, not a folder"),
        (["ok.jpg", "--out", "empty", "--format", "ply"], "it is a folder"),
        (["ok.jpg", "--preview", "ok.jpg/preview.png"], "a part of the path is a file"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    cli: Any, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    _broken_images(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    result = cli("run", tiny_bundle, *given, *([] if "--out" in given else ["--out", "scene.ply"]))
    assert result.code == 1
    assert result.out == ""
    assert len(result.problems) == 1
    assert result.err.splitlines()[-1] == result.problems[0]
    assert words in result.problems[0]
    assert "Traceback" not in result.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("given", "out"),
    [
        ("photos", ["--preview", "photos/a.png"]),
        ("link", ["--preview", "photos/a.png"]),
        ("photos/views.json", ["--preview", "photos/a.png"]),
        ("photos/views.json", ["--out", "photos/depth.npy", "--format", "npz"]),
        ("photos/a.png", ["--intrinsics", "photos/K.txt", "--out", "photos/K.txt", "--format", "ply"]),
        ("project/images", ["--out", "project"]),
        ("photos", ["--out", "engine/golden.npz"]),
        ("photos", ["--out", "engine/manifest.json", "--format", "ply"]),
    ],
)
def test_what_is_read_is_not_written_over(
    cli: Any, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, out: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_bundle, tmp_path / "engine")
    for folder in (tmp_path / "photos", tmp_path / "project" / "images"):
        folder.mkdir(parents=True)
        Image.effect_noise((112, 84), 40).convert("RGB").save(folder / "a.png")
    (tmp_path / "link").symlink_to("photos")
    np.save(tmp_path / "photos" / "depth.npy", np.ones((84, 112), np.float32))
    np.savetxt(tmp_path / "photos" / "K.txt", [[100, 0, 56], [0, 100, 42], [0, 0, 1]])
    view = {"image": "a.png", "intrinsics": "K.txt", "depth": "depth.npy"}
    (tmp_path / "photos" / "views.json").write_text(json.dumps([view]))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    result = cli("run", "engine", given, *out)
    assert result.code == 2
    assert "read; choose another" in result.problems[0]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_results_may_stand_beside_the_inputs(
    cli: Any, tiny_bundle: Path, samples: Path, tmp_path: Path, quick: tuple[str, ...]
) -> None:
    shutil.copytree(samples, tmp_path / "photos")
    out = [arg for name in ("scene.glb", "colmap/cloud.ply", "colmap") for arg in ("--out", tmp_path / "photos" / name)]
    for _ in range(2):
        assert cli("run", tiny_bundle, tmp_path / "photos", *out, *quick).code == 0
        assert (tmp_path / "photos" / "colmap" / "cloud.ply").is_file()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--format", "ply"], 2, "belongs to --out"),
        (["--out", "s.ply", "--mesh"], 2, "it belongs to the format glb, which no --out has"),
        (["--out", "s", "--format", "maps", "--maps", "depth,colors"], 2, "give some of depth, normals, confidence"),
        (["--out", "s", "--format", "maps", "--depth-png-scale", "0"], 2, "depth_png_scale is 0"),
        (["--out", "s", "--format", "maps", "--map-format", "jpg"], 2, "not one of png, exr, npy"),
        (["--out", "s", "--laz-precision", "0.01"], 2, "it belongs to the format laz, which no --out has"),
        (["--out", "s.txt", "--json", "./s.txt"], 2, "s.txt is named twice"),
        (["--out", "s", "--out", "s/", "--format", "colmap", "--format", "maps"], 2, "s is named twice"),
        (["--out", "s/images", "--out", "s"], 2, "s/images is inside what --out s writes"),
        (["--out", "s", "--preview", "s/images/a.png"], 2, "s/images/a.png is inside what --out s writes"),
        (["--out", "s", "--json", "s/mapengine.json"], 2, "s/mapengine.json is inside what --out s writes"),
        (["--out", "s.obj"], 2, "scenes cannot be saved as .obj; use .glb, .ply"),
        (["--out", ""], 2, "an argument is empty"),
        (["--out", "/dev/null", "--format", "ply"], 1, "a device or a pipe"),
    ],
)
def test_an_output_that_cannot_be_is_refused_at_once(
    cli: Any, tiny_bundle: Path, samples: Path, options: list[str], code: int, words: str
) -> None:
    result = cli("run", tiny_bundle, samples, *options)
    assert (result.code, len(result.err.splitlines())) == (code, 1)
    assert words in result.err


@pytest.mark.slow
def test_images_of_any_kind_and_size_together(cli: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "a.png")
    Image.new("L", (300, 100)).save(tmp_path / "b.png")
    Image.new("RGBA", (100, 300)).save(tmp_path / "c.png")
    Image.new("P", (80, 60)).save(tmp_path / "d.gif")
    Image.fromarray(np.full((60, 80), 40000, np.uint16)).save(tmp_path / "depth.png")
    result = cli("run", tiny_bundle, tmp_path, "--size", "56x56", "--out", tmp_path / "s.npz")
    assert result.code == 0
    assert "left out 1 16-bit depth map (depth.png)" in result.err
    assert Scene.load(tmp_path / "s.npz").points.shape == (4, 56, 56, 3)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "verify"])
def test_bundles_that_are_none(
    cli: Any, tiny_bundle: Path, samples: Path, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [samples, "--out", tmp_path / "scene.ply"] if command == "run" else []
    altered, cut = tmp_path / "altered", tmp_path / "cut"
    for folder in (altered, cut):
        shutil.copytree(tiny_bundle, folder)
    data = bytearray((altered / "aggregator.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (altered / "aggregator.onnx").write_bytes(data)
    (cut / "dense_head.onnx").write_bytes((cut / "dense_head.onnx").read_bytes()[:-1])

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("a stage was handed to a backend")

    monkeypatch.setattr("mapengine.runtime.backends.onnxruntime.OnnxRuntimeBackend.load_stage", forbidden)
    monkeypatch.setattr("mapengine.runtime.backends.openvino.OpenVinoBackend.load_stage", forbidden)
    for folder, words in (
        (samples, "no engine bundle"),
        (tmp_path / "none", "does not exist"),
        (samples / "views.json", "is a file"),
        (altered, "aggregator.onnx differs from the hash"),
        (cut, "dense_head.onnx has"),
    ):
        result = cli(command, folder, *arguments)
        assert result.code == 1
        assert len(result.problems) == 1
        assert words in result.problems[0]
    assert not (tmp_path / "scene.ply").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scene.glb", "scene.ply", "scene.npz", "colmap", "preview.png"])
@pytest.mark.parametrize("problem", ["full", "interrupt"])
def test_nothing_half_written_remains(
    cli: Any,
    tiny_bundle: Path,
    samples: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    quick: tuple[str, ...],
    name: str,
    problem: str,
) -> None:
    # The first run leaves the record of the golden check, which is written like a result.
    assert cli("run", tiny_bundle, samples, *quick).code == 0

    def fail(*_: object) -> None:
        raise KeyboardInterrupt if problem == "interrupt" else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mapengine.runtime.writing.files.os.fsync", fail)
    option = "--preview" if name.endswith(".png") else "--out"
    result = cli("run", tiny_bundle, samples, *quick, option, tmp_path / "new" / name)
    assert result.code == (130 if problem == "interrupt" else 1)
    assert len(result.problems) == 1
    assert ("Interrupted" if problem == "interrupt" else "the disk is full") in result.problems[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_interrupt_while_the_network_runs(
    cli: Any, tiny_bundle: Path, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Pipeline, "stream", interrupt)
    result = cli("run", tiny_bundle, samples, "--out", tmp_path / "scene.ply")
    assert result.code == 130
    assert result.err.splitlines()[-1:] == result.problems == ["Interrupted: nothing half-written is left"]
    assert list(tmp_path.iterdir()) == []


def test_permission_is_asked_before_the_network_runs(
    cli: Any, tiny_bundle: Path, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not by removing the permission: root, who often runs tests, may write anywhere.
    access = os.access
    monkeypatch.setattr("mapengine.cli.outputs.os.access", lambda path, mode: path != tmp_path and access(path, mode))
    for out in ("scene.ply", "deep/er/colmap"):
        result = cli("run", tiny_bundle, samples, "--out", tmp_path / out)
        assert result.code == 1
        assert len(result.err.splitlines()) == 1
        assert "no permission to write there" in result.err
