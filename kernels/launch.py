"""Checks of tensors, and what a launch derives from them. The kernels' Python entry points are for PyTorch; an engine
launches the compiled kernels by the manifest that `mapengine.kernels.compile` writes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from .errors import KernelInputError
from .tuning import HEAD_DIMS, LOG2_E, PREPARATION_STAGES, PREPARATION_WARPS

if TYPE_CHECKING:
    from torch import Tensor

PREPARATION = {"num_warps": PREPARATION_WARPS, "num_stages": PREPARATION_STAGES}
"""How the kernels that prepare the inputs of the attention kernels are launched."""


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of one attention, and the strides in elements that queries, keys and values share."""

    batch: int
    length: int
    key_length: int
    heads: int
    head_dim: int
    strides: tuple[int, int, int]

    @property
    def scale(self) -> float:
        """Factor from a dot product to the base-2 logit."""
        return LOG2_E / math.sqrt(self.head_dim)


def split_qkv(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """View (B, L, 3 * H * D), the output of a ``qkv`` layer, as three tensors (B, L, H, D); nothing is copied."""
    if qkv.ndim != 3 or qkv.shape[-1] % (3 * heads):
        raise KernelInputError(f"qkv has the shape {tuple(qkv.shape)}; give (batch, length, 3 * {heads} * head size)")
    batch, length, width = qkv.shape
    query, key, value = qkv.view(batch, length, 3, heads, width // (3 * heads)).unbind(2)
    return query, key, value


def check_attention(query: Tensor, key: Tensor, value: Tensor) -> AttentionShape:
    """Return the shape of one attention over (B, L, H, D) tensors.

    Raises:
        KernelInputError: shapes, types, devices or strides differ, or no kernel is compiled for them.
    """
    import torch

    if query.ndim != 4 or query.shape[1] == 0 or query.shape[0] == 0:
        raise KernelInputError(f"queries have the shape {tuple(query.shape)}; give (batch, length, heads, head size)")
    batch, length, heads, head_dim = query.shape
    if head_dim not in HEAD_DIMS:
        raise KernelInputError(f"the head size is {head_dim}; the kernels have {', '.join(map(str, HEAD_DIMS))}")
    if query.dtype not in (torch.float16, torch.bfloat16):
        raise KernelInputError(f"queries are {query.dtype}; the kernels take float16 and bfloat16")
    # The keys of one sequence may be a choice of its tokens; their number does not move a token or a head.
    keys = key.shape[1] if batch == 1 and key.ndim == 4 else length
    for name, other in (("keys", key), ("values", value)):
        wanted = {"shape": torch.Size((batch, keys, heads, head_dim)), "dtype": query.dtype, "device": query.device}
        for what, value_wanted in wanted.items():
            if getattr(other, what) != value_wanted:
                raise KernelInputError(
                    f"{name} have the {what} {getattr(other, what)}, and beside these queries it must be {value_wanted}"
                )
        if other.stride()[batch == 1 :] != query.stride()[batch == 1 :]:
            raise KernelInputError(
                f"{name} have the strides {other.stride()}, queries {query.stride()}; take all three from one qkv "
                "tensor, or make all of them contiguous"
            )
    if keys == 0:
        raise KernelInputError("there are no keys; give at least one")
    if query.stride(3) != 1:
        raise KernelInputError(f"the channels of a head have the stride {query.stride(3)}; make them contiguous")
    return AttentionShape(batch, length, keys, heads, head_dim, (query.stride(0), query.stride(1), query.stride(2)))


@lru_cache
def _capability(index: int | None) -> int:
    import torch

    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


def architecture_of(tensor: Tensor) -> int:
    """Compute capability times ten of the tensor's GPU; 80 on a CPU, where Triton's interpreter runs the kernels."""
    return _capability(tensor.device.index) if tensor.is_cuda else 80
