"""Mean of each block of tokens: what stands for a block of queries or keys when key blocks are chosen.

Follows the pooled queries and keys of block-sparse global attention (arXiv 2509.07120, section 4) and SpargeAttention
(arXiv 2502.18137, section 3.2).

* FLOPs: B H L D additions; no matrix product.
* Traffic: the tensor is read once; 4 bytes per block and channel are written.

Layout: reads (B, L, H, D) in place. Pooled queries are (B, H, blocks, D); pooled keys (B, H, D, blocks), since the
selection reads them channel by channel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from .launch import PREPARATION
from .tiles import wide

if TYPE_CHECKING:
    from torch import Tensor


@triton.jit(do_not_specialize=["length", "heads"])
def pool_kernel(
    x,  # (B, L, H, D)
    out,  # (B, H, blocks, D) float32, or (B, H, D, blocks)
    length,  # L
    heads,  # H
    in_batch,  # strides in elements
    in_token,
    in_head,
    TRANSPOSED: tl.constexpr,
    BLOCK: tl.constexpr,
    D: tl.constexpr,
):
    """Run on the grid (ceil(L / BLOCK), B * H)."""
    block = tl.program_id(0)
    sequence = tl.program_id(1)
    first = block * BLOCK
    rows = tl.arange(0, BLOCK)
    channels = tl.arange(0, D)
    tile = x + wide(sequence // heads) * in_batch + (sequence % heads) * in_head
    tile += wide(first) * in_token + rows[:, None] * in_token + channels[None, :]
    values = tl.load(tile, mask=(first + rows < length)[:, None], other=0.0).to(tl.float32)  # (BLOCK, D)
    mean = tl.sum(values, 0) / tl.minimum(length - first, BLOCK)  # (D,)
    target = out + wide(sequence) * D * tl.num_programs(0)
    if TRANSPOSED:
        target += channels * tl.num_programs(0) + block
    else:
        target += block * D + channels
    tl.store(target, mean)


def pool(x: Tensor, block: int, transposed: bool) -> Tensor:
    """Map (B, L, H, D) -> float32 means (B, H, ceil(L / block), D), or (B, H, D, ceil(L / block))."""
    import torch

    batch, length, heads, dim = x.shape
    blocks = triton.cdiv(length, block)
    shape = (batch, heads, dim, blocks) if transposed else (batch, heads, blocks, dim)
    out = torch.empty(shape, dtype=torch.float32, device=x.device)
    pool_kernel[blocks, batch * heads](
        x, out, length, heads, *x.stride()[:3], TRANSPOSED=transposed, BLOCK=block, D=dim, **PREPARATION
    )
    return out
