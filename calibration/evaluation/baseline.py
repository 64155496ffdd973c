"""The answer of somebody who does not look: constant depth, cameras that do not move, a usual lens.

Every figure of a network stands beside this one's: what it does not beat, it has not learned.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np

from mapengine.runtime.geometry import Array, depth_along_ray, rays_from_intrinsics
from mapengine.runtime.inference import MultiViewInference
from mapengine.runtime.inputs.prepared import PreparedViews
from mapengine.runtime.options import InferOptions, Progress

CONSTANT_DEPTH = 2.9
"""Metres: the mean depth of training scenes (seeds 0 to 399, four views each)."""

FIELD_OF_VIEW = 75.0
"""Degrees across the width of the image."""


class ConstantDepth(MultiViewInference):
    """Answers ``infer`` with ``depth_z`` = :data:`CONSTANT_DEPTH`, identity poses and a camera of 75 degrees.

    It ignores all geometry that it is given, and takes every pixel for a surface.
    """

    def __init__(self, data_norm_type: str = "dinov2") -> None:
        self.data_norm_type = data_norm_type

    def _predict(
        self, prepared: PreparedViews, options: InferOptions, progress: Progress | None, heads: Collection[str]
    ) -> list[dict[str, Array]]:
        batch, height, width = prepared.batch, prepared.height, prepared.width
        focal = width / 2 / math.tan(math.radians(FIELD_OF_VIEW / 2))
        intrinsics = np.array([[[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]]], np.float32)
        shape = (batch, height, width)
        rays = np.repeat(rays_from_intrinsics(intrinsics, height, width), batch, axis=0)
        depth = depth_along_ray(np.full(shape, CONSTANT_DEPTH, np.float32), rays)
        return [
            dict(
                ray_directions=rays,
                depth_along_ray=depth,
                confidence=np.ones(shape, np.float32),
                mask_logits=np.ones(shape, np.float32),
                cam_trans=np.zeros((batch, 3), np.float32),
                cam_quats=np.tile(np.array([0, 0, 0, 1], np.float32), (batch, 1)),
                scale=np.ones((batch, 1), np.float32),
            )
            for _ in prepared.images
        ]
