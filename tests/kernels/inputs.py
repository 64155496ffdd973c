"""Queries, keys and values like those of the network, and the error measure of the kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mapengine.kernels.launch import split_qkv

Qkv = tuple[Tensor, Tensor, Tensor]


def random_qkv(batch: int, length: int, heads: int, dim: int, dtype: torch.dtype = torch.float16, seed: int = 0) -> Qkv:
    """Views (B, L, H, D) of one packed tensor, as a ``qkv`` layer gives them."""
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(batch, length, 3 * heads * dim, generator=generator)
    return split_qkv(qkv.to(dtype), heads)


def view_qkv(views: int, patches: int, heads: int, dim: int, dtype: torch.dtype = torch.float16) -> Qkv:
    """Global attention over views of one surface: per view ``patches`` tokens and a class token, then the scale token.

    Token i of a view shows a point of the surface that token i of another view shows too, a few places away, so
    queries find their matches in every view, as in the middle layers of the network.
    """
    generator = torch.Generator().manual_seed(1)
    positions = torch.arange(patches) / patches
    frequencies = torch.arange(1, dim // 2 + 1) / 4
    sequence = []
    for view in range(views):
        angles = 2 * torch.pi * (positions + 0.02 * view)[:, None] * frequencies
        surface = torch.cat([angles.sin(), angles.cos()], -1)  # (patches, dim)
        sequence += [surface, torch.randn(1, dim, generator=generator)]
    tokens = torch.cat([*sequence, torch.randn(1, dim, generator=generator)])  # (L, dim)
    tokens = tokens[:, None] + 0.3 * torch.randn(len(tokens), heads, dim, generator=generator)
    value = torch.randn(len(tokens), heads, dim, generator=generator)
    return split_qkv(torch.stack([2 * tokens, tokens, value], 1).flatten(1)[None].to(dtype), heads)


def _outliers(qkv: Qkv) -> Qkv:
    query, key, value = contiguous(qkv)
    key[..., 3] += 60  # a bias of a channel that all keys share
    query[..., 5] *= 30
    value[..., 7] *= 1000
    return query, key, value


def _equal_keys(qkv: Qkv) -> Qkv:
    query, key, value = contiguous(qkv)
    return query, key[:, :1].expand_as(key).contiguous(), value


def _negative_logits(qkv: Qkv) -> Qkv:
    query, key, value = contiguous(qkv)
    query[:] = 40.0
    key[:] = -40.0 - key.abs()  # every logit is below -10 000
    return query, key, value


def _one_hot(qkv: Qkv) -> Qkv:
    query, key, value = contiguous(qkv)
    return 100 * query, 100 * key, value  # one key has all of the mass; products pass the range of FP16


def _zeros(qkv: Qkv) -> Qkv:
    query, key, value = (torch.zeros_like(x) for x in qkv)
    return query, key, value


def _large_values(qkv: Qkv) -> Qkv:
    query, key, value = contiguous(qkv)
    return query, key, value.sign() * 60000.0


EXTREMES: dict[str, Callable[[Qkv], Qkv]] = {
    "outlier channels": _outliers,
    "all-equal keys": _equal_keys,
    "large negative logits": _negative_logits,
    "one key has all": _one_hot,
    "zeros": _zeros,
    "large values": _large_values,
}

LARGEST = 2741
"""Tokens of two views of the largest size: 37 x 37 patches and a class token each, and the scale token."""

SOME_BLOCKS = (0, 10, 21)
"""Blocks of 128 queries of so many tokens: the first, the one with the end of the first view, and the last, of 53."""


def of_some_blocks(tokens: Tensor) -> Tensor:
    """Return the tokens of :data:`SOME_BLOCKS` of (B, L, H, D)."""
    return torch.cat([tokens[:, 128 * block : 128 * block + 128] for block in SOME_BLOCKS], 1)


def contiguous(qkv: Qkv) -> Qkv:
    """The same numbers as three contiguous tensors."""
    query, key, value = (x.contiguous() for x in qkv)
    return query, key, value


def exact(qkv: Qkv, pairs: Tensor | None = None) -> Tensor:
    """Attention in float64, over the (B, H, L, L) ``pairs`` that are true if given: (B, L, H, D)."""
    query, key, value = (x.transpose(1, 2).double() for x in qkv)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=pairs).transpose(1, 2)


def torch_attention(qkv: Qkv) -> Tensor:
    """PyTorch's attention in the type of the tensors."""
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in qkv)).transpose(1, 2)


def errors(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """Largest and root mean square difference."""
    difference = found.double() - expected
    return float(difference.abs().max()), float(difference.square().mean().sqrt())


def check(found: Tensor, peer: Tensor, expected: Tensor) -> None:
    """``found`` is finite, and errs at most twice as much as ``peer``, the same precision in plain PyTorch."""
    assert found.dtype == peer.dtype
    assert found.shape == expected.shape
    assert found.is_contiguous()
    assert torch.isfinite(found).all()
    # Half a unit in the last place: what rounding the exact result costs.
    unit = float(expected.abs().max()) * torch.finfo(found.dtype).eps / 2
    for ours, theirs in zip(errors(found, expected), errors(peer, expected), strict=True):
        assert ours <= max(2 * theirs, unit), f"{ours:.3e} against {theirs:.3e}"
