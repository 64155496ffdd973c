"""From scenes and a predictor to figures: the truth errs by nothing, known mistakes by what they are."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from mapengine.calibration.evaluation import (
    HELD_OUT_SEED,
    METRICS,
    TASKS,
    ConstantDepth,
    Evaluation,
    Truth,
    aggregate,
    evaluate,
    markdown_table,
    score,
    task_views,
)
from mapengine.calibration.evaluation.baseline import CONSTANT_DEPTH, FIELD_OF_VIEW
from mapengine.calibration.scenes import render_scene
from mapengine.runtime import InputError, ParityError
from mapengine.runtime.errors import ImageSizeError

from ...refusals import refused
from ...test_layout import BLOCK
from .oracle import SIZE, Oracle, changed, rigid, sample_scene

SCENE = sample_scene()
BEST_AT_ONE = ("depth_inliers_103", "rotation_auc_5", "translation_auc_5", "pose_auc_5", "mask_iou")
POSE_METRICS = {"rotation_degrees", "rotation_auc_5", "translation_auc_5", "pose_auc_5"}


def metrics_of(evaluation: Evaluation, name: str = "image-only-4") -> Any:
    return next(result for result in evaluation.tasks if result.name == name).metrics


def missing(values: Any) -> set[str]:
    return {key for key, value in values.items() if value is None}


@pytest.mark.slow
def test_the_truth_has_no_error_in_any_task() -> None:
    evaluation = evaluate(Oracle(SCENE), [SCENE])
    assert [result.name for result in evaluation.tasks] == [task.name for task in TASKS]
    for result in evaluation.tasks:
        absent = POSE_METRICS | {"ate"} if result.views == 1 else {"ate"} if result.views == 2 else set()
        assert missing(result.metrics) == absent, result.name
        for key, value in result.metrics.items():
            if value is not None:
                best = 1 if key in BEST_AT_ONE else 0
                assert value == pytest.approx(best, abs=1e-4), f"{result.name}: {key}"


def test_the_truth_of_a_rendered_scene_has_no_error() -> None:
    scene = render_scene(7, views=4, width=SIZE[0], height=SIZE[1])
    values = metrics_of(evaluate(Oracle(scene), [scene], tasks=["image-only-4"]))
    for key, value in values.items():
        assert value == pytest.approx(1 if key in BEST_AT_ONE else 0, abs=1e-4), key


def test_scale_and_frame_matter_only_where_they_should() -> None:
    oracle = Oracle(SCENE, scale=1.5, frame=rigid(1, 50, 3, 2, 1))
    values = metrics_of(evaluate(oracle, [SCENE], tasks=["image-only-4"]))
    assert values["metric_depth_abs_rel"] == pytest.approx(0.5)
    assert values["metric_scale_abs_rel"] == pytest.approx(0.5)
    for key, value in values.items():
        if not key.startswith("metric"):
            assert value == pytest.approx(1 if key in BEST_AT_ONE else 0, abs=1e-4), key


def test_a_turned_view_shows_in_its_rotation() -> None:
    evaluation = evaluate(Oracle(SCENE, turned=3.5), [SCENE], tasks=["image-only-2", "image-only-4"])
    assert metrics_of(evaluation, "image-only-2")["rotation_degrees"] == pytest.approx(3.5, abs=1e-4)
    assert metrics_of(evaluation, "image-only-2")["rotation_auc_5"] == pytest.approx(2 / 5)  # below 4 and 5 degrees
    # Three of six pairs.
    assert metrics_of(evaluation)["rotation_auc_5"] == pytest.approx((3 * 0.5 + 2 * 1) / 5)
    assert metrics_of(evaluation)["depth_abs_rel"] == pytest.approx(0, abs=1e-6)
    assert metrics_of(evaluation)["points_abs_rel"] > 0.001


def test_predictions_are_asked_for_unmasked_and_in_full_precision() -> None:
    class Recorder(Oracle):
        options: Any = None

        def infer(self, views: Any, *args: Any, **options: Any) -> Any:
            self.options = options
            return super().infer(views, *args, **options)

    recorder = Recorder(SCENE)
    evaluate(recorder, [SCENE], tasks=["depth"])
    assert recorder.options == {"use_amp": False, "apply_mask": False}
    (prepared,) = recorder.calls
    assert all(geometry is not None and geometry.depth is not None for geometry in prepared.geometry)


def test_tensors_count_as_arrays() -> None:
    class InTorch(Oracle):
        def infer(self, *args: Any, **options: Any) -> Any:
            return [{k: torch.from_numpy(v) for k, v in p.items()} for p in super().infer(*args, **options)]

    one, two = (evaluate(kind(SCENE, 1.2), [SCENE], tasks=["image-only-4"]) for kind in (Oracle, InTorch))
    assert one == two


def test_the_baseline_is_what_it_says() -> None:
    views = task_views(TASKS[2], SCENE)
    predictions = ConstantDepth().infer(views, apply_mask=False)
    for prediction in predictions:
        np.testing.assert_allclose(prediction["depth_z"], CONSTANT_DEPTH, rtol=1e-6)
        np.testing.assert_array_equal(prediction["camera_poses"][0], np.eye(4))
        assert prediction["non_ambiguous_mask"].all()
        across = math.degrees(2 * math.atan(SIZE[0] / 2 / float(prediction["intrinsics"][0, 0, 0])))
        assert across == pytest.approx(FIELD_OF_VIEW, abs=1e-3)
    values = score(predictions, Truth.of(SCENE).first(4)).values
    true = SCENE.depth_z[:4]
    valid = true > 0
    expected = np.mean([np.mean(abs(CONSTANT_DEPTH - d[v]) / d[v]) for d, v in zip(true, valid, strict=True)])
    assert values["metric_depth_abs_rel"] == pytest.approx(expected, rel=1e-5)
    assert values["mask_iou"] == pytest.approx(valid.mean())
    assert values["translation_auc_5"] == 0
    positions = SCENE.poses[:4, :3, 3]
    spread = np.sqrt(np.mean(np.sum((positions - positions.mean(axis=0)) ** 2, axis=1)))
    assert values["ate"] == pytest.approx(spread, rel=1e-5)


@pytest.mark.slow
def test_the_constant_is_the_mean_depth_of_training_scenes() -> None:
    scenes = [render_scene(seed, views=2, width=42, height=28) for seed in range(24)]
    mean = np.mean([scene.depth_z[scene.depth_z > 0].mean() for scene in scenes])
    assert mean == pytest.approx(CONSTANT_DEPTH, rel=0.25)


@pytest.mark.slow
def test_the_baseline_stands_beside_every_number_of_views() -> None:
    evaluation = evaluate(ConstantDepth(), [SCENE, sample_scene(4, seed=1)])
    assert [(result.views, result.scenes) for result in evaluation.baseline] == [(1, 2), (2, 2), (4, 2), (8, 1)]
    baseline = {result.views: result.metrics for result in evaluation.baseline}
    for result in evaluation.tasks:
        # It does not look at what it is given.
        assert result.metrics == baseline[result.views], result.name


def test_means_and_the_median_over_all_pairs() -> None:
    scenes = [
        score(Oracle(SCENE, scale=s, turned=t).forward(4), Truth.of(SCENE).first(4)) for s, t in ((1, 2), (1.4, 8))
    ]
    values = aggregate(scenes)
    assert values["metric_depth_abs_rel"] == pytest.approx(0.2)
    pairs = np.concatenate([entry.rotation_errors for entry in scenes])
    assert sorted(pairs) == pytest.approx([0] * 6 + [2] * 3 + [8] * 3, abs=1e-4)
    assert values["rotation_degrees"] == pytest.approx(1, abs=1e-4)
    assert missing(aggregate([])) == {metric.key for metric in METRICS}


@pytest.mark.slow
def test_rendered_scenes_are_the_same_every_time() -> None:
    options: Any = {"size": (42, 28), "tasks": ["image-only-1", "mixed"]}
    one = evaluate(ConstantDepth(), 3, **options)
    assert one == evaluate(ConstantDepth(), 3, **options)
    assert one.seed == HELD_OUT_SEED
    assert (one.scenes, one.size) == (3, (42, 28))
    assert one != evaluate(ConstantDepth(), 3, seed=HELD_OUT_SEED + 1, **options)
    own = [render_scene(HELD_OUT_SEED + i, views=4, width=42, height=28) for i in range(3)]
    given = evaluate(ConstantDepth(), own, tasks=options["tasks"])
    assert given.tasks == one.tasks
    assert given.seed is None


def test_scenes_of_the_training_warn() -> None:
    with pytest.warns(UserWarning, match="training"):
        evaluate(ConstantDepth(), 1, seed=HELD_OUT_SEED - 1, size=(42, 28), tasks=["image-only-1"])


def test_progress() -> None:
    calls: list[tuple[int, int, str]] = []
    evaluate(ConstantDepth(), [SCENE, SCENE], tasks=["depth", "all"], progress=lambda *call: calls.append(call))
    assert calls == [(1, 4, "depth"), (2, 4, "all"), (3, 4, "depth"), (4, 4, "all")]


def test_json_and_the_table_show_the_same() -> None:
    evaluation = evaluate(Oracle(SCENE, scale=2), [SCENE], tasks=["image-only-1", "image-only-4"])
    document = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    assert document == evaluation.to_json()
    assert document["size"] == "56x42"
    assert document["results"]["image-only-1"]["metrics"]["ate"] is None
    assert document["results"]["image-only-4"]["inputs"] == "images"
    assert set(document["baseline"]) == {"1", "4"}
    lines = markdown_table(document).splitlines()
    assert all(metric.title in lines[0] for metric in METRICS)
    rows = [line.strip("| ").split(" | ") for line in lines[2:6]]
    assert [row[0] for row in rows] == ["`image-only-1`", "*constant depth*", "`image-only-4`", "*constant depth*"]
    metric_depth = lines[0].strip("| ").split(" | ").index("metric depth AbsRel")
    assert [rows[0][metric_depth], rows[2][metric_depth]] == ["1.000", "1.000"]
    assert rows[0].count("-") == 5
    assert "1 recorded scene at 56x42" in lines[-1]


def without_depth() -> Any:
    return changed(SCENE, depth_z=np.zeros_like(SCENE.depth_z))


def with_nan() -> Any:
    depth = SCENE.depth_z.copy()
    depth[1, 20, 20] = np.nan
    return changed(SCENE, depth_z=depth)


@pytest.mark.parametrize(
    ("scene", "words"),
    [
        (with_nan, "scene 0|view 1|depth_z|NaN"),
        (without_depth, "scene 0|no depth"),
        (lambda: changed(SCENE, images=SCENE.images / 255), "scene 0|images|float64"),
        (lambda: changed(SCENE, images=SCENE.images[0]), "scene 0|images"),
        (lambda: changed(SCENE, poses=SCENE.poses[:3]), "scene 0|poses|(8, 4, 4)"),
        (lambda: changed(SCENE, poses=np.zeros((8, 4, 4))), "scene 0|view 0|camera_poses"),
        (lambda: changed(SCENE, intrinsics=-SCENE.intrinsics), "scene 0|view 0|intrinsics"),
        (lambda: changed(SCENE, mask=SCENE.mask[:, 1:]), "scene 0|mask"),  # type: ignore[index]
    ],
)
def test_scenes_that_cannot_be_right(scene: Any, words: str) -> None:
    refused(InputError, words, lambda: evaluate(ConstantDepth(), [scene()]))


def test_requests_that_cannot_be_met() -> None:
    small = sample_scene(1, size=(50, 42))
    refused(ImageSizeError, "scene 0|50", lambda: evaluate(ConstantDepth(), [small]))
    refused(ImageSizeError, "100x112|98x112", lambda: evaluate(ConstantDepth(), 1, size=(100, 112)))
    refused(InputError, "28|14x14", lambda: evaluate(ConstantDepth(), 1, size=(14, 14)))  # from the thread
    refused(InputError, "at least 1", lambda: evaluate(ConstantDepth(), 0))
    refused(InputError, "seed", lambda: evaluate(ConstantDepth(), 1, seed=-1))
    refused(InputError, "no scene", lambda: evaluate(ConstantDepth(), []))
    one = sample_scene(1)
    refused(InputError, "calibrated|4 views|1", lambda: evaluate(ConstantDepth(), [one], tasks=["calibrated"]))
    assert [result.name for result in evaluate(ConstantDepth(), [one]).tasks] == ["image-only-1"]


def test_a_first_view_without_depth_does_not_count_on_its_own() -> None:
    depth = SCENE.depth_z.copy()
    depth[0] = 0
    scene = changed(SCENE, depth_z=depth, mask=depth > 0)
    evaluation = evaluate(Oracle(scene), [scene], tasks=["image-only-1", "image-only-2"])
    assert [result.scenes for result in evaluation.tasks] == [0, 1]
    assert missing(evaluation.tasks[0].metrics) == {metric.key for metric in METRICS}
    assert metrics_of(evaluation, "image-only-2")["depth_abs_rel"] == pytest.approx(0, abs=1e-6)


def test_predictions_that_are_broken() -> None:
    class Broken(ConstantDepth):
        def infer(self, *args: Any, **options: Any) -> Any:
            predictions = super().infer(*args, **options)
            predictions[2]["pts3d"][0, 3, 3, 1] = np.nan
            return predictions

    refused(ParityError, "scene 0, all|pts3d|view 2", lambda: evaluate(Broken(), [SCENE], tasks=["all"]))
    truth = Truth.of(SCENE)
    predictions = ConstantDepth().infer(task_views(TASKS[2], SCENE), apply_mask=False)
    refused(InputError, "4 predictions|8 views", lambda: score(predictions, truth))
    cut = [{**p, "depth_z": p["depth_z"][:, 1:]} for p in predictions]
    refused(InputError, "depth_z|view 0", lambda: score(cut, truth.first(4)))


@pytest.mark.slow
def test_it_works_without_torch() -> None:
    script = (
        "from mapengine.calibration.evaluation import ConstantDepth, evaluate\n"
        "evaluation = evaluate(ConstantDepth(), 1, size=(42, 28), tasks=['mixed'])\n"
        "assert not {'torch', 'onnx'} & set(sys.modules)\nprint(evaluation.scenes)"
    )
    result = subprocess.run([sys.executable, "-c", BLOCK + script], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, "1"), result.stderr
