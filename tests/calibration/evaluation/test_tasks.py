"""What each task gives to a network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mapengine.calibration.evaluation import TASKS, Task, select_tasks, task_views
from mapengine.calibration.evaluation.tasks import SPARSE_SHARE, UNIT_RANGE
from mapengine.runtime import InputError
from mapengine.runtime.inputs.normalization import norm_constants
from mapengine.runtime.inputs.prepared import prepare_views

from ...refusals import refused
from .oracle import changed, sample_scene

SCENE = sample_scene()
ALWAYS = {"img", "data_norm_type", "is_metric_scale"}
GIVEN = {
    "image-only-1": (1, set()),
    "image-only-2": (2, set()),
    "image-only-4": (4, set()),
    "image-only-8": (8, set()),
    "calibrated": (4, {"intrinsics"}),
    "poses-only": (4, {"camera_poses"}),
    "posed": (4, {"intrinsics", "camera_poses"}),
    "depth": (4, {"intrinsics", "depth_z"}),
    "depth-completion": (4, {"intrinsics", "depth_z"}),
    "registration": (2, {"intrinsics", "depth_z"}),
    "all": (4, {"intrinsics", "depth_z", "camera_poses"}),
    "depth-nonmetric": (4, {"intrinsics", "depth_z"}),
    "all-nonmetric": (4, {"intrinsics", "depth_z", "camera_poses"}),
}


def views_of(name: str, seed: int = 0, scene: Any = SCENE) -> list[dict[str, Any]]:
    (task,) = select_tasks([name])
    return task_views(task, changed(scene, seed=seed))


def same(one: list[dict[str, Any]], two: list[dict[str, Any]]) -> bool:
    return all(
        a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a) for a, b in zip(one, two, strict=True)
    )


def test_the_table_of_this_test_names_every_task() -> None:
    names = [task.name for task in TASKS]
    assert len(set(names)) == len(names)
    assert set(names) == {*GIVEN, "mixed"}


@pytest.mark.parametrize("name", list(GIVEN))
def test_views_get_what_the_task_says(name: str) -> None:
    count, keys = GIVEN[name]
    views = views_of(name)
    assert len(views) == count
    metric = not name.endswith("nonmetric")
    for index, view in enumerate(views):
        assert set(view) == ALWAYS | keys
        assert view["is_metric_scale"].tolist() == [metric]
        mean, deviation = (np.array(c, np.float32)[:, None, None] for c in norm_constants("dinov2"))
        levels = (view["img"][0] * deviation + mean) * 255
        np.testing.assert_allclose(levels.transpose(1, 2, 0), SCENE.images[index], atol=1e-3)
        if "intrinsics" in keys:
            np.testing.assert_array_equal(view["intrinsics"][0], SCENE.intrinsics[index])
        if metric and "camera_poses" in keys:
            np.testing.assert_array_equal(view["camera_poses"][0], SCENE.poses[index])
        if metric and "depth_z" in keys and name != "depth-completion":
            np.testing.assert_array_equal(view["depth_z"][0], SCENE.depth_z[index])
    # It is what infer takes.
    assert len(prepare_views(views).images) == count


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_seed_decides_everything(task: Task) -> None:
    assert same(task_views(task, SCENE), task_views(task, SCENE))
    random = task.mixed or task.depth == "sparse" or not task.metric
    others = [task_views(task, changed(SCENE, seed=seed)) for seed in range(1, 6)]
    assert any(not same(task_views(task, SCENE), other) for other in others) == random


def test_words_say_what_is_given() -> None:
    words = {task.name: task.inputs for task in TASKS}
    assert words["image-only-4"] == "images"
    assert words["posed"] == "images, intrinsics, poses"
    assert words["depth-completion"] == "images, intrinsics, sparse depth"
    assert words["depth-nonmetric"] == "images, intrinsics, dense depth; not metric"


def test_sparse_depth_is_a_few_percent_of_the_depth() -> None:
    shares = []
    for seed in range(10):
        for index, view in enumerate(views_of("depth-completion", seed)):
            depth, true = view["depth_z"][0], SCENE.depth_z[index]
            kept = depth > 0
            np.testing.assert_array_equal(depth[kept], true[kept])
            shares.append(kept.sum() / (true > 0).sum())
    slack = 1 / (SCENE.depth_z[0] > 0).sum()
    assert SPARSE_SHARE[0] - slack <= min(shares) < 0.025
    assert SPARSE_SHARE[1] + slack >= max(shares) > 0.045


def test_sparse_depth_of_a_view_without_any_or_with_one_pixel() -> None:
    depth = SCENE.depth_z.copy()
    depth[0], depth[1] = 0, 0
    depth[1, 20, 20] = 1.5
    views = views_of("depth-completion", scene=changed(SCENE, depth_z=depth))
    assert not views[0]["depth_z"].any()
    np.testing.assert_array_equal(views[1]["depth_z"][0], depth[1])


def test_the_unknown_unit_is_one_for_depth_and_poses() -> None:
    units = []
    for seed in range(20):
        views = views_of("all-nonmetric", seed)
        known = SCENE.depth_z[0] > 0
        unit = float(views[0]["depth_z"][0][known][0] / SCENE.depth_z[0][known][0])
        units.append(unit)
        for index, view in enumerate(views):
            np.testing.assert_allclose(view["depth_z"][0], SCENE.depth_z[index] * unit, rtol=1e-6)
            np.testing.assert_allclose(view["camera_poses"][0, :3, 3], SCENE.poses[index, :3, 3] * unit, rtol=1e-6)
            np.testing.assert_array_equal(view["camera_poses"][0, :3, :3], SCENE.poses[index, :3, :3])
    assert UNIT_RANGE[0] <= min(units) < 0.6
    assert UNIT_RANGE[1] >= max(units) > 1.7


def test_making_views_leaves_the_scene_alone() -> None:
    before = [SCENE.images.copy(), SCENE.depth_z.copy(), SCENE.poses.copy(), SCENE.intrinsics.copy()]
    for task in TASKS:
        task_views(task, SCENE)
    for old, new in zip(before, (SCENE.images, SCENE.depth_z, SCENE.poses, SCENE.intrinsics), strict=True):
        np.testing.assert_array_equal(old, new)


def test_mixes_have_every_combination_and_keep_the_rules() -> None:
    seen = set()
    for seed in range(60):
        views = views_of("mixed", seed)
        prepare_views(views)  # refuses depth without a camera, and poses without the one of view 0
        assert all(view["is_metric_scale"].all() for view in views)
        for index, view in enumerate(views):
            share = 0.0 if "depth_z" not in view else (view["depth_z"] > 0).mean()
            depth = "none" if share == 0 else "sparse" if share < 0.2 else "dense"
            seen.add((index > 0, "intrinsics" in view, depth, "camera_poses" in view))
    modalities = [(False, "none"), (True, "none"), (True, "sparse"), (True, "dense")]
    assert seen == {(later, *m, pose) for later in (False, True) for m in modalities for pose in (False, True)}


def test_selecting_tasks() -> None:
    assert select_tasks() == list(TASKS)
    assert [task.name for task in select_tasks(["depth", "image-only-1"])] == ["image-only-1", "depth"]
    refused(InputError, "'depths'|did you mean depth", lambda: select_tasks(["depths"]))
    refused(InputError, "'frobnicate'|image-only-1", lambda: select_tasks(["frobnicate"]))
    refused(InputError, "no task", lambda: select_tasks([]))
    refused(InputError, "list of names", lambda: select_tasks("depth"))
