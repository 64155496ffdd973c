"""TUM trajectories, which our reader of recordings reads back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mapengine.runtime import Scene
from mapengine.runtime.errors import InputError
from mapengine.runtime.inputs.sources import open_views

TIMES = [1305031102.175304, 1305031102.211214]


def test_the_reader_of_recordings_reads_it(scene: Scene, tmp_path: Path) -> None:
    scene.times = np.array(TIMES)
    scene.save(tmp_path / "groundtruth.txt")
    for index in range(2):
        Image.fromarray(scene.colors[index]).save(tmp_path / f"{index}.png")
    np.savetxt(tmp_path / "K.txt", scene.intrinsics[0])
    (tmp_path / "rgb.txt").write_text("".join(f"{time} {index}.png\n" for index, time in enumerate(TIMES)))
    for index, view in enumerate(open_views(tmp_path)):
        np.testing.assert_allclose(view.files.pose, scene.poses[index], atol=1e-6)
        assert view.files.time == TIMES[index]


def test_lines_have_eight_numbers_and_views_their_names(scene: Scene, tmp_path: Path) -> None:
    scene.names = ["a\nb.jpg", "\udcff c.jpg"]
    text = scene.save(tmp_path / "poses.txt").read_text(encoding="utf-8")
    table = np.loadtxt(text.splitlines())
    assert table.shape == (2, 8)
    assert table[:, 0].tolist() == [0, 1]  # no view has a time
    np.testing.assert_allclose(np.linalg.norm(table[:, 4:], axis=1), 1, atol=1e-9)
    assert text.splitlines()[0] == "# mapengine trajectory"
    assert [line for line in text.splitlines() if ".jpg" in line] == ["# a b.jpg", "# ? c.jpg"]
    scene.save(tmp_path / "poses.txt")  # an older one of ours


def test_times_are_kept_with_the_scene(scene: Scene, tmp_path: Path) -> None:
    assert Scene.load(scene.save(tmp_path / "without.npz")).times is None
    scene.times = np.array(TIMES)
    times = Scene.load(scene.save(tmp_path / "scene.npz")).times
    assert times is not None
    assert times.tolist() == TIMES
    arrays = {name: getattr(scene, name) for name in ("points", "colors", "depth", "confidence", "mask")}
    for wrong in ([1.0], [1.0, np.nan]):
        with pytest.raises(InputError, match="times"):
            Scene(**arrays, intrinsics=scene.intrinsics, poses=scene.poses, times=np.array(wrong))
