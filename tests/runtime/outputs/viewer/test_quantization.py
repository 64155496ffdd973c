"""Points in blocks of bytes; :func:`decoded` reads them as the page does."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from mapengine.runtime.outputs.viewer.quantization import BYTES_PER_POINT, Block, confidence_ranks, quantize

GENERATOR = np.random.default_rng(0)


def decoded(block: Block) -> tuple[NDArray[np.float64], NDArray[np.uint8], NDArray[np.uint8]]:
    """Points, colours and ranks."""
    assert len(block.content) == BYTES_PER_POINT * block.count
    planes = np.frombuffer(block.content, np.uint8).reshape(BYTES_PER_POINT, -1).astype(np.int64)
    folded = (planes[0:6:2] | planes[1:6:2] << 8).T
    steps = np.cumsum((folded >> 1) ^ -(folded & 1), axis=0) % 65536
    red, green, blue, ranks = np.cumsum(planes[6:], axis=1) % 256
    colors = np.stack([red + green, green, blue + green], axis=-1) % 256
    return block.low + block.size * steps / 65535, colors.astype(np.uint8), ranks.astype(np.uint8)


def test_what_is_read_is_what_was_written() -> None:
    points = GENERATOR.normal(size=(400, 3)) * (5, 1, 20)
    colors = GENERATOR.integers(0, 256, (400, 3), np.uint8)
    ranks = GENERATOR.integers(0, 256, 400).astype(np.uint8)
    views, levels = np.repeat([0, 2], 200), np.tile([0, 1], 200).astype(np.uint8)
    blocks = list(quantize(points, colors, ranks, views, levels))
    assert [(block.level, block.view, block.count) for block in blocks] == [
        *((0, 0, 100), (0, 2, 100), (1, 0, 100), (1, 2, 100))
    ]
    for block in blocks:
        chosen = (views == block.view) & (levels == block.level)
        places, shades, rank = decoded(block)
        assert (np.abs(places - points[chosen]) <= block.size / 65535 * 0.5001).all()
        np.testing.assert_array_equal(shades, colors[chosen])
        np.testing.assert_array_equal(rank, ranks[chosen])


def test_points_far_away_cost_the_others_no_digits() -> None:
    points = GENERATOR.random((1000, 3))
    points[7] = 1e6
    zeros = np.zeros(1000, np.uint8)
    near, far = quantize(points, np.zeros((1000, 3), np.uint8), zeros, zeros, zeros)
    assert (near.count, far.count) == (999, 1)
    assert (near.size < 1.1).all()
    np.testing.assert_allclose(decoded(far)[0], points[7:8])


def test_a_surface_compresses_to_less_than_half() -> None:
    import zlib

    rows, columns = np.indices((100, 100)).reshape(2, -1)
    points = np.column_stack([columns * 0.01, rows * 0.01, 2 + 0.1 * np.sin(columns / 20)])
    shade = (128 + 100 * np.sin(rows / 30)).astype(np.uint8)
    zeros = np.zeros(len(points), np.uint8)
    (block,) = quantize(points, np.column_stack([shade] * 3), zeros, zeros, zeros)
    assert len(zlib.compress(block.content)) < 0.5 * len(block.content)


def test_ranks_say_how_many_are_less_confident() -> None:
    confidence = GENERATOR.exponential(size=10_000).astype(np.float32)
    ranks, limits = confidence_ranks(confidence)
    for rank in (1, 64, 200, 255):
        assert abs(np.mean(ranks < rank) - rank / 255) < 0.01
        assert (confidence[ranks >= rank] >= limits[rank]).all()
    assert (np.diff(limits) >= 0).all()


@pytest.mark.parametrize(
    "confidence",
    [
        GENERATOR.exponential(size=70_000),
        np.concatenate([GENERATOR.random(1_000), [1e30, -1e30, 0.0]]),
        GENERATOR.integers(0, 3, 5_000),
    ],
)
def test_every_rank_is_the_last_that_begins_at_or_below_its_value(confidence: NDArray[np.float64]) -> None:
    values = confidence.astype(np.float32)
    ranks, limits = confidence_ranks(values)
    np.testing.assert_array_equal(ranks, np.searchsorted(limits, values, side="right") - 1)


def test_equal_confidence_has_one_rank_that_is_never_hidden() -> None:
    ranks, _ = confidence_ranks(np.ones(10, np.float32))
    assert (ranks == 255).all()
    assert len(confidence_ranks(np.empty(0, np.float32))[0]) == 0
