"""Which blocks of keys each block of queries attends to: the fewest whose share of the pooled softmax reaches a
threshold.

Follows block-sparse global attention (arXiv 2509.07120, section 4): the softmax of pooled queries against pooled keys
estimates the mass of every block; blocks are taken from the largest down until their sum reaches ``threshold``, and
at least a share ``minimum`` of all. Special tokens are left out of that choice, since they would use up the mass
(they draw attention from everywhere): the blocks of the reference view, of the class token of every view and of the
scale token are always kept. The block of queries that has the scale token keeps everything, because the metric scale
is read from that one token. Class tokens as queries get no such right: they are in a tenth of the query blocks, and
the network does not read them in the end.

Instead of sorting, the cut is found by halving the interval of scores 32 times, each time summing the mass above it:
no storage beyond one vector, and equal blocks are kept or dropped together, so the sum never falls short.

* FLOPs: 2 B H Nq Nk D for Nq = ceil(L / 128) and Nk = ceil(L / 64): 1 / 16 384 of the dense products.
* Traffic: each program reads the pooled keys of its head from L2, 4 Nk D bytes, and writes up to 2 Nk bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import triton
import triton.language as tl

from .errors import KernelInputError
from .launch import PREPARATION
from .pooling import pool
from .tiles import wide
from .tuning import KEY_BLOCK, LIST_SIZES, LOG2_E, MINIMUM_SHARE, QUERY_BLOCK, least_blocks

if TYPE_CHECKING:
    from torch import Tensor

HALVINGS = 32
_HALVINGS = tl.constexpr(HALVINGS)


@dataclass(frozen=True)
class Selection:
    """What is kept, and where the special tokens are.

    Attributes:
        threshold: share of the mass of the pooled softmax to keep, in (0, 1]; 1 keeps every block.
        minimum: least share of the key blocks to keep, in [0, 1].
        view_tokens: tokens per view T; 0 for a sequence without views.
        extra_tokens: class tokens at the end of each view (1 in v1.1 networks, 0 in v1).
    """

    threshold: float
    minimum: float = MINIMUM_SHARE
    view_tokens: int = 0
    extra_tokens: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.threshold <= 1.0:
            raise KernelInputError(f"the sparse threshold is {self.threshold}; give a share above 0 and up to 1")
        if not 0.0 <= self.minimum <= 1.0:
            raise KernelInputError(f"the least share of key blocks is {self.minimum}; give a number from 0 to 1")
        if not 0 <= self.extra_tokens <= self.view_tokens:
            raise KernelInputError(
                f"a view cannot have {self.extra_tokens} class tokens among {self.view_tokens} tokens"
            )


@triton.jit(do_not_specialize=["length", "key_blocks", "view_tokens", "extra_tokens", "minimum"])
def select_kernel(
    query,  # (B, H, Nq, D) float32, pooled
    key,  # (B, H, D, Nk) float32, pooled
    lists,  # (B, H, Nq, Nk) int16, kept key blocks in order; the rest of a row is not written
    counts,  # (B, H, Nq) int32
    length,  # L
    key_blocks,  # Nk
    view_tokens,  # T, 0 without views
    extra_tokens,
    threshold,
    minimum,  # least number of key blocks
    scale,  # log2(e) / sqrt(D)
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SIZE: tl.constexpr,  # power of two, at least Nk
):
    """Run on the grid (Nq, B * H)."""
    block_m = tl.program_id(0)
    row = wide(tl.program_id(1)) * tl.num_programs(0) + block_m
    columns = tl.arange(0, SIZE)
    valid = columns < key_blocks
    scores = tl.zeros([SIZE], tl.float32)
    channel = key + wide(tl.program_id(1)) * D * key_blocks + columns
    for d in tl.range(0, D):
        scores += tl.load(query + row * D + d) * tl.load(channel, mask=valid, other=0.0)
        channel += key_blocks
    first = columns * BLOCK_N
    end = tl.minimum(first + BLOCK_N, length)  # one past the last token of a block
    # A block that is not full has fewer keys to give mass.
    scores = scores * scale + tl.log2(tl.maximum(end - first, 1).to(tl.float32))

    # Class tokens are the last extra_tokens of each view. A block has one if it reaches beyond the patches of the
    # view that it starts in. The block of the last token has the scale token.
    in_view = first % tl.maximum(view_tokens, 1)
    kept = (first < view_tokens) | (end == length)
    kept = kept | ((extra_tokens > 0) & (in_view + (end - first) > view_tokens - extra_tokens))
    kept = kept & valid
    open_ = valid & (kept == 0)

    top = tl.max(tl.where(open_, scores, float("-inf")), 0)
    top = tl.where(top == float("-inf"), 0.0, top)  # nothing to choose from
    mass = tl.where(open_, tl.exp2(tl.minimum(scores - top, 0.0)), 0.0)
    target = tl.sum(mass, 0) * threshold
    fixed = tl.sum(kept.to(tl.int32), 0)
    low = tl.min(tl.where(open_, scores, top), 0)
    high = top
    for _ in tl.range(0, _HALVINGS):
        middle = 0.5 * (low + high)
        above = open_ & (scores >= middle)
        enough = tl.sum(tl.where(above, mass, 0.0), 0) >= target
        enough = enough & (tl.sum(above.to(tl.int32), 0) + fixed >= minimum)
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    all_ = (threshold >= 1.0) | ((block_m + 1) * BLOCK_M >= length)
    kept = kept | (open_ & (all_ | (scores >= low)))

    kept32 = kept.to(tl.int32)
    position = tl.cumsum(kept32, 0) - 1
    tl.store(lists + row * key_blocks + position, columns.to(tl.int16), mask=kept32 > 0)
    tl.store(counts + row, tl.sum(kept32, 0))


def select(query: Tensor, key: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
    """Choose key blocks for (B, L, H, D) queries and keys.

    Returns:
        Lists (B, H, Nq, Nk) int16 of key blocks in ascending order, of which the first ``count`` are meant, and the
        counts (B, H, Nq) int32.

    Raises:
        KernelInputError: the sequence is longer than any compiled selection takes.
    """
    import torch

    batch, length, heads, dim = query.shape
    pooled_query = pool(query, QUERY_BLOCK, False)
    pooled_key = pool(key, KEY_BLOCK, True)
    query_blocks, key_blocks = pooled_query.shape[2], pooled_key.shape[3]
    size = list_size(key_blocks)
    lists = torch.empty((batch, heads, query_blocks, key_blocks), dtype=torch.int16, device=query.device)
    counts = torch.empty((batch, heads, query_blocks), dtype=torch.int32, device=query.device)
    select_kernel[query_blocks, batch * heads](
        pooled_query,
        pooled_key,
        lists,
        counts,
        length,
        key_blocks,
        selection.view_tokens,
        selection.extra_tokens,
        selection.threshold,
        least_blocks(key_blocks, selection.minimum),
        LOG2_E / math.sqrt(dim),
        D=dim,
        BLOCK_M=QUERY_BLOCK,
        BLOCK_N=KEY_BLOCK,
        SIZE=size,
        **PREPARATION,
    )
    return lists, counts


def list_size(key_blocks: int) -> int:
    """Return the smallest size of :data:`LIST_SIZES` that holds ``key_blocks``."""
    for size in LIST_SIZES:
        if key_blocks <= size:
            return size
    most = LIST_SIZES[-1] * KEY_BLOCK
    raise KernelInputError(
        f"block-sparse attention takes up to {most} tokens, not {key_blocks * KEY_BLOCK}; use fewer views"
    )
