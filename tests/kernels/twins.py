"""The plain twins of the kernels: the same arithmetic in PyTorch, with all scores in memory."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mapengine.kernels.selection import Selection
from mapengine.kernels.tuning import (
    E4M3_MAX,
    FP8_UNIT,
    KEY_BLOCK,
    QUERY_BLOCK,
    QUERY_GROUP,
    SMALLEST,
    SPLITS,
    least_blocks,
)


def channel_statistics_reference(x: Tensor, what: Literal["sum", "maximum"]) -> Tensor:
    """Compute the plain twin of :func:`channel_statistics`."""
    parts = x.float().split(-(-x.shape[1] // SPLITS), dim=1)
    rows = [part.abs().amax(1) if what == "maximum" else part.sum(1) for part in parts]
    rows += [torch.zeros_like(rows[0])] * (SPLITS - len(rows))
    return torch.stack(rows, dim=2)


def pool_reference(x: Tensor, block: int, transposed: bool) -> Tensor:
    """Compute the plain twin of :func:`pool`."""
    means = torch.stack([part.mean(1) for part in x.float().split(block, dim=1)], dim=2)  # (B, H, blocks, D)
    return means.transpose(2, 3).contiguous() if transposed else means


def _quantize_reference(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Map (B, L, H, D) float32 -> INT8 (B, H, L, D), scales (B, H, groups)."""
    rows = x.transpose(1, 2)
    groups = rows.split(group, dim=2)
    largest = [part.abs().amax((2, 3)).clamp(min=SMALLEST) for part in groups]
    levels = [part * (127.0 / most)[..., None, None] for part, most in zip(groups, largest, strict=True)]
    rounded = torch.cat(levels, 2)
    rounded = torch.trunc(rounded + torch.where(rounded >= 0, 0.5, -0.5)).to(torch.int8)
    return rounded, torch.stack(largest, 2) / 127.0


def quantize_queries_reference(query: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the plain twin of :func:`quantize_queries`."""
    return _quantize_reference(query.float(), QUERY_GROUP)


def quantize_keys_reference(key: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the plain twin of :func:`quantize_keys`."""
    mean = channel_statistics_reference(key, "sum").sum(2) / key.shape[1]  # (B, H, D)
    return _quantize_reference(key.float() - mean[:, None], KEY_BLOCK)


def quantize_values_reference(value: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the plain twin of :func:`quantize_values`."""
    largest = channel_statistics_reference(value, "maximum").amax(2).clamp(min=SMALLEST)  # (B, H, D)
    scale = largest / E4M3_MAX
    levels = value.float().permute(0, 2, 3, 1) / scale[..., None]  # (B, H, D, L)
    levels = torch.nn.functional.pad(levels.clamp(-E4M3_MAX, E4M3_MAX), (0, -value.shape[1] % KEY_BLOCK))
    return levels.to(torch.float8_e4m3fn), scale


def always_kept(length: int, selection: Selection) -> Tensor:
    """Return (Nk,) bool: the key blocks that have special tokens, token by token (the plain twin of the kernel's
    arithmetic)."""
    special = torch.zeros(length, dtype=torch.bool)
    special[-1] = True
    special[: selection.view_tokens] = True
    if selection.view_tokens:
        for index in range(selection.extra_tokens):
            special[selection.view_tokens - 1 - index :: selection.view_tokens] = True
    return torch.stack([part.any() for part in special.split(KEY_BLOCK)])


def select_reference(query: Tensor, key: Tensor, selection: Selection) -> Tensor:
    """Compute the plain twin of :func:`select`, by sorting: (B, H, Nq, Nk) bool, true for kept blocks."""
    _, length, _, dim = query.shape
    pooled_query = pool_reference(query, QUERY_BLOCK, False)  # (B, H, Nq, D)
    pooled_key = pool_reference(key, KEY_BLOCK, True)  # (B, H, D, Nk)
    sizes = torch.tensor([len(part) for part in torch.arange(length).split(KEY_BLOCK)])
    scores = pooled_query @ pooled_key / dim**0.5 + sizes.log()
    kept = always_kept(length, selection)  # (Nk,)
    result = kept.expand(scores.shape).clone()
    if selection.threshold >= 1 or bool(kept.all()):
        return torch.ones_like(result)
    mass = scores.masked_fill(kept, float("-inf")).softmax(-1)
    values, _ = mass.sort(-1, descending=True)
    before = values.cumsum(-1) - values  # mass of the blocks that are larger
    rank = torch.arange(len(kept)).expand(before.shape)
    take = (before < selection.threshold) | (rank + int(kept.sum()) < least_blocks(len(kept), selection.minimum))
    smallest = values.masked_fill(~take, float("inf")).amin(-1, keepdim=True)
    result |= (mass >= smallest) & ~kept
    result[:, :, -1] = True
    return result


def dense_attention_reference(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute the plain twin: the same arithmetic types, with all scores in memory. (B, L, H, D) -> (B, L, H, D)."""
    scores = torch.einsum("blhd,bmhd->bhlm", query.float(), key.float()) / query.shape[-1] ** 0.5
    weights = scores.softmax(-1)
    return torch.einsum("bhlm,bmhd->blhd", weights.to(value.dtype).float(), value.float()).to(query.dtype)


def int8_scores_reference(query: Tensor, key: Tensor) -> Tensor:
    """Map (B, L, H, D) queries and keys -> (B, H, L, L) float32 scores, less a number per query, from INT8 products."""
    (query8, query_scale), (key8, key_scale) = quantize_queries_reference(query), quantize_keys_reference(key)
    length, keys = query.shape[1], key.shape[1]
    # Whole numbers below 2^24: the float32 product is exact.
    scores = query8.float() @ key8.float().transpose(2, 3)
    scores *= query_scale.repeat_interleave(QUERY_GROUP, 2)[:, :, :length, None]
    scores *= key_scale.repeat_interleave(KEY_BLOCK, 2)[:, :, None, :keys]
    return scores / query.shape[-1] ** 0.5


def weighted_values_reference(scores: Tensor, value: Tensor, fp8_values: bool) -> Tensor:
    """Multiply the softmax of (B, H, L, L) scores with (B, L, H, D) values, in the values' type or FP8 -> (B, L, H,
    D)."""
    if not fp8_values:
        weights = scores.softmax(-1).to(value.dtype).float()
        return torch.einsum("bhlm,bmhd->blhd", weights, value.float()).to(value.dtype)
    value8, value_scale = quantize_values_reference(value)
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    rounded = (weights * FP8_UNIT).to(torch.float8_e4m3fn).float() / FP8_UNIT
    out = torch.einsum("bhlm,bhdm->blhd", rounded, value8[..., : value.shape[1]].float())
    out = out / weights.sum(-1).transpose(1, 2)[..., None] * value_scale[:, None]
    return out.to(value.dtype)


def int8_attention_reference(query: Tensor, key: Tensor, value: Tensor, *, fp8_values: bool = False) -> Tensor:
    """Compute the plain twin: the same quantisation, with all scores in memory. (B, L, H, D) -> (B, L, H, D)."""
    return weighted_values_reference(int8_scores_reference(query, key), value, fp8_values)


def token_mask(kept: Tensor, length: int) -> Tensor:
    """Expand (B, H, Nq, Nk) kept blocks to (B, H, L, L) pairs of tokens."""
    return kept.repeat_interleave(QUERY_BLOCK, 2).repeat_interleave(KEY_BLOCK, 3)[:, :, :length, :length]


def sparse_attention_reference(
    query: Tensor, key: Tensor, value: Tensor, selection: Selection, *, int8: bool = False, fp8_values: bool = False
) -> Tensor:
    """Compute the plain twin: selection by sorting, scores that are not kept masked. (B, L, H, D) -> (B, L, H, D)."""
    if int8:
        scores = int8_scores_reference(query, key)
    else:
        scores = torch.einsum("blhd,bmhd->bhlm", query.float(), key.float()) / query.shape[-1] ** 0.5
    pairs = token_mask(select_reference(query, key, selection), query.shape[1])
    return weighted_values_reference(scores.masked_fill(~pairs, float("-inf")), value, fp8_values)
