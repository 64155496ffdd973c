"""Which tokens are keys in a global layer that keeps a share of them: their indices, from the sizes of a call.

Source: AVGGT (arXiv 2512.02541), keys and values subsampled over patch tokens. The counts are those of
:func:`mapengine.runtime.bundle.kernel_attention.kept_keys`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mapengine.runtime.bundle.kernel_attention import kept_keys, kept_side


def key_indices(views: int, rows: int, columns: int, extra_tokens: int, share: float, device: torch.device) -> Tensor:
    """Return the indices of the kept tokens among those of all views and the scale token: (K,) int64.

    First come the patches of the reference view, then the grids of the other views, the class tokens of all views and
    the scale token. The sizes may be symbols of a trace; as one range is told apart by comparisons, nothing is empty
    when there is one view, which not every backend takes.
    """
    patches, tokens = rows * columns, rows * columns + extra_tokens
    down, across = kept_side(rows, share), kept_side(columns, share)
    number = torch.arange(kept_keys(views, rows, columns, extra_tokens, share), device=device)
    view, cell = _divided(number - patches, down * across)
    row, column = _divided(cell, across)
    place = _middle(row, rows, down) * columns + _middle(column, columns, across)
    index = torch.where(number < patches, number, (view + 1) * tokens + place)
    end = patches + (views - 1) * down * across
    if extra_tokens:
        view, extra = _divided(number - end, extra_tokens)
        index = torch.where(number < end, index, view * tokens + patches + extra)
        end = end + views * extra_tokens
    return torch.where(number < end, index, number - end + views * tokens)


def _divided(numbers: Tensor, by: int) -> tuple[Tensor, Tensor]:
    """Return quotient and rest, in whole numbers throughout: 16 bits would not hold them as floating ones."""
    quotient = torch.floor_divide(numbers, by)
    return quotient, numbers - quotient * by


def _middle(numbers: Tensor, side: int, kept: int) -> Tensor:
    """Return where along ``side`` patches the middles of ``kept`` equal parts lie, for numbers of parts."""
    return torch.floor_divide((2 * numbers + 1) * side, 2 * kept)
