"""Per-channel statistics of keys and values over the whole sequence, in parts: the mean of the keys, the largest
value of each channel.

SageAttention smooths keys by subtracting their mean (arXiv 2410.02367, section 4.2); SageAttention2 scales FP8 values
per channel (arXiv 2411.10958). Both need one number per channel over all tokens. A head has too few
channels to fill a GPU, so the sequence is cut into `SPLITS` parts with one program each; whoever uses the statistic
combines the parts while loading them.

* FLOPs: B H L D additions or comparisons; no matrix product.
* Traffic: the tensor is read once; 4 B H SPLITS D bytes are written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import triton
import triton.language as tl

from .launch import PREPARATION
from .tiles import wide
from .tuning import SPLITS, STATISTICS_ROWS

if TYPE_CHECKING:
    from torch import Tensor


@triton.jit(do_not_specialize=["length", "heads"])
def channel_statistics_kernel(
    x,  # (B, L, H, D)
    out,  # (B, H, SPLITS, D) float32
    length,  # L
    heads,  # H
    in_batch,  # strides in elements
    in_token,
    in_head,
    MAXIMUM: tl.constexpr,  # largest magnitudes instead of sums
    D: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Run on the grid (SPLITS, B * H)."""
    split = tl.program_id(0)
    sequence = tl.program_id(1)
    part = tl.cdiv(length, tl.num_programs(0))
    start = split * part
    end = tl.minimum(start + part, length)
    channels = tl.arange(0, D)
    rows = tl.arange(0, ROWS)
    base = x + wide(sequence // heads) * in_batch + (sequence % heads) * in_head
    result = tl.zeros([D], tl.float32)
    for first in tl.range(start, end, ROWS):
        tile = base + wide(first) * in_token + rows[:, None] * in_token + channels[None, :]
        values = tl.load(tile, mask=(first + rows < end)[:, None], other=0.0).to(tl.float32)  # (ROWS, D)
        if MAXIMUM:
            result = tl.maximum(result, tl.max(tl.abs(values), 0))
        else:
            result += tl.sum(values, 0)
    tl.store(out + (wide(sequence) * tl.num_programs(0) + split) * D + channels, result)


def channel_statistics(x: Tensor, what: Literal["sum", "maximum"]) -> Tensor:
    """Compute sums or largest magnitudes of the channels of ``SPLITS`` parts of the sequence: (B, L, H, D) -> (B, H,
    SPLITS, D) float32."""
    import torch

    batch, length, heads, dim = x.shape
    out = torch.empty((batch, heads, SPLITS, dim), dtype=torch.float32, device=x.device)
    channel_statistics_kernel[SPLITS, batch * heads](
        x,
        out,
        length,
        heads,
        *x.stride()[:3],
        MAXIMUM=what == "maximum",
        D=dim,
        ROWS=STATISTICS_ROWS,
        **PREPARATION,
    )
    return out
