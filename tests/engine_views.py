"""Views of the sample scene for the engine's tests, and how predictions are compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mapengine.calibration.data.samples import sample_views
from mapengine.runtime import preprocess_inputs

SIZE = (84, 56)  # width, height
MIXES = {
    "one image": ("",),
    "images": ("", "", ""),
    "calibrated": ("k", "k"),
    "rays": ("r", ""),
    "posed": ("p", "p"),
    "posed pair": ("q", "q"),
    "depth": ("kd", "kd"),
    "all": ("kdp", "kdp", "kdp"),
    "mixed": ("p", "kd", "", "rp"),
    "not metric": ("kdpm", "kdpm"),
    "first only": ("kdp", "", ""),
}
"""What is known of each view: k intrinsics, r rays, d depth, p pose matrix, q pose pair, m not metric."""


def views_of(mix: tuple[str, ...], size: tuple[int, int] = SIZE, batch: int = 1) -> list[dict[str, Any]]:
    """Views of the sample scene with what the letters say; more samples of a batch are dimmed images of the first."""
    result = []
    for sample, letters in zip(sample_views(len(mix), width=size[0], height=size[1]), mix, strict=True):
        raw: dict[str, Any] = {"img": sample.image, "intrinsics": sample.intrinsics, "depth_z": sample.depth_z}
        (view,) = preprocess_inputs([raw], resize_mode="fixed_size", size=size)
        matrix, depth = view.pop("intrinsics"), view.pop("depth_z")
        v, u = np.meshgrid(np.arange(size[1]), np.arange(size[0]), indexing="ij")
        rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(matrix[0]).T
        known: dict[str, Any] = {}
        if "k" in letters:
            known["intrinsics"] = matrix.astype(np.float32)
        if "r" in letters:
            known["ray_directions"] = (rays / np.linalg.norm(rays, axis=-1, keepdims=True)).astype(np.float32)[None]
        if "d" in letters:
            known["depth_z"] = depth
        if "p" in letters:
            known["camera_poses"] = sample.pose[None]
        if "m" in letters:
            known["is_metric_scale"] = np.array([False])
        known = {key: np.concatenate([value] * batch) for key, value in known.items()}
        if "q" in letters:
            known["camera_poses"] = (np.tile([[0, 0.6, 0, 0.8]], (batch, 1)), np.tile(sample.pose[:3, 3], (batch, 1)))
        image = np.concatenate([view["img"] * (1 - 0.3 * i) for i in range(batch)]).astype(np.float32)
        result.append({"img": image, "data_norm_type": ["dinov2"], **known})
    return result


def in_torch(views: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def convert(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(convert(part) for part in value)
        return torch.from_numpy(value) if isinstance(value, np.ndarray) else value

    return [{key: convert(value) for key, value in view.items()} for view in views]


def same(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> bool:
    """Whether two lists of predictions are equal to the bit."""
    return all(np.array_equal(p[key], q[key]) for p, q in zip(a, b, strict=True) for key in p)


def close(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Assert that two lists of predictions differ by rounding only."""
    for got, want in zip(found, expected, strict=True):
        for key, value in want.items():
            if value.dtype != bool:
                np.testing.assert_allclose(got[key], value, rtol=1e-4, atol=1e-5 * np.abs(value).max(), err_msg=key)
