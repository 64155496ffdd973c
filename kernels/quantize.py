"""Queries and keys to INT8 with one scale per group of tokens; keys are smoothed first.

Follows SageAttention (arXiv 2410.02367, sections 4.2 and 4.3). Keys share a large bias per channel: subtracting the
mean key leaves the softmax as it is (it takes the same number from every logit of a query) and spares the bias most
of the 8 bits. Each group of tokens is scaled by its largest magnitude to [-127, 127].

* FLOPs: a few per element; no matrix product.
* Traffic: the tensor is read once (2 bytes an element) and written once (1 byte), plus 4 bytes per group and head.

Layout: reads (B, L, H, D) in place, writes (B, H, L, D), which the attention then streams head by head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from .launch import PREPARATION
from .statistics import channel_statistics
from .tiles import wide
from .tuning import KEY_BLOCK, QUERY_GROUP, SMALLEST, SPLITS

if TYPE_CHECKING:
    from torch import Tensor

_SMALLEST = tl.constexpr(SMALLEST)


@triton.jit(do_not_specialize=["length", "heads"])
def quantize_kernel(
    x,  # (B, L, H, D)
    sums,  # (B, H, SPLITS, D) float32, sums of the channels; unused unless SMOOTH
    out,  # (B, H, L, D) int8
    scales,  # (B, H, ceil(L / GROUP)) float32
    length,  # L
    heads,  # H
    in_batch,  # strides in elements
    in_token,
    in_head,
    SMOOTH: tl.constexpr,
    GROUP: tl.constexpr,
    SPLITS: tl.constexpr,
    D: tl.constexpr,
):
    """Run on the grid (ceil(L / GROUP), B * H)."""
    group = tl.program_id(0)
    sequence = tl.program_id(1)
    first = group * GROUP
    rows = tl.arange(0, GROUP)
    channels = tl.arange(0, D)
    valid = (first + rows < length)[:, None]  # (GROUP, 1)
    tile = x + wide(sequence // heads) * in_batch + (sequence % heads) * in_head
    tile += wide(first) * in_token + rows[:, None] * in_token + channels[None, :]
    values = tl.load(tile, mask=valid, other=0.0).to(tl.float32)  # (GROUP, D)
    if SMOOTH:
        parts = sums + wide(sequence) * SPLITS * D + tl.arange(0, SPLITS)[:, None] * D + channels[None, :]
        mean = tl.sum(tl.load(parts), 0) / length  # (D,)
        values = tl.where(valid, values - mean[None, :], 0.0)
    largest = tl.maximum(tl.max(tl.max(tl.abs(values), 1), 0), _SMALLEST)
    levels = values * (127.0 / largest)  # (GROUP, D) in [-127, 127]
    rounded = (levels + tl.where(levels >= 0.0, 0.5, -0.5)).to(tl.int8)  # the conversion drops the fraction
    start = wide(sequence) * length + first
    tl.store(out + start * D + rows[:, None] * D + channels[None, :], rounded, mask=valid)
    tl.store(scales + sequence * tl.num_programs(0) + group, largest / 127.0)


def _quantize(x: Tensor, group: int, sums: Tensor | None) -> tuple[Tensor, Tensor]:
    import torch

    batch, length, heads, dim = x.shape
    groups = triton.cdiv(length, group)
    out = torch.empty((batch, heads, length, dim), dtype=torch.int8, device=x.device)
    scales = torch.empty((batch, heads, groups), dtype=torch.float32, device=x.device)
    quantize_kernel[groups, batch * heads](
        x,
        scales if sums is None else sums,
        out,
        scales,
        length,
        heads,
        *x.stride()[:3],
        SMOOTH=sums is not None,
        GROUP=group,
        SPLITS=SPLITS,
        D=dim,
        **PREPARATION,
    )
    return out, scales


def quantize_queries(query: Tensor) -> tuple[Tensor, Tensor]:
    """Map (B, L, H, D) -> INT8 (B, H, L, D) and float32 scales (B, H, ceil(L / 32))."""
    return _quantize(query, QUERY_GROUP, None)


def quantize_keys(key: Tensor) -> tuple[Tensor, Tensor]:
    """Map (B, L, H, D) -> INT8 (B, H, L, D) of the keys less their mean, and float32 scales (B, H, ceil(L / 64))."""
    return _quantize(key, KEY_BLOCK, channel_statistics(key, "sum"))
