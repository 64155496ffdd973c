"""The attention kernels in plain NumPy, with their rounding and their choice of keys.

Each follows the plain PyTorch twin of its kernel (``mapengine.kernels``) step by step; it needs neither PyTorch nor
Triton, so that a device that compiles a bundle knows what a kernel costs it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from mapengine.kernels.tuning import (
    E4M3_MAX,
    FP8_UNIT,
    KEY_BLOCK,
    MINIMUM_SHARE,
    QUERY_BLOCK,
    QUERY_GROUP,
    SMALLEST,
    least_blocks,
)
from mapengine.runtime.bundle.kernel_attention import KernelAttention

Array = NDArray[np.float32]

_TYPES: dict[str, Any] = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def exact_attention(entry: KernelAttention, tensors: Mapping[str, NDArray[Any]]) -> Array:
    """Compute softmax(Q K^T / sqrt(D)) V in float32.

    Args:
        entry: which tensors it is of.
        tensors: queries, keys and values, as :class:`mapengine.runtime.bundle.kernel_attention.KernelAttention`
            describes them, in any floating type.

    Returns:
        (1, L, H * D) float32 that holds numbers of the type of ``entry``.
    """
    query, key, value = _heads(entry, tensors)
    return _joined(entry, _softmax(_scores(query, key)) @ value)


def twin_attention(entry: KernelAttention, tensors: Mapping[str, NDArray[Any]], view_tokens: int) -> Array:
    """Compute what the kernel of ``entry`` computes, for views of ``view_tokens`` tokens; otherwise as
    :func:`exact_attention`."""
    query, key, value = _heads(entry, tensors)
    kind = entry.traits
    scores = _int8_scores(query, key) if kind.int8 else _scores(query, key)
    if entry.threshold is not None:
        kept = select_blocks(query, key, entry.threshold, view_tokens, entry.extra_tokens)
        length = query.shape[1]
        pairs = kept.repeat(QUERY_BLOCK, 1)[:, :length].repeat(KEY_BLOCK, 2)[:, :, :length]
        scores = np.where(pairs, scores, -np.inf).astype(np.float32)
    if not kind.fp8:
        return _joined(entry, _rounded(entry, _softmax(scores)) @ value)
    scale = np.maximum(np.abs(value).max(1, keepdims=True), SMALLEST) / E4M3_MAX  # (H, 1, D)
    levels = _e4m3(np.clip(value / scale, -E4M3_MAX, E4M3_MAX))
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    out = _e4m3(weights * FP8_UNIT) / FP8_UNIT @ levels
    return _joined(entry, out / weights.sum(-1, keepdims=True) * scale)


def select_blocks(
    query: Array, key: Array, threshold: float, view_tokens: int, extra_tokens: int, minimum: float = MINIMUM_SHARE
) -> NDArray[np.bool_]:
    """Select the blocks of keys that each block of queries attends to: (H, L, D) queries and keys -> (H, Nq, Nk).

    Args:
        threshold: share of the mass of the pooled softmax to keep. view_tokens: tokens per view. extra_tokens: class
            tokens at the end of each view. minimum: least share of the key blocks.
    """
    heads, length, dim = query.shape
    key_blocks = -(-length // KEY_BLOCK)
    special = np.zeros(key_blocks * KEY_BLOCK, np.bool_)  # the reference view, class tokens, the scale token
    special[:view_tokens] = special[length - 1] = True
    for index in range(extra_tokens):
        special[view_tokens - 1 - index : length : view_tokens] = True
    always = special.reshape(key_blocks, KEY_BLOCK).any(1)  # (Nk,)
    pooled = _pooled(query, QUERY_BLOCK)  # (H, Nq, D)
    kept = np.broadcast_to(always, (heads, pooled.shape[1], key_blocks)).copy()
    if threshold >= 1 or always.all():
        return np.ones_like(kept)
    sizes = np.minimum(length - KEY_BLOCK * np.arange(key_blocks), KEY_BLOCK).astype(np.float32)
    scores = pooled @ _pooled(key, KEY_BLOCK).swapaxes(1, 2) / np.float32(math.sqrt(dim)) + np.log(sizes)
    mass = _softmax(np.where(always, -np.inf, scores))
    ranked = -np.sort(-mass, -1)
    before = ranked.cumsum(-1) - ranked  # mass of the blocks that are larger
    least = least_blocks(key_blocks, minimum)
    taken = (before < threshold) | (np.arange(key_blocks) + int(always.sum()) < least)
    smallest = np.where(taken, ranked, np.inf).min(-1, keepdims=True)
    kept |= (mass >= smallest) & ~always
    kept[:, -1] = True  # the queries of the scale token
    return kept


def _heads(entry: KernelAttention, tensors: Mapping[str, NDArray[Any]]) -> tuple[Array, Array, Array]:
    """Return queries, keys and values (H, L, D), with numbers of the type of ``entry``."""
    if entry.packed:
        parts = np.split(tensors[entry.query], 3, axis=2)
    else:
        parts = [tensors[name] for name in (entry.query, entry.key, entry.value)]
    query, key, value = (
        _rounded(entry, part[0]).reshape(-1, entry.num_heads, entry.head_dim).swapaxes(0, 1) for part in parts
    )
    return query, key, value


def _joined(entry: KernelAttention, out: NDArray[Any]) -> Array:
    """Join the heads: (H, L, D) -> (1, L, H * D), rounded to the type of ``entry``."""
    return _rounded(entry, out.swapaxes(0, 1).reshape(1, out.shape[1], -1))


def _rounded(entry: KernelAttention, x: NDArray[Any]) -> Array:
    """Round to the type of ``entry``, and back to float32."""
    return x.astype(_TYPES[entry.dtype]).astype(np.float32)


def _scores(query: Array, key: Array) -> Array:
    return query @ key.swapaxes(1, 2) / np.float32(math.sqrt(query.shape[-1]))


def _int8_scores(query: Array, key: Array) -> Array:
    """Return (H, L, L) scores, less a number per query, from INT8 products, which float32 holds exactly."""
    queries, query_scale = _int8(query, QUERY_GROUP)
    keys, key_scale = _int8(key - key.mean(1, keepdims=True), KEY_BLOCK)
    return _scores(queries, keys) * query_scale[:, :, None] * key_scale[:, None]


def _int8(x: Array, group: int) -> tuple[Array, Array]:
    """Map (H, L, D) -> whole numbers up to 127, and their scales (H, L), one per group of tokens."""
    heads, length, dim = x.shape
    padded = np.zeros((heads, -(-length // group) * group, dim), np.float32)
    padded[:, :length] = x
    parts = padded.reshape(heads, -1, group, dim)
    largest = np.maximum(np.abs(parts).max((2, 3)), np.float32(SMALLEST))  # (H, groups)
    levels = parts * (np.float32(127) / largest)[..., None, None]
    levels = np.trunc(levels + np.where(levels >= 0, np.float32(0.5), np.float32(-0.5)))
    return levels.reshape(padded.shape)[:, :length], (largest / np.float32(127)).repeat(group, 1)[:, :length]


def _e4m3(x: NDArray[Any]) -> Array:
    return x.astype(np.float32).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)


def _pooled(x: Array, block: int) -> Array:
    """Return the means of blocks of tokens: (H, L, D) -> (H, blocks, D)."""
    return np.stack([x[:, start : start + block].mean(1) for start in range(0, x.shape[1], block)], 1)


def _softmax(scores: NDArray[Any]) -> Array:
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    normalised: Array = (weights / weights.sum(-1, keepdims=True)).astype(np.float32)
    return normalised
