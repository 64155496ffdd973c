"""Depth, normals and confidence as files: what is written is what was there, and what does not fit is said."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import OpenEXR
import pytest
from PIL import Image

from mapengine.runtime import Scene
from mapengine.runtime.errors import BackendUnavailableError, InputError
from mapengine.runtime.inputs.files.depth import read_depth
from mapengine.runtime.outputs.formats.maps import camera_normals


@pytest.mark.parametrize(
    ("form", "scale", "tolerance"),
    [("png", 1000, 0.000501), ("png", 5000, 0.000101), ("exr", 1000, 0), ("npy", 1000, 0)],
)
def test_our_reader_reads_the_depth_back(
    scene: Scene, tmp_path: Path, form: str, scale: float, tolerance: float
) -> None:
    folder = scene.save(tmp_path / "maps", format="maps", map_format=form, depth_png_scale=scale)
    for index, stem in enumerate("ab"):
        depth = read_depth(folder / "depth" / f"{stem}.{form}", 1 / scale if form == "png" else None)
        np.testing.assert_allclose(depth, scene.depth[index], rtol=0, atol=tolerance)
        np.testing.assert_array_equal(depth > 0, scene.mask[index])


def test_the_files_are_listed_with_the_names_of_their_views(scene: Scene, tmp_path: Path) -> None:
    scene.names = ["left/1.jpg", "right/1.jpg"]
    folder = scene.save(tmp_path / "maps", format="maps")
    document = json.loads((folder / "maps.json").read_text())
    assert [view["name"] for view in document["views"]] == scene.names
    assert document["views"][1]["depth"] == "depth/right_1.png"
    assert document["depth_units_per_metre"] == 1000
    listed = {view[kind] for view in document["views"] for kind in ("depth", "normals", "confidence")}
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there == listed | {"maps.json", "mapengine.json"}


def test_only_what_is_asked_for(scene: Scene, tmp_path: Path) -> None:
    folder = scene.save(tmp_path / "maps", format="maps", maps=["confidence"])
    assert sorted(path.name for path in folder.iterdir()) == ["confidence", "mapengine.json", "maps.json"]
    np.testing.assert_array_equal(np.load(folder / "confidence" / "a.npy"), scene.confidence[0])
    scene.save(folder, format="maps", maps=("depth",))
    assert sorted(path.name for path in folder.iterdir()) == ["depth", "mapengine.json", "maps.json"]


def test_depth_that_16_bits_do_not_hold_is_none_and_said(scene: Scene, tmp_path: Path) -> None:
    scene.depth[0, 20, 20:24] = [65.5341, 65.535, 70, 1e9]
    scene.depth[1, 20, 20:22] = [0.0004, 0.0006]
    with pytest.warns(UserWarning, match=r"4 pixels of a\.jpg and 1 more are not between 0\.001 and 65\.53 m") as said:
        folder = scene.save(tmp_path / "maps", format="maps", maps=("depth",))
    assert len(said) == 1
    with Image.open(folder / "depth" / "a.png") as picture:
        assert picture.mode.startswith("I;16")
        assert np.asarray(picture)[20, 20:24].tolist() == [65534, 0, 0, 0]
    with Image.open(folder / "depth" / "b.png") as picture:
        assert np.asarray(picture)[20, 20:22].tolist() == [0, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scene.save(folder, format="maps", maps=("depth",), map_format="npy")
    assert np.load(folder / "depth" / "a.npy")[20, 23] == np.float32(1e9)


def test_normals_face_the_camera_in_its_own_frame(scene: Scene, tmp_path: Path) -> None:
    # A wall whose normal in the camera's frame is known, seen by a camera that is turned.
    true = np.array([0.6, -0.2, -0.9]) / np.linalg.norm([0.6, -0.2, -0.9])
    rows, columns = np.indices((42, 56))
    k = scene.intrinsics[0].astype(np.float64)
    rays = np.stack([(columns - k[0, 2]) / k[0, 0], (rows - k[1, 2]) / k[1, 1], np.ones((42, 56))], axis=-1)
    scene.mask[0] &= rays @ true < -0.2  # the wall ends before its vanishing line
    local = rays * (-2 / (rays @ true))[..., None]
    scene.points[0] = local @ scene.poses[0, :3, :3].T + scene.poses[0, :3, 3]
    scene.points[0][~scene.mask[0]] = 0
    normals = camera_normals(scene, 0)
    valid = scene.mask[0]
    assert 500 < valid.sum() < valid.size
    np.testing.assert_allclose(normals[valid], np.broadcast_to(true, (int(valid.sum()), 3)), atol=2e-3)
    assert not normals[~valid].any()
    folder = scene.save(tmp_path / "maps", format="maps", maps=("normals",))
    with Image.open(folder / "normals" / "a.png") as picture:
        stored = np.asarray(picture)
    np.testing.assert_allclose(stored / 127.5 - 1, normals, atol=0.005)
    assert (stored[~valid] == 128).all()
    scene.save(folder, format="maps", map_format="npy")
    np.testing.assert_array_equal(np.load(folder / "normals" / "a.npy"), normals)


def test_where_rays_cross_no_normal_turns_away_from_the_camera(scene: Scene) -> None:
    scene.mask[0] = True
    rows, columns = np.indices((42, 56))
    local = np.stack([columns / 50 - 0.5, rows / 50 - 0.4, np.ones((42, 56))], axis=-1)
    local[20:23, 30:35] = local[20:23, 34:29:-1].copy()
    scene.points[0] = local @ scene.poses[0, :3, :3].T + scene.poses[0, :3, 3]
    normals = camera_normals(scene, 0)
    lengths = np.linalg.norm(normals, axis=-1)
    assert 0 < (lengths == 0).sum() <= 15
    np.testing.assert_allclose(lengths[lengths > 0], 1, atol=1e-5)
    assert (np.sum(normals * local, axis=-1)[lengths > 0] < 0).all()


def test_exr_holds_floats_by_their_usual_channels(scene: Scene, tmp_path: Path) -> None:
    folder = scene.save(tmp_path / "maps", format="maps", map_format="exr")
    for kind, channel in (("depth", "Z"), ("normals", "RGB"), ("confidence", "Y")):
        with OpenEXR.File(str(folder / kind / "b.exr")) as file:
            assert list(file.channels()) == [channel]
            values = np.array(file.channels()[channel].pixels)
        assert values.dtype == np.float32
        expected = camera_normals(scene, 1) if kind == "normals" else getattr(scene, kind)[1]
        np.testing.assert_array_equal(values, expected)


def test_exr_without_its_package_names_the_extra(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackendUnavailableError, match=r"needs OpenEXR; install with: pip install 'mapengine\[exr\]'"):
        scene.save(tmp_path / "maps", format="maps", map_format="exr")
    assert not list(tmp_path.iterdir())
    scene.save(tmp_path / "maps", format="maps")


@pytest.mark.parametrize(
    "options",
    [
        {"maps": ()},
        {"maps": "depth"},
        {"maps": ("colors",)},
        {"map_format": "jpg"},
        {"depth_png_scale": 0},
        {"depth_png_scale": float("nan")},
        {"depth_png_scale": True},
        {"laz_precision": -1},
        {"mesh": "no"},
    ],
)
def test_options_that_are_none(scene: Scene, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        scene.save(tmp_path / "maps", format="maps", **options)
    assert not list(tmp_path.iterdir())
