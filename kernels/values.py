"""Values to FP8 (e4m3) with one scale per channel, transposed.

Follows SageAttention2 (arXiv 2411.10958, quantization of P and V): channels of the values differ in magnitude, so each
is scaled to the range of e4m3 over all tokens. FP8 tensor cores want both operands contiguous along the summed axis,
which for the values are the tokens: the result is stored transposed, each channel on a row of ``pitch`` tokens, a
multiple of 64. Tokens past the end are zeros, so that no Inf or NaN of an uninitialised byte meets a weight of zero.

* FLOPs: a few per element; no matrix product.
* Traffic: the tensor is read once (2 bytes an element) and written once (1 byte).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from .launch import PREPARATION
from .statistics import channel_statistics
from .tiles import cast, wide
from .tuning import E4M3_MAX, KEY_BLOCK, SMALLEST, SPLITS

if TYPE_CHECKING:
    from torch import Tensor

_E4M3_MAX = tl.constexpr(E4M3_MAX)
_SMALLEST = tl.constexpr(SMALLEST)


@triton.jit(do_not_specialize=["length", "heads"])
def quantize_values_kernel(
    value,  # (B, L, H, D)
    maxima,  # (B, H, SPLITS, D) float32, largest magnitudes of the channels
    out,  # (B, H, D, pitch) e4m3; pitch is L rounded up to a multiple of BLOCK
    scales,  # (B, H, D) float32
    length,  # L
    heads,  # H
    in_batch,  # strides in elements
    in_token,
    in_head,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
    D: tl.constexpr,
):
    """Run on the grid (ceil(L / BLOCK), B * H)."""
    block = tl.program_id(0)
    sequence = tl.program_id(1)
    first = block * BLOCK
    rows = tl.arange(0, BLOCK)
    channels = tl.arange(0, D)
    tile = value + wide(sequence // heads) * in_batch + (sequence % heads) * in_head
    tile += wide(first) * in_token + rows[:, None] * in_token + channels[None, :]
    values = tl.load(tile, mask=(first + rows < length)[:, None], other=0.0).to(tl.float32)  # (BLOCK, D)
    parts = maxima + wide(sequence) * SPLITS * D + tl.arange(0, SPLITS)[:, None] * D + channels[None, :]
    largest = tl.maximum(tl.max(tl.load(parts), 0), _SMALLEST)  # (D,)
    scale = largest / _E4M3_MAX
    # The division may round to just above the largest e4m3 number.
    levels = tl.clamp(values / scale[None, :], -_E4M3_MAX, _E4M3_MAX)
    pitch = tl.num_programs(0) * BLOCK
    row = wide(sequence) * D * pitch + first
    tl.store(out + row + channels[None, :] * pitch + rows[:, None], cast(levels, out.dtype.element_ty))
    if block == 0:
        tl.store(scales + sequence * D + channels, scale)


def quantize_values(value: Tensor) -> tuple[Tensor, Tensor]:
    """Map (B, L, H, D) -> e4m3 (B, H, D, pitch) and float32 scales (B, H, D)."""
    import torch

    batch, length, heads, dim = value.shape
    blocks = triton.cdiv(length, KEY_BLOCK)
    out = torch.empty((batch, heads, dim, blocks * KEY_BLOCK), dtype=torch.float8_e4m3fn, device=value.device)
    scales = torch.empty((batch, heads, dim), dtype=torch.float32, device=value.device)
    quantize_values_kernel[blocks, batch * heads](
        value,
        channel_statistics(value, "maximum"),
        out,
        scales,
        length,
        heads,
        *value.stride()[:3],
        BLOCK=KEY_BLOCK,
        SPLITS=SPLITS,
        D=dim,
        **PREPARATION,
    )
    return out, scales
