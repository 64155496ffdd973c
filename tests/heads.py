"""Plausible outputs of the heads, for tests of what follows them."""

from __future__ import annotations

import numpy as np

from mapengine.runtime import geometry

Outputs = dict[str, np.ndarray]


def make_heads(seed: int = 0, batch: int = 1, height: int = 28, width: int = 42) -> Outputs:
    """Plausible outputs of the heads."""
    rng = np.random.default_rng(seed)
    k = np.tile(np.array([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1]], np.float32), (batch, 1, 1))
    size = (batch, height, width)
    quaternion = rng.standard_normal((batch, 4))
    return {
        "ray_directions": geometry.rays_from_intrinsics(k, height, width),
        "depth_along_ray": (2 + (rng.random(size) > 0.95) + 0.01 * rng.random(size)).astype(np.float32)[..., None],
        "confidence": (1 + rng.random(size)).astype(np.float32),
        "mask_logits": (rng.standard_normal(size) + 2).astype(np.float32),
        "cam_trans": rng.standard_normal((batch, 3)).astype(np.float32),
        "cam_quats": (quaternion / np.linalg.norm(quaternion, axis=-1, keepdims=True)).astype(np.float32),
        "scale": rng.uniform(0.5, 2, (batch, 1)).astype(np.float32),
    }
