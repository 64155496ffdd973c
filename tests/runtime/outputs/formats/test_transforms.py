"""``transforms.json``: what nerfstudio reads, and what our own reader makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from mapengine.runtime import ReadOptions, Scene
from mapengine.runtime.errors import InputError, OutputError
from mapengine.runtime.inputs.sources import open_views

HALF_A_MILLIMETRE = 0.000501


def test_what_is_written_comes_back_as_inputs(scene: Scene, tmp_path: Path) -> None:
    views = [view.read() for view in open_views(scene.save(tmp_path / "nerf", format="transforms"))]
    assert [view.name for view in views] == ["images/a.png", "images/b.png"]
    for index, view in enumerate(views):
        np.testing.assert_array_equal(np.asarray(view.image), scene.colors[index])
        np.testing.assert_array_equal(view.intrinsics, scene.intrinsics[index])
        np.testing.assert_array_equal(view.pose, scene.poses[index].astype(np.float64))
        np.testing.assert_allclose(view.depth, scene.depth[index], rtol=0, atol=HALF_A_MILLIMETRE)
        np.testing.assert_array_equal(view.depth > 0, scene.depth[index] > 0)
        assert view.metric is not False
        assert not view.remarks


def test_the_conventions_of_nerfstudio(scene: Scene, tmp_path: Path) -> None:
    folder = scene.save(tmp_path, format="transforms", max_points=100)
    document: dict[str, Any] = json.loads((folder / "transforms.json").read_text())
    assert document["applied_transform"] == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
    assert document["depth_unit_scale_factor"] == 0.001
    cloud = np.asarray(trimesh.load(folder / document["ply_file_path"]).vertices)
    assert len(cloud) == 100
    for index, frame in enumerate(document["frames"]):
        assert (folder / frame["file_path"]).is_file()
        assert (folder / frame["depth_file_path"]).is_file()
        assert (frame["w"], frame["h"], frame["name"]) == (56, 42, scene.names[index])
        # Points, in the world of the cameras, seen with OpenGL axes (y up, looking along -z), and the centre of the
        # first pixel at (0.5, 0.5), lie on their pixels.
        pose = np.array(frame["transform_matrix"])
        camera = (scene.points[index][scene.mask[index]] - pose[:3, 3]) @ pose[:3, :3]
        assert (camera[:, 2] < 0).all()
        rows, columns = np.nonzero(scene.mask[index])
        x = frame["cx"] + frame["fl_x"] * camera[:, 0] / -camera[:, 2]
        y = frame["cy"] - frame["fl_y"] * camera[:, 1] / -camera[:, 2]
        np.testing.assert_allclose(x, columns + 0.5, atol=1e-3)
        np.testing.assert_allclose(y, rows + 0.5, atol=1e-3)


def test_another_unit_is_written_and_read(scene: Scene, tmp_path: Path) -> None:
    folder = scene.save(tmp_path, format="transforms", depth_png_scale=5000)
    (view, *_) = open_views(folder)
    np.testing.assert_allclose(view.read().depth, scene.depth[0], rtol=0, atol=0.000101)


def test_an_older_one_is_replaced_whole_and_what_others_wrote_stays(scene: Scene, tmp_path: Path) -> None:
    folder = scene.save(tmp_path / "a", format="transforms")
    scene.names = ["c.jpg", "d.jpg"]
    scene.save(folder, format="transforms")
    assert sorted(path.name for path in (folder / "images").iterdir()) == ["c.png", "d.png"]
    other = tmp_path / "b"
    (other / "images").mkdir(parents=True)
    (other / "images" / "mine.png").write_bytes(b"mine")
    (other / "transforms.json").write_text("{}")
    with pytest.raises(OutputError, match="which is not empty and no dataset with transforms"):
        scene.save(other, format="transforms")
    assert sorted(path.name for path in other.rglob("*")) == ["images", "mine.png", "transforms.json"]
    with pytest.raises(OutputError):
        scene.save(folder, format="colmap")


@pytest.mark.parametrize("form", ["transforms", "tum"])
def test_a_camera_that_is_none_is_refused(scene: Scene, tmp_path: Path, form: str) -> None:
    scene.poses[1, 0, 0] = np.nan
    with pytest.raises(InputError, match="view 1: intrinsics or pose are not finite"):
        scene.save(tmp_path / "x", format=form)
    assert not list(tmp_path.iterdir())


def test_only_depth_can_be_left_out_again(scene: Scene, tmp_path: Path) -> None:
    folder = scene.save(tmp_path / "nerf", format="transforms")
    views = open_views(folder, options=ReadOptions(ignore=("depth",)))
    assert all(view.read().depth is None for view in views)
