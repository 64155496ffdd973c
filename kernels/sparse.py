"""Block-sparse attention: each block of queries attends to its list of key blocks. FP16 or BF16, or INT8 Q K^T with
FP16, BF16 or FP8 values.

Follows block-sparse global attention for multi-view transformers (arXiv 2509.07120), which needs no training;
`selection` makes the lists. The arithmetic of a tile is that of `dense` and `int8`, in the same order: with full
lists the results are theirs, bit by bit.

* FLOPs: 4 B H K M N D for K kept pairs of M = 128 queries and N = 64 keys: the dense count times the share of kept
  blocks.
* Traffic: as the dense kernels, with keys and values times the share of kept blocks, plus 2 bytes per kept block.

Layout: as `dense`, or with INT8 queries and keys as `int8`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from .errors import KernelInputError
from .int8 import check_fp8
from .launch import architecture_of, check_attention
from .quantize import quantize_keys, quantize_queries
from .selection import Selection, select
from .tiles import cast, dot, softmax_step, wide
from .tuning import QUERY_GROUP, kind_of, tile_for
from .values import quantize_values

if TYPE_CHECKING:
    from torch import Tensor


@triton.jit(do_not_specialize=["length", "heads"])
def sparse_attention_kernel(
    query,  # (B, L, H, D), or (B, H, L, D) int8
    key,  # (B, L, H, D), or (B, H, L, D) int8
    value,  # (B, L, H, D), or (B, H, D, pitch) e4m3
    query_scale,  # (B, H, ceil(L / GROUP)) float32; unused unless INT8
    key_scale,  # (B, H, ceil(L / BLOCK_N)) float32; unused unless INT8
    value_scale,  # (B, H, D) float32; unused unless VALUE_FP8
    lists,  # (B, H, Nq, Nk) int16, kept key blocks in ascending order
    counts,  # (B, H, Nq) int32, at least 1; the last key block is always among them
    out,  # (B, L, H, D)
    length,  # L
    heads,  # H
    in_batch,  # strides in elements of query and key
    in_token,
    in_head,
    value_batch,
    value_token,  # of a token, or pitch: of a channel
    value_head,
    out_batch,
    out_token,
    out_head,
    scale,  # log2(e) / sqrt(D)
    INT8: tl.constexpr,
    VALUE_FP8: tl.constexpr,
    D: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Run on the grid (ceil(L / BLOCK_M), B * H)."""
    start_m = tl.program_id(0) * BLOCK_M
    sequence = tl.program_id(1)
    batch = wide(sequence // heads)
    head = sequence % heads
    origin = batch * in_batch + head * in_head
    rows = tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_N)
    channels = tl.arange(0, D)
    row_valid = start_m + rows < length  # (M,)

    tile = query + origin + wide(start_m) * in_token
    q = tl.load(tile + rows[:, None] * in_token + channels[None, :], mask=row_valid[:, None], other=0)  # (M, D)
    scales = key_scale
    if INT8:
        row_scale = tl.load(
            query_scale + sequence * tl.cdiv(length, GROUP) + (start_m + rows) // GROUP, mask=row_valid, other=1.0
        )
        row_scale *= scale  # (M,)
        scales = key_scale + sequence * tl.cdiv(length, BLOCK_N)
    key_tile = key + origin + columns[None, :] * in_token + channels[:, None]  # (D, N) transposed
    value_tile = value + batch * value_batch + head * value_head  # (N, D)
    if VALUE_FP8:
        value_tile += columns[:, None] + channels[None, :] * value_token
        value_step = 1
    else:
        value_tile += columns[:, None] * value_token + channels[None, :]
        value_step = value_token
    blocks = tl.cdiv(length, BLOCK_N)
    row = wide(sequence) * tl.num_programs(0) + tl.program_id(0)
    kept = lists + row * blocks
    left = length % BLOCK_N
    full = tl.load(counts + row) - (left > 0).to(tl.int32)

    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, D], tl.float32)
    for index in tl.range(0, full):
        block = tl.load(kept + index).to(tl.int32)
        start_n = wide(block * BLOCK_N)
        k = tl.load(key_tile + start_n * in_token)
        v = tl.load(value_tile + start_n * value_step)
        if INT8:
            scores = dot(q, k, tl.zeros([BLOCK_M, BLOCK_N], tl.int32)).to(tl.float32)  # (M, N)
            logit_scale = row_scale * tl.load(scales + block)
        else:
            scores = dot(q, k, tl.zeros([BLOCK_M, BLOCK_N], tl.float32))
            logit_scale = scale
        peak, total, acc = softmax_step(scores, logit_scale, peak, total, acc, v, INT8, VALUE_FP8)
    if left > 0:  # the last block of keys is not full
        start_n = wide(length - left)
        valid = columns < left  # (N,)
        k = tl.load(key_tile + start_n * in_token, mask=valid[None, :], other=0)
        v = tl.load(value_tile + start_n * value_step, mask=valid[:, None], other=0.0)
        if INT8:
            scores = dot(q, k, tl.zeros([BLOCK_M, BLOCK_N], tl.int32)).to(tl.float32)
            logit_scale = row_scale * tl.load(scales + blocks - 1)
        else:
            scores = dot(q, k, tl.zeros([BLOCK_M, BLOCK_N], tl.float32))
            logit_scale = scale
        scores = tl.where(valid[None, :], scores, float("-inf"))  # scales are never zero: no -inf * 0
        peak, total, acc = softmax_step(scores, logit_scale, peak, total, acc, v, INT8, VALUE_FP8)

    acc = acc / total[:, None]
    if VALUE_FP8:
        acc *= tl.load(value_scale + sequence * D + channels)[None, :]
    tile = out + batch * out_batch + head * out_head + wide(start_m) * out_token
    tile += rows[:, None] * out_token + channels[None, :]
    tl.store(tile, cast(acc, out.dtype.element_ty), mask=row_valid[:, None])


def sparse_attention(
    query: Tensor, key: Tensor, value: Tensor, selection: Selection, *, int8: bool = False, fp8_values: bool = False
) -> tuple[Tensor, Tensor]:
    """Compute attention over (B, L, H, D) float16 or bfloat16 tensors of equal strides, on the blocks that
    ``selection`` keeps.

    Returns:
        The result, contiguous (B, L, H, D), and how many key blocks each block of queries kept, (B, H, Nq) int32.

    Raises:
        KernelInputError: no kernel takes these tensors; or FP8 values are asked for without INT8.
        KernelUnavailableError: FP8 values on a GPU before sm_89.
    """
    import torch

    shape = check_attention(query, key, value)
    if fp8_values and not int8:
        raise KernelInputError("FP8 values go with INT8 queries and keys; set int8=True as well")
    lists, counts = select(query, key, selection)
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    query_scale = key_scale = value_scale = counts  # not read
    in_strides = value_strides = shape.strides
    if int8:
        (query, query_scale), (key, key_scale) = quantize_queries(query), quantize_keys(key)
        in_strides = (query.stride(0), query.stride(2), query.stride(1))
    if fp8_values:
        check_fp8(query)
        value, value_scale = quantize_values(value)
        value_strides = (value.stride(0), value.stride(2), value.stride(1))
    tile = tile_for(architecture_of(query), shape.head_dim, kind_of(int8, fp8_values))
    grid = (triton.cdiv(shape.length, tile.block_m), shape.batch * shape.heads)
    sparse_attention_kernel[grid](
        query,
        key,
        value,
        query_scale,
        key_scale,
        value_scale,
        lists,
        counts,
        out,
        shape.length,
        shape.heads,
        *in_strides,
        *value_strides,
        *out.stride()[:3],
        shape.scale,
        INT8=int8,
        VALUE_FP8=fp8_values,
        D=shape.head_dim,
        GROUP=QUERY_GROUP,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out, counts
