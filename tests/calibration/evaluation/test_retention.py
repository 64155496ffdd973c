"""What is kept of an accuracy, from figures that are small enough to do in the head."""

from __future__ import annotations

import numpy as np
import pytest

from mapengine.calibration.evaluation import METRICS, SceneScore, retention, retention_errors
from mapengine.calibration.evaluation.retention import LEAST_SHARE

FLOAT32 = {"a": {"depth_abs_rel": 0.1, "depth_inliers_103": 0.5, "ate": None}, "b": {"rotation_degrees": 2.0}}


def test_errors_and_shares_are_turned_the_right_way() -> None:
    found = {"a": {"depth_abs_rel": 0.2, "depth_inliers_103": 0.4, "ate": 1.0}, "b": {"rotation_degrees": 1.0}}
    parts = retention(found, FLOAT32)
    assert parts == {
        ("a", "depth_abs_rel"): pytest.approx(0.5),
        ("a", "depth_inliers_103"): pytest.approx(0.8),
        ("b", "rotation_degrees"): pytest.approx(2.0),
    }
    assert set(retention(FLOAT32, FLOAT32).values()) == {1.0}


def test_what_says_nothing_of_rounding_is_left_out() -> None:
    tiny = {"a": {"depth_inliers_103": LEAST_SHARE / 2, "depth_abs_rel": 0.0}}
    assert retention({"a": {"depth_inliers_103": 0.0, "depth_abs_rel": 1.0}}, tiny) == {}
    assert retention({}, FLOAT32) == {}


def test_a_lost_error_is_no_division_by_zero() -> None:
    assert retention({"b": {"rotation_degrees": 0.0}}, FLOAT32)["b", "rotation_degrees"] > 1e20


def test_every_metric_is_an_error_or_a_share() -> None:
    """Of the ones that grow with accuracy all are shares."""
    shares = {metric.key for metric in METRICS if metric.form.endswith("%")}
    assert shares == {"depth_inliers_103", "rotation_auc_5", "translation_auc_5", "pose_auc_5", "mask_iou"}


def scenes(depth: np.ndarray) -> dict[str, list[SceneScore]]:
    blank = dict.fromkeys((metric.key for metric in METRICS), None)
    return {"a": [SceneScore({**blank, "depth_abs_rel": float(value)}, np.zeros(0)) for value in depth]}


@pytest.mark.slow
def test_standard_errors_are_those_of_the_ratio_in_pairs() -> None:
    rng = np.random.default_rng(1)
    float32 = rng.uniform(0.05, 0.2, 200)
    assert retention_errors(scenes(float32 * 1.25), scenes(float32)) == {
        ("a", "depth_abs_rel"): pytest.approx(0, abs=1e-12)
    }
    found = float32 + rng.normal(0, 0.01, 200)
    error = retention_errors(scenes(found), scenes(float32))["a", "depth_abs_rel"]
    # Of a quotient of means, from the residuals of its numerator (Cochran 1977, section 6.4).
    ratio = float32.mean() / found.mean()
    expected = np.std(float32 - ratio * found) / (found.mean() * np.sqrt(200))
    assert error == pytest.approx(expected, rel=0.15)
    assert retention_errors(scenes(found), scenes(float32)) == {("a", "depth_abs_rel"): error}
    assert retention_errors(scenes(found[:3]), scenes(float32)) == {}
