"""From the predictions of one scene to its metrics, and from many scenes to one figure per metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapengine.runtime.errors import InputError, ParityError

from . import metrics
from .truth import Truth

Array = NDArray[Any]
Values = dict[str, float | None]


@dataclass(frozen=True)
class Metric:
    """How a metric is called and shown.

    Attributes:
        key: name in JSON.
        title: head of its column.
        form: format of a value.
    """

    key: str
    title: str
    form: str


METRICS = (
    Metric("depth_abs_rel", "depth AbsRel", ".3f"),
    Metric("depth_inliers_103", "inliers 1.03", ".1%"),
    Metric("metric_depth_abs_rel", "metric depth AbsRel", ".3f"),
    Metric("ray_degrees", "rays, degrees", ".2f"),
    Metric("rotation_degrees", "rotation, degrees", ".2f"),
    Metric("rotation_auc_5", "rotation AUC@5", ".1%"),
    Metric("translation_auc_5", "translation AUC@5", ".1%"),
    Metric("pose_auc_5", "pose AUC@5", ".1%"),
    Metric("ate", "ATE, m", ".3f"),
    Metric("points_abs_rel", "points AbsRel", ".3f"),
    Metric("metric_scale_abs_rel", "metric scale AbsRel", ".3f"),
    Metric("mask_iou", "mask IoU", ".1%"),
)
"""Every metric, in the order of the tables. None in a result means that the metric does not exist there."""


@dataclass(frozen=True, eq=False)
class SceneScore:
    """The metrics of one scene, and the rotation error of each pair of its views, (V (V - 1) / 2,) degrees."""

    values: Values
    rotation_errors: Array


def score(predictions: Sequence[Mapping[str, Any]], truth: Truth, where: str = "prediction") -> SceneScore:
    """Judge the answer of ``infer(..., apply_mask=False)`` on one scene.

    Args:
        predictions: one dictionary per view, batch 1, NumPy arrays or torch tensors.
        truth: of the same views.

    Raises:
        InputError: another number of views or another size than the truth.
        ParityError: a prediction is not finite.
    """
    found = _collect(predictions, truth, where)
    valid, views = truth.valid, len(truth.depth_z)
    depth = found["depth_z"]
    poses = metrics.in_first_view(found["camera_poses"])
    # Into the frame of the predicted view 0, as the truth is in the frame of the true one.
    first = found["camera_poses"][0]
    points = (found["pts3d"] - first[:3, 3]) @ first[:3, :3]
    aligned = depth * metrics.median_scale(depth, truth.depth_z, valid)
    rotation, translation = metrics.pair_errors(poses, truth.poses)
    values: Values = {
        "depth_abs_rel": metrics.depth_abs_rel(aligned, truth.depth_z, valid),
        "depth_inliers_103": metrics.depth_inliers(aligned, truth.depth_z, valid),
        "metric_depth_abs_rel": metrics.depth_abs_rel(depth, truth.depth_z, valid),
        "ray_degrees": metrics.ray_degrees(found["ray_directions"], truth.rays),
        "points_abs_rel": metrics.points_abs_rel(points, truth.points, valid),
        "metric_scale_abs_rel": metrics.metric_scale_abs_rel(points, truth.points, valid),
    }
    if views > 1:
        values["rotation_degrees"] = float(np.median(rotation))
        values["rotation_auc_5"] = metrics.auc(rotation)
        values["pose_auc_5"] = metrics.auc(np.fmax(rotation, translation))
        if not np.isnan(translation).all():
            values["translation_auc_5"] = metrics.auc(translation)
    if views > 2:
        values["ate"] = metrics.absolute_trajectory_error(poses[:, :3, 3], truth.poses[:, :3, 3])
    if truth.mask is not None:
        values["mask_iou"] = metrics.mask_iou(found["non_ambiguous_mask"] > 0, truth.mask)
    return SceneScore({metric.key: values.get(metric.key) for metric in METRICS}, rotation)


def aggregate(scores: Sequence[SceneScore]) -> Values:
    """Return the mean of each metric over the scenes that have it; for ``rotation_degrees`` the median over all
    pairs."""
    result: Values = {}
    for metric in METRICS:
        values = [value for entry in scores if (value := entry.values[metric.key]) is not None]
        result[metric.key] = float(np.mean(values)) if values else None
    if result["rotation_degrees"] is not None:
        result["rotation_degrees"] = float(np.median(np.concatenate([entry.rotation_errors for entry in scores])))
    return result


def _collect(predictions: Sequence[Mapping[str, Any]], truth: Truth, where: str) -> dict[str, Array]:
    """Return the arrays of all views, (V, ...) float64."""
    count, height, width = truth.depth_z.shape
    if len(predictions) != count:
        raise InputError(f"{where}: there are {len(predictions)} predictions for {count} views; give one per view")
    shapes = {
        "depth_z": (height, width, 1),
        "ray_directions": (height, width, 3),
        "pts3d": (height, width, 3),
        "camera_poses": (4, 4),
        "non_ambiguous_mask": (height, width),
    }
    result = {}
    for key, shape in shapes.items():
        arrays = []
        for index, prediction in enumerate(predictions):
            array = _as_numpy(prediction[key])
            if array.shape != (1, *shape):
                raise InputError(f"{where}: {key} of view {index} has shape {array.shape}; it must be {(1, *shape)}")
            if not np.isfinite(array).all():
                raise ParityError(
                    f"{where}: {key} of view {index} is not finite; the network or its backend is broken: compare it "
                    "with another backend or precision"
                )
            arrays.append(array[0].astype(np.float64))
        result[key] = np.stack(arrays)
    result["depth_z"] = result["depth_z"][..., 0]
    return result


def _as_numpy(value: Any) -> Array:
    """Return a NumPy array of an array, or of a torch tensor on any device."""
    return np.asarray(value.cpu() if hasattr(value, "cpu") else value)
