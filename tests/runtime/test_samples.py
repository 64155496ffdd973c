from __future__ import annotations

import hashlib
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mapengine.runtime.errors import InputError, OutputError
from mapengine.runtime.inputs import load_view_list, view_list_inputs
from mapengine.runtime.samples import SampleView, sample_views, write_samples


def reproject(source: SampleView, target: SampleView) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels (N, 2) and depth (N,) in ``target`` of every pixel of ``source``, in float64, and which lie inside."""
    height, width = source.depth_z.shape
    k = source.intrinsics.astype(np.float64)
    v, u = np.indices((height, width))
    rays = np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones_like(u)], axis=-1)
    world = (rays * source.depth_z[..., None]).reshape(-1, 3) @ source.pose[:3, :3].T.astype(np.float64)
    world += source.pose[:3, 3]
    camera = (world - target.pose[:3, 3]) @ target.pose[:3, :3].astype(np.float64)
    z = camera[:, 2]
    safe = np.maximum(z, 1e-6)
    xy = camera[:, :2] / safe[:, None] * [k[0, 0], k[1, 1]] + [k[0, 2], k[1, 2]]
    inside = (z > 0) & (xy[:, 0] > 1) & (xy[:, 1] > 1) & (xy[:, 0] < width - 2) & (xy[:, 1] < height - 2)
    return xy, z, inside


@cache
def three_views() -> list[SampleView]:
    return sample_views(3, 173, 131)


def planar(inverse_depth: np.ndarray) -> np.ndarray:
    """Pixels whose neighbourhood is one plane: there, and only there, inverse depth is linear in the pixels."""
    result = np.zeros(inverse_depth.shape, dtype=bool)
    centre = inverse_depth[1:-1, 1:-1]
    rows = np.abs(inverse_depth[:-2, 1:-1] - 2 * centre + inverse_depth[2:, 1:-1])
    columns = np.abs(inverse_depth[1:-1, :-2] - 2 * centre + inverse_depth[1:-1, 2:])
    result[1:-1, 1:-1] = np.maximum(rows, columns) < 1e-6
    return result


@pytest.mark.parametrize(("i", "j"), [(0, 1), (1, 0), (0, 2), (2, 1)])
def test_depth_and_poses_agree_between_views(i: int, j: int) -> None:
    views = three_views()
    xy, z, inside = reproject(views[i], views[j])
    inverse = 1 / views[j].depth_z.astype(np.float64)
    column, row = np.floor(xy[inside]).astype(int).T
    four = [(row, column), (row, column + 1), (row + 1, column), (row + 1, column + 1)]
    flat = np.logical_and.reduce([planar(inverse)[corner] for corner in four])
    a, b = (xy[inside] - np.stack([column, row], axis=-1)).T
    weights = [(1 - a) * (1 - b), a * (1 - b), (1 - a) * b, a * b]
    seen = 1 / sum(w * inverse[corner] for w, corner in zip(weights, four, strict=True))
    ratio = (z[inside] / seen)[flat]
    assert flat.mean() > 0.6
    # Either the other view sees the same point, or something nearer hides it; never something behind it.
    assert ratio.min() > 1 - 1e-3
    assert (ratio < 1 + 1e-3).mean() > 0.8


def test_views_are_cameras_that_look_at_something() -> None:
    for view in sample_views(4, 60, 44):
        assert view.image.shape == (44, 60, 3)
        assert view.image.dtype == np.uint8
        assert view.depth_z.dtype == view.intrinsics.dtype == view.pose.dtype == np.float32
        assert 1 < view.depth_z.min() < view.depth_z.max() < 9
        np.testing.assert_allclose(view.pose[:3, :3] @ view.pose[:3, :3].T, np.eye(3), atol=1e-6)
        assert np.linalg.det(view.pose[:3, :3]) == pytest.approx(1, abs=1e-5)
        assert view.image.std() > 30
        assert len(np.unique(view.image.reshape(-1, 3), axis=0)) > 500


def test_deterministic_and_quick() -> None:
    start = time.process_time()
    first = sample_views(1, 259, 196)[0]
    seconds = time.process_time() - start
    again = sample_views(1, 259, 196)[0]
    assert hashlib.sha256(first.image).digest() == hashlib.sha256(again.image).digest()
    np.testing.assert_array_equal(first.depth_z, again.depth_z)
    assert seconds < 3  # a quarter of a second on a quiet core


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3)])
def test_any_size(size: tuple[int, int]) -> None:
    view = sample_views(1, *size)[0]
    assert view.depth_z.shape == size[::-1]
    assert np.isfinite(view.depth_z).all()


def test_refuses_no_views() -> None:
    with pytest.raises(InputError, match="at least 1"):
        sample_views(0)


def test_written_samples_are_read_back(tmp_path: Path) -> None:
    images = write_samples(tmp_path / "samples", 2, 70, 56)
    views = sample_views(2, 70, 56)
    assert [path.name for path in images] == ["sample_0.png", "sample_1.png"]
    loaded, names = view_list_inputs(load_view_list(tmp_path / "samples" / "views.json"))
    assert names == ["sample_0.png", "sample_1.png"]
    for view, entry, path in zip(views, loaded, images, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), view.image)
        np.testing.assert_array_equal(np.asarray(entry["img"]), view.image)
        np.testing.assert_allclose(entry["depth_z"], view.depth_z, atol=5.1e-4)
        np.testing.assert_allclose(entry["intrinsics"], view.intrinsics, atol=1e-5)
        np.testing.assert_allclose(entry["camera_poses"], view.pose, atol=1e-7)


def test_samples_into_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    with pytest.raises(OutputError, match="not a folder"):
        write_samples(tmp_path / "x", 1, 8, 8)
    assert (tmp_path / "x").read_text() == "mine"
