"""Work of the attention kernels, from their shapes alone: what a roofline needs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Work of one launch.

    Attributes:
        flops: multiplications and additions of the matrix products (two per multiply-add), whatever their type.
        exponentials: exp2 evaluations of the softmax, which run on a unit of their own.
        dram: bytes that must cross DRAM at least once: inputs and outputs.
        tiles: bytes that the programs load and store, most of which L2 serves.
    """

    flops: int
    exponentials: int
    dram: int
    tiles: int


def attention_cost(
    batch: int,
    heads: int,
    length: int,
    head_dim: int,
    *,
    block_m: int,
    blocks_kept: float = 1.0,
    score_bytes: int = 2,
    value_bytes: int = 2,
    out_bytes: int = 2,
) -> Cost:
    """Return the cost of one attention over (batch, length, heads, head_dim).

    Args:
        block_m: queries per program.
        blocks_kept: share of (query, key) pairs that is computed; 1 is dense.
        score_bytes: bytes of an element of queries and keys as the kernel reads them.
        value_bytes: bytes of an element of the values.
        out_bytes: bytes of an element of the output.
    """
    sequences = batch * heads
    pairs = round(sequences * length * length * blocks_kept)
    once = sequences * length * head_dim * (score_bytes + out_bytes)
    streamed = head_dim * (score_bytes + value_bytes)
    return Cost(
        flops=4 * pairs * head_dim,
        exponentials=pairs,
        dram=once + sequences * length * streamed,
        tiles=once + round(pairs / min(block_m, length)) * streamed,
    )
