"""Dense attention with INT8 Q K^T, and P V in FP16, BF16 or FP8 (e4m3, from sm_89).

Follows SageAttention (arXiv 2410.02367): queries and keys come in INT8 from `quantize`, one scale per group of
tokens, so one scale per key block and one per row of a tile here; the softmax is float32. INT8 tensor cores do twice
the operations of FP16 ones. With FP8 values from `values` the second product does so as well, as in SageAttention2
(arXiv 2411.10958).

* FLOPs: 4 B H L^2 D, half of them INT8, the other half of the values' type; B H L^2 exponentials.
* Traffic: as the dense kernel with 1 byte per element of queries and keys, and of values in FP8.

Layout: queries and keys (B, H, L, D) as `quantize` writes them; FP16 values in place, (B, L, H, D) with any strides
but the last; FP8 values transposed as `values` writes them; the output (B, L, H, D).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from .errors import KernelUnavailableError
from .launch import architecture_of, check_attention
from .quantize import quantize_keys, quantize_queries
from .tiles import cast, dot, softmax_step, wide
from .tuning import FP8_FROM, QUERY_GROUP, kind_of, tile_for
from .values import quantize_values

if TYPE_CHECKING:
    from torch import Tensor


@triton.jit(do_not_specialize=["length", "key_length", "heads"])
def int8_attention_kernel(
    query,  # (B, H, L, D) int8
    key,  # (B, H, K, D) int8
    value,  # (B, K, H, D), or (B, H, D, pitch) e4m3
    query_scale,  # (B, H, ceil(L / GROUP)) float32
    key_scale,  # (B, H, ceil(K / BLOCK_N)) float32
    value_scale,  # (B, H, D) float32; unused unless VALUE_FP8
    out,  # (B, L, H, D)
    length,  # L
    key_length,  # K
    heads,  # H
    value_batch,  # strides in elements
    value_token,  # of a token, or pitch: of a channel
    value_head,
    out_batch,
    out_token,
    out_head,
    scale,  # log2(e) / sqrt(D)
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
    rows = tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_N)
    channels = tl.arange(0, D)
    row_valid = start_m + rows < length  # (M,)

    tile = query + (wide(sequence) * length + start_m) * D
    q = tl.load(tile + rows[:, None] * D + channels[None, :], mask=row_valid[:, None], other=0)  # (M, D)
    row_scale = tl.load(
        query_scale + sequence * tl.cdiv(length, GROUP) + (start_m + rows) // GROUP, mask=row_valid, other=1.0
    )
    row_scale *= scale  # (M,)
    key_tile = key + wide(sequence) * key_length * D + columns[None, :] * D + channels[:, None]  # (D, N) transposed
    value_tile = value + batch * value_batch + head * value_head  # (N, D)
    if VALUE_FP8:
        value_tile += columns[:, None] + channels[None, :] * value_token
        value_step = BLOCK_N
    else:
        value_tile += columns[:, None] * value_token + channels[None, :]
        value_step = BLOCK_N * wide(value_token)
    blocks = key_length // BLOCK_N
    scales = key_scale + sequence * tl.cdiv(key_length, BLOCK_N)

    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, D], tl.float32)
    for block in tl.range(0, blocks):
        k = tl.load(key_tile)
        v = tl.load(value_tile)
        scores = dot(q, k, tl.zeros([BLOCK_M, BLOCK_N], tl.int32)).to(tl.float32)  # (M, N)
        logit_scale = row_scale * tl.load(scales + block)
        peak, total, acc = softmax_step(scores, logit_scale, peak, total, acc, v, True, VALUE_FP8)
        key_tile += BLOCK_N * D
        value_tile += value_step
    left = key_length - blocks * BLOCK_N
    if left > 0:  # the last block of keys is not full
        valid = columns < left  # (N,)
        k = tl.load(key_tile, mask=valid[None, :], other=0)
        v = tl.load(value_tile, mask=valid[:, None], other=0.0)
        scores = dot(q, k, tl.zeros([BLOCK_M, BLOCK_N], tl.int32)).to(tl.float32)
        scores = tl.where(valid[None, :], scores, float("-inf"))  # scales are never zero: no -inf * 0
        logit_scale = row_scale * tl.load(scales + blocks)
        peak, total, acc = softmax_step(scores, logit_scale, peak, total, acc, v, True, VALUE_FP8)

    acc = acc / total[:, None]
    if VALUE_FP8:
        acc *= tl.load(value_scale + sequence * D + channels)[None, :]
    tile = out + batch * out_batch + head * out_head + wide(start_m) * out_token
    tile += rows[:, None] * out_token + channels[None, :]
    tl.store(tile, cast(acc, out.dtype.element_ty), mask=row_valid[:, None])


def check_fp8(query: Tensor) -> None:
    """Refuse FP8 values on a GPU whose tensor cores have no FP8."""
    if query.is_cuda and architecture_of(query) < FP8_FROM:
        raise KernelUnavailableError(
            f"compute capability {architecture_of(query) / 10} has no FP8 tensor cores; keep the values in 16 bits"
        )


def int8_attention(query: Tensor, key: Tensor, value: Tensor, *, fp8_values: bool = False) -> Tensor:
    """Compute attention over (B, L, H, D) float16 or bfloat16 tensors of equal strides -> contiguous (B, L, H, D).

    Keys and values of one sequence may have another length.

    Raises:
        KernelInputError: no kernel takes these tensors.
        KernelUnavailableError: FP8 values on a GPU before sm_89.
    """
    import torch

    shape = check_attention(query, key, value)
    query8, query_scale = quantize_queries(query)
    key8, key_scale = quantize_keys(key)
    value_scale, value_strides = query_scale, shape.strides
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    if fp8_values:
        check_fp8(query)
        value, value_scale = quantize_values(value)
        value_strides = (value.stride(0), value.stride(2), value.stride(1))
    tile = tile_for(architecture_of(query), shape.head_dim, kind_of(True, fp8_values))
    grid = (triton.cdiv(shape.length, tile.block_m), shape.batch * shape.heads)
    int8_attention_kernel[grid](
        query8,
        key8,
        value,
        query_scale,
        key_scale,
        value_scale,
        out,
        shape.length,
        shape.key_length,
        shape.heads,
        *value_strides,
        *out.stride()[:3],
        shape.scale,
        VALUE_FP8=fp8_values,
        D=shape.head_dim,
        GROUP=QUERY_GROUP,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out
