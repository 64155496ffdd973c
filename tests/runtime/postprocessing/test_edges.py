"""The edge mask on surfaces whose edges are known, and its invariants."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapengine.runtime import geometry
from mapengine.runtime.postprocessing import edges

quick = settings(max_examples=25, deadline=None)


def scene(depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (H, W, 3) of a depth map (H, W) seen by a pinhole camera, and the depth in float32."""
    height, width = depth.shape
    k = np.array([[[width, 0, width / 2], [0, width, height / 2], [0, 0, 1]]])
    rays = geometry.rays_from_intrinsics(k, height, width)[0]
    points = rays / rays[..., 2:] * depth[..., None]
    return points.astype(np.float32), depth.astype(np.float32)


def everywhere(depth: np.ndarray) -> np.ndarray:
    return np.ones(depth.shape, bool)


def test_a_plane_has_no_edges() -> None:
    depth = np.full((40, 60), 2.0)
    points, depth_z = scene(depth)
    assert not edges.edge_mask(points, depth_z, everywhere(depth)).any()


def test_a_step_is_an_edge_on_both_sides_and_nowhere_else() -> None:
    depth = np.full((90, 50), 2.0)
    depth[:, 25:] = 4.0
    points, depth_z = scene(depth)
    found = edges.edge_mask(points, depth_z, everywhere(depth))
    expected = np.zeros_like(found)
    expected[:, 24:26] = True
    np.testing.assert_array_equal(found, expected)


def test_a_fold_without_a_depth_jump_is_no_edge() -> None:
    depth = 3 - np.abs(np.linspace(-1, 1, 80))[None, :].repeat(30, 0)
    points, depth_z = scene(depth)
    assert edges.normal_edges(points, everywhere(depth), 5.0).any()
    assert not edges.edge_mask(points, depth_z, everywhere(depth)).any()


def test_a_steep_plane_is_no_edge() -> None:
    # Depth runs fast, but the normal does not turn.
    height, width = 30, 40
    k = np.array([[[40.0, 0, 20], [0, 40.0, 15], [0, 0, 1]]])
    rays = geometry.rays_from_intrinsics(k, height, width)[0]
    normal = np.array([0.9, 0, -0.436])
    points = rays * (-1.0 / (rays @ normal))[..., None]
    inside = points[..., 2] > 0
    depth_z = points[..., 2].astype(np.float32)
    assert edges.depth_edges(depth_z, inside, 0.03).any()
    found = edges.edge_mask(points.astype(np.float32), depth_z, inside)
    assert not found[:, :20].any()


def test_pixels_outside_the_mask_take_no_part() -> None:
    depth = np.full((40, 40), 2.0)
    depth[18:22, 18:22] = 9.0
    points, depth_z = scene(depth)
    points[18:22, 18:22] = np.nan
    mask = everywhere(depth)
    mask[18:22, 18:22] = False
    found = edges.edge_mask(points, depth_z, mask)
    assert not found.any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_outside_the_mask_do_not_matter(value: float) -> None:
    rng = np.random.default_rng(5)
    points, depth_z = scene(2 + (rng.random((40, 50)) > 0.95))
    mask = rng.random((40, 50)) > 0.1
    expected = edges.edge_mask(points, depth_z, mask)
    assert expected.any()
    points[~mask], depth_z[~mask] = value, value
    np.testing.assert_array_equal(edges.edge_mask(points, depth_z, mask), expected)


def test_nothing_inside_the_mask_gives_nothing() -> None:
    points, depth_z = scene(np.full((20, 20), 2.0))
    assert not edges.edge_mask(points, depth_z, np.zeros((20, 20), bool)).any()


def test_zero_and_negative_depth_give_no_warning() -> None:
    depth = np.random.default_rng(0).uniform(-1, 1, (30, 30))
    depth[::3] = 0
    points, depth_z = scene(depth)
    assert edges.edge_mask(points, depth_z, everywhere(depth)).shape == (30, 30)


@pytest.mark.slow
@pytest.mark.parametrize("many", [0.0, 1.0], ids=["whole image", "around jumps"])
@pytest.mark.parametrize(("rows", "pixels"), [(1, 500), (5, 10_000), (16, 1), (31, 2000), (1000, 50_000)])
def test_the_size_of_bands_and_pieces_does_not_matter(
    many: float, rows: int, pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    depth = 2 + (rng.random((75, 66)) > 0.97) + 0.01 * rng.random((75, 66))
    points, depth_z = scene(depth)
    mask = rng.random(depth.shape) > 0.05
    expected = edges.edge_mask(points, depth_z, mask)
    whole = edges.normal_edges(points, mask, 5.0) & edges.depth_edges(depth_z, mask, 0.03) & mask
    np.testing.assert_array_equal(expected, whole)
    monkeypatch.setattr(edges, "BAND_ROWS", rows)
    monkeypatch.setattr(edges, "MANY", many)
    monkeypatch.setattr(edges, "PIECE_PIXELS", pixels)
    np.testing.assert_array_equal(edges.edge_mask(points, depth_z, mask), expected)
    assert 0 < expected.mean() < 0.9


@pytest.mark.parametrize("many", [0.0, 1.0], ids=["whole image", "around jumps"])
@pytest.mark.parametrize("bands", [1, 2])
def test_the_last_band_may_be_a_whole_one(bands: int, many: float, monkeypatch: pytest.MonkeyPatch) -> None:
    height = bands * edges.BAND_ROWS
    depth = 2 + (np.random.default_rng(4).random((height, 30)) > 0.97)
    depth[-1, 4] = 9  # an edge at the last row
    points, depth_z = scene(depth)
    monkeypatch.setattr(edges, "MANY", many)
    found = edges.edge_mask(points, depth_z, everywhere(depth))
    assert found.shape == depth.shape
    assert found[-1, 3:6].all()
    monkeypatch.setattr(edges, "BAND_ROWS", 5 * height)
    np.testing.assert_array_equal(found, edges.edge_mask(points, depth_z, everywhere(depth)))


@pytest.mark.parametrize("many", [0.0, 1.0], ids=["whole image", "around jumps"])
def test_it_does_not_matter_how_points_lie_in_memory(many: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edges, "MANY", many)
    rng = np.random.default_rng(7)
    depth = 2 + (rng.random((40, 50)) > 0.97)
    points, depth_z = scene(depth)
    expected = edges.edge_mask(points, depth_z, everywhere(depth))
    planes = np.moveaxis(points, -1, 0).copy()
    found = edges.edge_mask(np.moveaxis(planes, 0, -1), planes[2], everywhere(depth))
    assert expected.any()
    np.testing.assert_array_equal(found, expected)


@quick
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100))
def test_edges_ignore_units_and_lie_in_the_mask(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    depth = 2 + (rng.random((24, 20)) > 0.9)
    points, depth_z = scene(depth)
    mask = rng.random(depth.shape) > 0.1
    found = edges.edge_mask(points, depth_z, mask)
    assert not (found & ~mask).any()
    scale = float(2.0 ** round(np.log2(scale)))  # exact in floating point
    scaled = edges.edge_mask(points * np.float32(scale), depth_z * np.float32(scale), mask)
    # The guard of the normalisation has a unit, and its last bit can decide whether a dot product exceeds 1.
    assert (scaled != found).mean() < 0.01


@quick
@given(st.integers(0, 2**32 - 1), st.floats(1, 40), st.floats(0.01, 0.3))
def test_higher_thresholds_find_fewer_edges(seed: int, normal: float, depth_threshold: float) -> None:
    rng = np.random.default_rng(seed)
    points, depth_z = scene(rng.uniform(1, 1.3, (20, 24)))
    mask = rng.random((20, 24)) > 0.1
    low = edges.edge_mask(points, depth_z, mask, normal_threshold=normal, depth_threshold=depth_threshold)
    high = edges.edge_mask(points, depth_z, mask, normal_threshold=normal + 9, depth_threshold=1.3 * depth_threshold)
    assert not (high & ~low).any()
    assert not edges.edge_mask(points, depth_z, mask, normal_threshold=180).any()
