"""The work of an attention follows from its shapes."""

from __future__ import annotations

from mapengine.kernels.costs import attention_cost
from mapengine.kernels.tuning import QUERY_BLOCK


def test_dense_attention() -> None:
    cost = attention_cost(1, 24, 1370, 64, block_m=QUERY_BLOCK)
    assert cost.flops == 4 * 24 * 1370 * 1370 * 64
    assert cost.exponentials == 24 * 1370 * 1370
    assert cost.dram == 4 * 24 * 1370 * 64 * 2
    # Eleven blocks of queries, the last of 90: keys and values are read 1370 / 128 times.
    assert cost.tiles == 2 * 24 * 1370 * 64 * 2 + round(24 * 1370 * 1370 / 128) * 64 * 4


def test_types_of_8_bits_move_less() -> None:
    int8 = attention_cost(1, 24, 1370, 64, block_m=QUERY_BLOCK, score_bytes=1)
    fp8 = attention_cost(1, 24, 1370, 64, block_m=QUERY_BLOCK, score_bytes=1, value_bytes=1)
    elements = 24 * 1370 * 64
    assert int8.flops == fp8.flops == 4 * 24 * 1370 * 1370 * 64
    assert (int8.dram, fp8.dram) == (6 * elements, 5 * elements)


def test_blocks_that_are_left_out_are_not_computed() -> None:
    whole, half = (attention_cost(1, 2, 6400, 64, block_m=QUERY_BLOCK, blocks_kept=kept) for kept in (1.0, 0.5))
    assert half.flops * 2 == whole.flops == 4 * 2 * 6400 * 6400 * 64
    assert half.dram == whole.dram
