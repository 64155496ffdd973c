"""A map on disk has every frame, in the map as it is at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mapengine.runtime import InputError, Mapper, load_view
from mapengine.runtime.outputs.view_files import view_files, view_scene

from .perfect import PerfectEngine, Walk, walk

FRAMES = 10


@pytest.fixture(scope="module")
def truth() -> Walk:
    return walk(FRAMES)


def mapped(truth: Walk, views: list[dict[str, Any]], folder: Path, **options: Any) -> Mapper:
    engine: Any = PerfectEngine(truth)
    mapper = Mapper(engine, window=4, overlap=2, mask_edges=False, folder=folder, **options)
    for number, view in enumerate(views):
        mapper.add(view, f"{number}.png")
    mapper.finish()
    return mapper


@pytest.mark.parametrize("half", [False, True])
def test_a_folder_has_every_frame_and_all_poses(truth: Walk, tmp_path: Path, half: bool) -> None:
    views = [truth.view(number) for number in range(FRAMES)]
    views[5]["img"] = np.full_like(views[5]["img"], -2)
    mapper = mapped(truth, views, tmp_path / "map", half=half)
    files = view_files(tmp_path / "map")
    assert [path.name for path in files] == [f"view-{n:04d}.npz" for n in range(FRAMES) if n != 5]
    with np.load(tmp_path / "map" / "map.npz") as stored:
        assert np.array_equal(stored["poses"], mapper.poses, equal_nan=True)
        assert stored["submaps"].tolist() == [0] * 5 + [-1] + [1] * 4
        assert (stored["break_frames"].tolist(), stored["break_reasons"].tolist()) == ([6], ["blank"])
    scene = view_scene(files[2])
    assert (scene.names, scene.made_by) == (["2.png"], "perfect engine")
    np.testing.assert_allclose(scene.poses[0], truth.poses[2], atol=1e-5)
    np.testing.assert_allclose(
        scene.depth[0][scene.mask[0]], truth.depth[2][scene.mask[0]], rtol=2e-3 if half else 1e-5
    )


def test_what_was_written_before_the_map_moved_is_moved(truth: Walk, tmp_path: Path) -> None:
    world = np.array([[0, 0, 1, 50], [0, 1, 0, 6], [-1, 0, 0, 7], [0, 0, 0, 1.0]])
    views = [truth.view(number) for number in range(FRAMES)]
    views[8]["camera_poses"] = (world @ truth.poses[8])[None]
    mapper = mapped(truth, views, tmp_path / "map")
    np.testing.assert_allclose(mapper.poses, world @ truth.poses, atol=1e-5)
    for number, path in enumerate(view_files(tmp_path / "map")):
        view = load_view(path)
        pose = view["camera_poses"][0]
        np.testing.assert_allclose(pose, mapper.poses[number], atol=1e-4)
        points = view["pts3d_cam"][0] @ pose[:3, :3].T + pose[:3, 3]
        mask = view["mask"][0, ..., 0]
        np.testing.assert_allclose(view["pts3d"][0][mask], points[mask], atol=1e-3)
        assert str(view["frame"]) == "given"


def test_a_folder_with_views_of_another_run_is_refused(truth: Walk, tmp_path: Path) -> None:
    (tmp_path / "view-0000.npz").write_bytes(b"")
    with pytest.raises(InputError, match="views of another run"):
        mapped(truth, [], tmp_path)
