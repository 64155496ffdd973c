from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mapengine.runtime.errors import InputError, OutputError
from mapengine.runtime.outputs.colmap import COLMAP_MAX_POINTS, image_names
from mapengine.runtime.outputs.scene import Scene
from mapengine.runtime.outputs.scene_arrays import SHAPES

Predictions = list[dict[str, Any]]


@pytest.fixture
def scene(predictions: Predictions) -> Scene:
    return Scene.from_predictions(predictions, names=["left photo.jpg", "größe.jpg"])


def read(folder: Path, suffix: str) -> pycolmap.Reconstruction:
    """The model from its text or its binary files alone."""
    only = folder / f"only_{suffix}"
    shutil.rmtree(only, ignore_errors=True)
    only.mkdir()
    for name in ("cameras", "images", "points3D"):
        shutil.copy(folder / "sparse" / "0" / f"{name}.{suffix}", only)
    return pycolmap.Reconstruction(only)


@pytest.mark.parametrize("suffix", ["txt", "bin"])
def test_pycolmap_reads_the_scene(scene: Scene, tmp_path: Path, suffix: str) -> None:
    scene.save(tmp_path)
    model = read(tmp_path, suffix)
    assert (model.num_cameras(), model.num_reg_images()) == (2, 2)
    assert model.num_points3D() == scene.mask.sum()
    for view in range(2):
        image = model.images[view + 1]
        camera = model.cameras[image.camera_id]
        k = scene.intrinsics[view].astype(np.float64)
        assert (camera.model.name, camera.width, camera.height) == ("PINHOLE", 56, 42)
        np.testing.assert_allclose(camera.params, [k[0, 0], k[1, 1], k[0, 2] + 0.5, k[1, 2] + 0.5], rtol=1e-9)
        world_to_camera = np.linalg.inv(scene.poses[view].astype(np.float64))
        np.testing.assert_allclose(image.cam_from_world().matrix(), world_to_camera[:3], atol=1e-6)
        assert image.num_points3D == scene.mask[view].sum()
        picture = np.asarray(Image.open(tmp_path / "images" / image.name))
        np.testing.assert_array_equal(picture, scene.colors[view])


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["txt", "bin"])
def test_points_reproject_onto_their_observations(scene: Scene, tmp_path: Path, suffix: str) -> None:
    scene.save(tmp_path, max_points=500)
    model = read(tmp_path, suffix)
    assert model.num_points3D() == 500
    for point in model.points3D.values():
        (element,) = point.track.elements
        image = model.images[element.image_id]
        observation = image.points2D[element.point2D_idx]
        assert model.points3D[observation.point3D_id].xyz == pytest.approx(point.xyz)
        np.testing.assert_allclose(image.project_point(point.xyz), observation.xy, atol=1e-2)
        assert 0 <= point.error < 1e-2
        column, row = (observation.xy - 0.5).astype(int)
        view = element.image_id - 1
        np.testing.assert_array_equal(point.color, scene.colors[view, row, column])
        np.testing.assert_allclose(point.xyz, scene.points[view, row, column], rtol=1e-6)


def test_error_is_the_reprojection_error(scene: Scene, tmp_path: Path) -> None:
    scene.intrinsics[:, 0, 2] += 2  # as if the rays of the network were not those of a pinhole camera
    scene.save(tmp_path, max_points=50)
    assert [point.error for point in read(tmp_path, "bin").points3D.values()] == pytest.approx([2] * 50, abs=1e-2)


def test_points_behind_their_camera_are_left_out(scene: Scene, tmp_path: Path) -> None:
    center, forward = scene.poses[0, :3, 3], scene.poses[0, :3, 2]
    scene.points[0, 10, 20:30] = center - forward
    scene.save(tmp_path)
    assert read(tmp_path, "bin").num_points3D() == scene.mask.sum() - 10


@pytest.mark.parametrize("suffix", ["txt", "bin"])
def test_empty_scene(scene: Scene, tmp_path: Path, suffix: str) -> None:
    scene.mask[:] = False
    scene.save(tmp_path)
    model = read(tmp_path, suffix)
    assert (model.num_reg_images(), model.num_points3D()) == (2, 0)


@pytest.mark.slow
def test_at_most_the_documented_number_of_points(room_predictions: Callable[..., Predictions], tmp_path: Path) -> None:
    scene = Scene.from_predictions(room_predictions(2, 336, 252))
    assert scene.mask.sum() > COLMAP_MAX_POINTS
    scene.save(tmp_path / "a")
    assert read(tmp_path / "a", "bin").num_points3D() == COLMAP_MAX_POINTS
    scene.save(tmp_path / "b")
    for name in ("cameras", "images", "points3D"):
        for suffix in ("txt", "bin"):
            file = Path("sparse", "0", f"{name}.{suffix}")
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_an_older_model_is_replaced_and_nothing_else(scene: Scene, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    scene.save(folder)
    (folder / "images" / "mine.jpg").write_bytes(b"mine")
    (folder / "sparse" / "0" / "project.ini").write_bytes(b"mine")
    one = Scene(**{name: getattr(scene, name)[:1] for name in (*SHAPES, "names")}, metric_scale=1.0)
    one.save(folder)
    assert (folder / "images" / "mine.jpg").read_bytes() == b"mine"
    assert (folder / "sparse" / "0" / "project.ini").read_bytes() == b"mine"
    assert len(list((folder / "images").iterdir())) == 2  # that of the second view is gone
    assert pycolmap.Reconstruction(folder / "sparse" / "0").num_reg_images() == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_somebody_elses_model_is_left_alone(scene: Scene, tmp_path: Path) -> None:
    """Nothing of it, nor of one of ours that was improved since, is replaced."""
    theirs = tmp_path / "theirs"
    for name in ("sparse/0/cameras.bin", "sparse/0/project.ini", "images/a.png"):
        (theirs / name).parent.mkdir(parents=True, exist_ok=True)
        (theirs / name).write_bytes(b"a week of work")
    with pytest.raises(OutputError, match="no COLMAP model that mapengine wrote"):
        scene.save(theirs)
    assert {path.read_bytes() for path in theirs.rglob("*") if path.is_file()} == {b"a week of work"}
    ours = scene.save(tmp_path / "ours")
    (ours / "sparse" / "0" / "cameras.bin").write_bytes(b"bundle adjustment")
    with pytest.raises(OutputError, match=r"cameras\.bin: was changed since mapengine wrote it"):
        scene.save(ours)
    assert (ours / "sparse" / "0" / "cameras.bin").read_bytes() == b"bundle adjustment"


def test_camera_without_focal_length_is_refused(scene: Scene, tmp_path: Path) -> None:
    scene.intrinsics[1, 0, 0] = np.nan
    with pytest.raises(InputError, match="view 1: intrinsics or pose are not finite"):
        scene.save(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_image_names() -> None:
    assert image_names(["a b.jpg", "a_b.png", "A_B.png", "../../etc/passwd", "", "ä", "x\ny"]) == [
        *("a_b.png", "a_b_1.png", "A_B_2.png", "passwd.png", "view_4.png", "view_5.png", "x_y.png")
    ]


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(names=st.lists(st.text(max_size=12), max_size=8))
def test_image_names_are_safe_and_different(names: list[str]) -> None:
    result = image_names(names)
    assert len({name.lower() for name in result}) == len(names)
    for name in result:
        assert name.isascii()
        assert not set(name) & set("/\\ \t\r\n\0")
        assert name.endswith(".png")
        assert not name.startswith(".")
