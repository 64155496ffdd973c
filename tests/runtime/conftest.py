"""Predictions of a perfect network for the sample scene, and engines of a small random one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mapengine.calibration.data.samples import sample_views
from mapengine.runtime import Engine

from ..stage_files import change_manifest


def _room_predictions(count: int = 2, width: int = 56, height: int = 42, batch: int = 1) -> list[dict[str, Any]]:
    """What ``Engine.infer`` would return for the sample scene if the network were exact."""
    result = []
    for view in sample_views(count, width, height):
        k = view.intrinsics.astype(np.float64)
        v, u = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
        rays = np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones_like(u)], axis=-1)
        points = (rays * view.depth_z[..., None]) @ view.pose[:3, :3].T.astype(np.float64) + view.pose[:3, 3]
        mask = np.ones((height, width), dtype=bool)
        mask[:, : width // 8] = False
        edges = np.abs(np.diff(view.depth_z, axis=1, prepend=view.depth_z[:, :1]))
        sample = {
            "pts3d": points.astype(np.float32) * mask[..., None],
            "conf": (1 + 20 / (1 + view.depth_z) / (1 + 4 * edges)).astype(np.float32),
            "depth_z": view.depth_z[..., None] * mask[..., None],
            "mask": mask[..., None],
            "non_ambiguous_mask": mask,
            "intrinsics": view.intrinsics,
            "camera_poses": view.pose,
            "metric_scaling_factor": np.array([1.5], dtype=np.float32),
            "img_no_norm": view.image.astype(np.float32) / 255,
        }
        result.append({key: np.stack([value] * batch) for key, value in sample.items()})
    return result


@pytest.fixture(scope="session")
def room_predictions() -> Callable[..., list[dict[str, Any]]]:
    """Makes new predictions for ``count`` views of ``width`` x ``height`` pixels, ``batch`` equal samples."""
    return _room_predictions


@pytest.fixture
def predictions() -> list[dict[str, Any]]:
    """Two small views, new for each test."""
    return _room_predictions()


@pytest.fixture(scope="session", params=["onnxruntime", "openvino"])
def engine(request: pytest.FixtureRequest, tiny_bundle: Path) -> Engine:
    """An engine of the tiny network, on each backend in turn."""
    return Engine.load(tiny_bundle, request.param, threads=1, verify=False)


@pytest.fixture(scope="session")
def small(tiny_bundle: Path) -> Engine:
    """An engine of the tiny network on ONNX Runtime."""
    return Engine.load(tiny_bundle, "onnxruntime", threads=1, verify=False)


@pytest.fixture
def rewritten(tiny_bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a copy of the bundle whose manifest a function has changed."""

    def make(change: Callable[[dict[str, Any]], None] | None = None) -> Path:
        folder = tmp_path / "copy"
        shutil.copytree(tiny_bundle, folder)
        if change is not None:
            change_manifest(folder, change)
        return folder

    return make
