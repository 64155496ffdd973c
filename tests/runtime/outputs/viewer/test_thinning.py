"""One point per voxel, and levels of detail."""

from __future__ import annotations

import numpy as np
import pytest

from mapengine.runtime.outputs.viewer.thinning import levels, thin

GENERATOR = np.random.default_rng(0)
PLANE = np.column_stack([GENERATOR.random((20_000, 2)) * 3, np.zeros(20_000)])
RANKS = GENERATOR.integers(0, 256, len(PLANE)).astype(np.uint8)


def test_few_points_stay_as_they_are() -> None:
    kept, edge = thin(PLANE, RANKS, len(PLANE))
    np.testing.assert_array_equal(kept, np.arange(len(PLANE)))
    assert edge == 0


@pytest.mark.parametrize("most", [1, 2, 100, 5_000, 19_999])
def test_at_most_so_many_stay_and_not_much_fewer(most: int) -> None:
    kept, edge = thin(PLANE, RANKS, most)
    assert 0.5 * most <= len(kept) <= most
    assert (np.diff(kept) > 0).all()
    cells = np.rint(PLANE[kept] / edge)
    assert len(np.unique(cells, axis=0)) == len(kept)


def test_the_whole_is_covered_and_the_most_confident_stay() -> None:
    kept, edge = thin(PLANE, RANKS, 1_000)
    cells = np.rint(PLANE / edge).astype(np.int64)
    best: dict[tuple[int, ...], int] = {}
    for cell, rank in zip(map(tuple, cells), RANKS, strict=True):
        best[cell] = max(best.get(cell, 0), int(rank))
    assert len(kept) >= 0.99 * len(best)  # two voxels rarely share a slot
    assert all(RANKS[index] == best[tuple(cells[index])] for index in kept)


@pytest.mark.parametrize(
    "points",
    [
        np.zeros((500, 3)),
        np.full((500, 3), 1e9),
        np.concatenate([np.zeros((499, 3)), [[1e12, 0, 0]]]),
        GENERATOR.random((500, 3)) * 1e-9,
        np.concatenate([GENERATOR.random((490, 3)), GENERATOR.random((10, 3)) * 1e8]),
    ],
)
def test_odd_clouds(points: np.ndarray) -> None:
    kept, edge = thin(points, np.zeros(len(points), np.uint8), 50)
    assert 1 <= len(kept) <= 50
    assert np.isfinite(edge)


def test_levels_are_nested() -> None:
    level, edge = levels(PLANE, RANKS, 1_000)
    kept, same = thin(PLANE, RANKS, 1_000)
    np.testing.assert_array_equal(np.flatnonzero(level == 0), kept)
    assert edge == same
    assert set(np.unique(level)) == {0, 1}
