"""Scenes with known geometry, and a predictor that knows the truth and errs as it is told."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapengine.calibration.data.samples import sample_views
from mapengine.calibration.evaluation import Task, Truth, task_views
from mapengine.runtime.geometry import matrix_to_quaternion
from mapengine.runtime.inference import MultiViewInference
from mapengine.runtime.inputs.prepared import PreparedViews
from mapengine.runtime.options import InferOptions, Progress

Array = NDArray[Any]
SIZE = (56, 42)  # width, height
SKY_ROWS = 5  # at the top of every view


@dataclass(frozen=True, eq=False)
class SampleScene:
    """Views of the sample scene whose uppermost rows count as sky."""

    images: Array
    depth_z: Array
    mask: Array | None
    intrinsics: Array
    poses: Array
    seed: int


def sample_scene(views: int = 8, seed: int = 0, size: tuple[int, int] = SIZE) -> SampleScene:
    samples = sample_views(views, *size)
    depth = np.stack([view.depth_z for view in samples])
    depth[:, :SKY_ROWS] = 0
    return SampleScene(
        np.stack([view.image for view in samples]),
        depth,
        depth > 0,
        np.stack([view.intrinsics for view in samples]),
        np.stack([view.pose for view in samples]),
        seed,
    )


def changed(scene: SampleScene, **fields: Any) -> SampleScene:
    return replace(scene, **fields)


def rotation(axis: int, degrees: float) -> Array:
    """Rotation matrix about one axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    result = np.eye(3)
    result[i, i], result[i, j], result[j, i], result[j, j] = c, -s, s, c
    return result


def rigid(axis: int, degrees: float, *position: float) -> Array:
    """A pose (4, 4)."""
    result = np.eye(4)
    result[:3, :3], result[:3, 3] = rotation(axis, degrees), position
    return result


class Oracle(MultiViewInference):
    """Answers with the truth of one scene, but

    everything is ``scale`` times as large, seen from ``frame`` instead of view 0, and view 1 is turned about its own
    axis ``turned`` degrees.
    """

    def __init__(self, scene: Any, scale: float = 1.0, frame: Array | None = None, turned: float = 0.0) -> None:
        self.data_norm_type = "dinov2"
        self.calls: list[PreparedViews] = []
        self._scene, self._truth = scene, Truth.of(scene)
        self._scale, self._turned = scale, turned
        self._frame = np.eye(4) if frame is None else frame

    def forward(self, views: int) -> list[dict[str, Array]]:
        """The answer for the first views."""
        return self.infer(task_views(Task("", views), self._scene), apply_mask=False)

    def _predict(
        self, prepared: PreparedViews, options: InferOptions, progress: Progress | None, heads: Collection[str]
    ) -> list[dict[str, Array]]:
        self.calls.append(prepared)
        truth = self._truth.first(len(prepared.images))
        result = []
        for index, (depth, rays, pose) in enumerate(zip(truth.depth_z, truth.rays, truth.poses, strict=True)):
            turn = rigid(2, self._turned if index == 1 else 0.0, 0, 0, 0)
            matrix = self._frame @ pose @ turn
            # Where there is no truth an answer is due all the same.
            along = np.where(depth > 0, depth, 1.0) / rays[..., 2]
            result.append(
                dict(
                    ray_directions=rays[None],
                    depth_along_ray=along[None, ..., None],
                    confidence=np.ones((1, *depth.shape)),
                    mask_logits=np.where(depth > 0, 1.0, -1.0)[None],
                    cam_trans=matrix[None, :3, 3],
                    cam_quats=matrix_to_quaternion(matrix[None, :3, :3]),
                    scale=np.full((1, 1), self._scale),
                )
            )
        return result
