"""Dense attention in FP16 or BF16 with float32 accumulation: softmax(Q K^T / sqrt(D)) V, never holding the scores.

Follows FlashAttention-2 (arXiv 2307.08691, algorithm 1): one program per block of queries and head keeps its output
block in registers and streams the keys and values past it.

* FLOPs: 4 B H L K D, and B H L K exponentials, for K keys, which are as many as queries unless some were left out.
* Traffic: queries are read and the output is written once; every block of queries reads all keys and values of its
  head, 2 B H L^2 D / block_m elements, which L2 serves when the programs of a head run side by side (they do: the
  block of queries is the fastest grid axis). DRAM sees 4 B H L D elements.

Layout: (B, L, H, D) with any strides but the last, equal for queries, keys and values. The network's ``qkv`` layer
gives (B, L, 3 * H * D) and its ``proj`` layer wants (B, L, H * D), so both are read and written in place: no
transposition, no copy, and nothing is padded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from .launch import architecture_of, check_attention
from .tiles import cast, dot, softmax_step, wide
from .tuning import tile_for

if TYPE_CHECKING:
    from torch import Tensor


@triton.jit(do_not_specialize=["length", "key_length", "heads"])
def dense_attention_kernel(
    query,  # (B, L, H, D)
    key,  # (B, K, H, D)
    value,  # (B, K, H, D)
    out,  # (B, L, H, D)
    length,  # L
    key_length,  # K
    heads,  # H
    in_batch,  # strides in elements; those of query, key and value are equal
    in_token,
    in_head,
    out_batch,
    out_token,
    out_head,
    scale,  # log2(e) / sqrt(D)
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Run on the grid (ceil(L / BLOCK_M), B * H)."""
    start_m = tl.program_id(0) * BLOCK_M
    batch = tl.program_id(1) // heads
    head = tl.program_id(1) % heads
    # 64-bit once per tile, 32-bit inside a tile: L * 3 * H * D passes 2^31 near 466 000 tokens.
    origin = wide(batch) * in_batch + head * in_head
    rows = tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_N)
    channels = tl.arange(0, D)
    row_valid = start_m + rows < length  # (M,)

    tile = query + origin + wide(start_m) * in_token
    q = tl.load(tile + rows[:, None] * in_token + channels[None, :], mask=row_valid[:, None], other=0.0)  # (M, D)
    key_tile = key + origin + columns[None, :] * in_token + channels[:, None]  # (D, N) transposed
    value_tile = value + origin + columns[:, None] * in_token + channels[None, :]  # (N, D)

    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, D], tl.float32)
    step = BLOCK_N * wide(in_token)
    blocks = key_length // BLOCK_N
    for _ in tl.range(0, blocks):
        k = tl.load(key_tile)
        v = tl.load(value_tile)
        scores = dot(q, k, tl.zeros([BLOCK_M, BLOCK_N], tl.float32))  # (M, N)
        peak, total, acc = softmax_step(scores, scale, peak, total, acc, v, False, False)
        key_tile += step
        value_tile += step
    left = key_length - blocks * BLOCK_N
    if left > 0:  # the last block of keys is not full
        valid = columns < left  # (N,)
        k = tl.load(key_tile, mask=valid[None, :], other=0.0)
        v = tl.load(value_tile, mask=valid[:, None], other=0.0)
        scores = dot(q, k, tl.zeros([BLOCK_M, BLOCK_N], tl.float32))
        scores = tl.where(valid[None, :], scores, float("-inf"))
        peak, total, acc = softmax_step(scores, scale, peak, total, acc, v, False, False)

    acc = acc / total[:, None]
    tile = out + wide(batch) * out_batch + head * out_head + wide(start_m) * out_token
    tile += rows[:, None] * out_token + channels[None, :]
    tl.store(tile, cast(acc, out.dtype.element_ty), mask=row_valid[:, None])


def dense_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute attention over (B, L, H, D) float16 or bfloat16 tensors of equal strides -> contiguous (B, L, H, D).

    Keys and values of one sequence may have another length.

    Raises:
        KernelInputError: no kernel takes these tensors.
    """
    import torch

    shape = check_attention(query, key, value)
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    tile = tile_for(architecture_of(query), shape.head_dim, "dense")
    grid = (triton.cdiv(shape.length, tile.block_m), shape.batch * shape.heads)
    dense_attention_kernel[grid](
        query,
        key,
        value,
        out,
        shape.length,
        shape.key_length,
        shape.heads,
        *shape.strides,
        *out.stride()[:3],
        shape.scale,
        D=shape.head_dim,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out
