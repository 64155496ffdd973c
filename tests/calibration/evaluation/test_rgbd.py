"""Recorded views: both layouts of a folder, and what can be wrong with one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mapengine.calibration.data.samples import sample_views, write_samples
from mapengine.calibration.evaluation import ConstantDepth, Truth, evaluate, load_rgbd, score, task_views
from mapengine.calibration.evaluation.tasks import TASKS
from mapengine.runtime import ImageReadError, InputError
from mapengine.runtime.errors import ImageSizeError

from ...refusals import refused
from ...seven_scenes import write_seven_scenes
from .oracle import SIZE, Oracle

DATA = Path(os.environ.get("MAPENGINE_DATA") or Path(__file__).resolve().parents[3] / ".." / "shared" / "data")
KITCHEN = DATA / "redkitchen"


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    return write_seven_scenes(tmp_path / "recording")


def test_a_recording_is_read_and_resized(recording: Path) -> None:
    (scene,) = load_rgbd(recording, SIZE)
    width, height = SIZE
    assert scene.images.shape == (3, height, width, 3)
    assert scene.images.dtype == np.uint8
    assert scene.depth_z.dtype == np.float32
    assert scene.mask is None
    assert not scene.depth_z[:, :4].any()
    assert (scene.depth_z[:, 4:] > 0).all()
    small = sample_views(3, *SIZE)
    for index, view in enumerate(sample_views(3, 2 * width, 2 * height)):
        np.testing.assert_allclose(scene.poses[index], view.pose, atol=1e-6)
        assert abs(scene.images[index].astype(int) - small[index].image).mean() < 8
        nearest = view.depth_z[::2, ::2]
        np.testing.assert_allclose(scene.depth_z[index, 4:], nearest[4:], atol=6e-4)
        np.testing.assert_allclose(scene.intrinsics[index, 0, 0], view.intrinsics[0, 0] / 2, rtol=1e-5)


def test_a_recording_can_be_evaluated(recording: Path) -> None:
    scenes = load_rgbd(recording, SIZE)
    evaluation = evaluate(Oracle(scenes[0], scale=1.1), scenes)
    assert [result.name for result in evaluation.tasks] == ["image-only-1", "image-only-2", "registration"]
    for result in evaluation.tasks:
        assert result.metrics["metric_depth_abs_rel"] == pytest.approx(0.1, abs=1e-4)
        assert result.metrics["depth_abs_rel"] == pytest.approx(0, abs=1e-4)
        # Holes of a depth camera say nothing about where there is a surface.
        assert result.metrics["mask_iou"] is None


def test_a_view_list_gives_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    write_samples(folder, 2, 2 * SIZE[0], 2 * SIZE[1])
    (one,), (two,) = load_rgbd(folder, SIZE), load_rgbd(folder / "views.json", SIZE)
    width, height = SIZE
    assert one.images.shape == (2, height, width, 3)
    np.testing.assert_array_equal(one.depth_z, two.depth_z)
    truth = Truth.of(one)
    assert truth.valid.all()
    assert score(Oracle(one).forward(2), truth).values["depth_abs_rel"] == pytest.approx(0, abs=1e-5)


@pytest.mark.slow
def test_long_recordings_become_several_scenes(tmp_path: Path) -> None:
    scenes = load_rgbd(write_seven_scenes(tmp_path / "long", 10), SIZE)
    assert [len(scene.images) for scene in scenes] == [8, 2]
    assert [scene.seed for scene in scenes] == [0, 8]
    evaluation = evaluate(ConstantDepth(), scenes)
    assert {result.name: result.scenes for result in evaluation.tasks}["image-only-8"] == 1
    assert {result.name: result.scenes for result in evaluation.tasks}["registration"] == 2
    task = next(task for task in TASKS if task.name == "depth-completion")
    assert len(task_views(task, scenes[0])) == 4


def edit(folder: Path, change: Callable[[list[dict[str, Any]]], None]) -> Path:
    """The view list of three samples with a change."""
    write_samples(folder, 3, *SIZE)
    document = json.loads((folder / "views.json").read_text())
    change(document["views"])
    (folder / "views.json").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize("key", ["pose", "depth", "intrinsics"])
def test_a_view_list_without_something(tmp_path: Path, key: str) -> None:
    def remove(views: list[dict[str, Any]]) -> None:
        del views[1][key]
        if key == "intrinsics":
            del views[1]["depth"]

    folder = edit(tmp_path / "samples", remove)
    refused(InputError, f"samples|view 1|{key}", lambda: load_rgbd(folder, SIZE))


def test_a_view_list_that_is_not_metric(tmp_path: Path) -> None:
    folder = edit(tmp_path / "samples", lambda views: views[2].update(metric=False))
    refused(InputError, "view 2|metres", lambda: load_rgbd(folder, SIZE))


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("frame-000001.pose.txt", InputError, "frame-000001.color.png|no pose"),
        ("frame-000001.depth.png", ImageReadError, "frame-000001.color.png|no depth map"),
        ("camera-intrinsics.txt", InputError, "no camera-intrinsics.txt"),
    ],
)
def test_a_recording_without_a_file(recording: Path, name: str, error: Any, words: str) -> None:
    (recording / name).unlink()
    refused(error, words, lambda: load_rgbd(recording, SIZE))


def test_folders_that_are_no_recording(recording: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(InputError, "empty|no RGB-D views|views.json", lambda: load_rgbd(tmp_path / "empty", SIZE))
    refused(InputError, "nowhere|no such", lambda: load_rgbd(tmp_path / "nowhere", SIZE))
    photo = recording / "frame-000000.color.png"
    refused(InputError, "no RGB-D views", lambda: load_rgbd(photo, SIZE))
    shutil.copy(recording / "camera-intrinsics.txt", recording / "frame-000002.pose.txt")
    refused(InputError, "frame-000002.pose.txt|4x4", lambda: load_rgbd(recording, SIZE))


def test_damaged_files(recording: Path) -> None:
    poses = np.full((4, 4), np.nan)
    np.savetxt(recording / "frame-000002.pose.txt", poses)  # what 7-Scenes writes where tracking was lost
    refused(InputError, "frame-000002.pose.txt|NaN", lambda: load_rgbd(recording, SIZE))
    np.savetxt(recording / "frame-000002.pose.txt", np.eye(4))
    (recording / "frame-000001.depth.png").write_bytes(b"no picture")
    refused(ImageReadError, "frame-000001.depth.png", lambda: load_rgbd(recording, SIZE))


def test_a_size_that_is_no_multiple_of_14(recording: Path) -> None:
    refused(ImageSizeError, "50x42|56x42", lambda: load_rgbd(recording, (50, 42)))


@pytest.mark.slow
@pytest.mark.skipif(not KITCHEN.is_dir(), reason="the real images are not here: MAPENGINE_DATA names no redkitchen")
def test_the_real_kitchen() -> None:
    scenes = load_rgbd(KITCHEN)
    assert [len(scene.images) for scene in scenes] == [8]
    evaluation = evaluate(Oracle(scenes[0]), scenes)
    assert [result.name for result in evaluation.tasks] == [task.name for task in TASKS]
    for result in evaluation.tasks:
        assert result.metrics["depth_abs_rel"] == pytest.approx(0, abs=1e-4)
        assert result.metrics["points_abs_rel"] == pytest.approx(0, abs=1e-4)
