"""What the attention kernels share: one step of the online softmax, and rounding that is the same everywhere.

The step is that of FlashAttention-2 (arXiv 2307.08691, algorithm 1) in base 2: exp(x) is computed as exp2(x * log2 e)
with the factor folded into the scale of the scores. Dense and block-sparse kernels call the same function on the same
tiles, so a block-sparse kernel that keeps every block gives the bits of the dense one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

from .tuning import FP8_UNIT

F = TypeVar("F", bound=Callable[..., Any])

FP8_LOG2 = tl.constexpr(math.log2(FP8_UNIT))
"""FP8 probabilities are scaled by 2 to this power, and so are their sums, so that it cancels."""


@triton.jit
def _probe() -> None:
    pass


# Triton's interpreter (TRITON_INTERPRET=1) multiplies the bit patterns of BF16 operands as integers, and loses the
# carry when a mantissa rounds up to the next power of two in a conversion to BF16 or FP8. Under it the functions
# below therefore widen operands and round by themselves, to what the hardware does; compiled kernels contain none of
# this.
INTERPRETED = tl.constexpr(not isinstance(_probe, JITFunction))


def inlined(function: F) -> F:
    """Decorate a function that kernels call. The interpreter patches the language anew at every call of a decorated
    function, which takes longer than a tile of work, so there it is called as it is."""
    return function if INTERPRETED else triton.jit(function)


@inlined
def wide(x):
    """Convert a whole number to int64: offsets pass 2^31 at a few hundred thousand tokens. Also takes what the compiler
    knows as a constant."""
    return tl.cast(x, tl.int64)


@inlined
def dot(a, b, acc):
    """Compute a @ b + acc: (M, K), (K, N), (M, N) -> (M, N); float32 accumulation, int32 for INT8 operands."""
    if INTERPRETED:
        # Exact: 8 and 16-bit operands have exact products in float32, and 128 INT8 products stay below 2^24.
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc.to(tl.float32), input_precision="ieee").to(acc.dtype)
    else:
        return tl.dot(a, b, acc, out_dtype=acc.dtype)


@inlined
def cast(x, dtype: tl.constexpr):
    """Convert float32 to ``dtype``, to the nearest, ties to even. Finite values within the range of ``dtype`` only."""
    if INTERPRETED:
        bits = x.to(tl.uint32, bitcast=True)
        if dtype == tl.bfloat16:
            bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
            x = bits.to(tl.float32, bitcast=True)
        elif dtype == tl.float8e4nv:
            bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & 0xFFF00000
            # Below 2^-6 e4m3 is subnormal with steps of 2^-9: adding 1.5 * 2^23 steps makes float32 round to them.
            subnormal = (x + 24576.0) - 24576.0
            x = tl.where(tl.abs(x) < 0.015625, subnormal, bits.to(tl.float32, bitcast=True))
    return x.to(dtype)


@inlined
def softmax_step(scores, scale, peak, total, acc, value, PER_ROW: tl.constexpr, VALUE_FP8: tl.constexpr):
    """Fold one block of keys into the running softmax.

    Args:
        scores: (M, N) float32 unscaled; -inf where there is no key.
        scale: positive factor to base-2 logits, a scalar; or with PER_ROW one for each row, (M,).
        peak: (M,) largest base-2 logit so far; -inf before the first block.
        total: (M,) sum of 2^(logit - peak) so far.
        acc: (M, D) float32 the same sum weighted by the values.
        value: (N, D) values; finite also where there is no key.

    Returns:
        (peak, total, acc) with the block.
    """
    # A positive factor does not move the maximum, so only M products are needed for it; those of the exponents are
    # one instruction with the difference.
    new_peak = tl.maximum(peak, tl.max(scores, 1) * scale)  # (M,)
    offset = new_peak - FP8_LOG2 if VALUE_FP8 else new_peak
    factor = scale[:, None] if PER_ROW else scale
    weights = tl.exp2(scores * factor - offset[:, None])  # (M, N) in [0, 1], or [0, 256], within rounding
    rescale = tl.exp2(peak - new_peak)  # (M,)
    total = total * rescale + tl.sum(weights, 1)
    acc = acc * rescale[:, None]
    if VALUE_FP8:
        # FP8 tensor cores keep 14 bits of the running sum (arXiv 2411.10958, on their FP22 accumulator). A sum of its
        # own for each block, added in float32, holds the error to that of one block. The limit keeps the compiler from
        # merging the two again.
        if INTERPRETED:
            acc += dot(cast(weights, value.dtype), value, tl.zeros_like(acc))
        else:
            acc += tl.dot(weights.to(value.dtype), value, max_num_imprecise_acc=value.shape[0])
    else:
        acc = dot(cast(weights, value.dtype), value, acc)
    return new_peak, total, acc
