"""Pre-norm transformer block shared by the image encoder (DINOv2) and the aggregator.

Source: DINOv2 (Oquab et al., arXiv 2304.07193), section "Efficient implementation", and MapAnything (arXiv 2509.13414).
Tensors are (N, L, C): N sequences of L tokens with C channels.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import BlockConfig

LAYER_NORM_EPS = 1e-6
"""Every LayerNorm of MapAnything uses this epsilon."""

AttentionForm = Literal["sdpa", "mha"]
"""How a traced graph writes attention: PyTorch's scaled dot product (the ONNX opset then decides between ``Attention``
and MatMul-Softmax-MatMul), or the contrib operator ``com.microsoft::MultiHeadAttention``."""


def layer_norm(dim: int) -> nn.LayerNorm:
    """Return a LayerNorm over ``dim`` channels with the network's epsilon."""
    return nn.LayerNorm(dim, eps=LAYER_NORM_EPS)


class Attention(nn.Module):
    """Multi-head self-attention over the tokens of each sequence."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.form: AttentionForm = "sdpa"

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Map (N, L, C) -> (N, L, C).

        Args:
            x: the tokens.
            keys: indices (K,) of the tokens that are keys; all of them if None.
        """
        n, length, dim = x.shape
        qkv = self.qkv(x)
        if keys is not None:
            query, rest = qkv.split([dim, 2 * dim], dim=-1)
            key, value = rest.index_select(1, keys).split(dim, dim=-1)  # one gather for both
        if self.form == "mha":
            # The one form that ONNX Runtime's CPU, OpenVINO and TensorRT-RTX all run without holding L x L scores.
            if keys is None:
                query, key, value = qkv.split(dim, dim=-1)
            out = torch.onnx.ops.symbolic(
                "com.microsoft::MultiHeadAttention",
                (query, key, value),
                {"num_heads": self.num_heads},
                dtype=x.dtype,
                shape=(n, length, dim),
                version=1,
            )
            return self.proj(out)
        if keys is None:
            heads = qkv.reshape(n, length, 3, self.num_heads, dim // self.num_heads)
            query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)  # each (N, heads, L, head dim)
        else:
            query, key, value = (
                y.reshape(n, y.shape[1], self.num_heads, dim // self.num_heads).transpose(1, 2)
                for y in (query, key, value)
            )
        out = F.scaled_dot_product_attention(query, key, value)
        return self.proj(out.transpose(1, 2).reshape(n, length, dim))


class BlockRotation(nn.Module):
    """Multiplies blocks of channels by an orthonormal matrix, as they come out of an activation.

    A quantised network has it in front of a layer whose weight is rotated the same way (QuaRot, arXiv 2404.00456).
    """

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix, persistent=False)

    matrix: Tensor
    """(size, size)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, L, C) -> (N, L, C), C a multiple of the matrix's size."""
        n, length, dim = x.shape
        size = self.matrix.shape[0]
        return (x.reshape(n, length, dim // size, size) @ self.matrix).reshape(n, length, dim)


class Mlp(nn.Module):
    """Two linear layers with GELU (exact erf form)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.rotation: nn.Module = nn.Identity()  # a BlockRotation in some quantised networks
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, L, C) -> (N, L, C)."""
        return self.fc2(self.rotation(F.gelu(self.fc1(x))))


class SwiGlu(nn.Module):
    """Gated MLP: the first half of ``w12`` gates the second through SiLU (Shazeer, arXiv 2002.05202)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.rotation: nn.Module = nn.Identity()  # a BlockRotation in some quantised networks
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, L, C) -> (N, L, C)."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(self.rotation(F.silu(gate) * value))


class LayerScale(nn.Module):
    """Per-channel gain on a residual branch (Touvron et al., arXiv 2103.17239)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, L, C) -> (N, L, C)."""
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm block: ``x + ls1(attn(norm1(x)))`` then ``x + ls2(mlp(norm2(x)))``."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        mlp = SwiGlu if config.mlp == "swiglu" else Mlp
        self.norm1 = layer_norm(config.dim)
        self.attn = Attention(config.dim, config.num_heads)
        self.ls1 = LayerScale(config.dim) if config.layer_scale else nn.Identity()
        self.norm2 = layer_norm(config.dim)
        self.mlp = mlp(config.dim, config.mlp_hidden)
        self.ls2 = LayerScale(config.dim) if config.layer_scale else nn.Identity()

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Map (N, L, C) -> (N, L, C); ``keys`` as in :class:`Attention`."""
        x = x + self.ls1(self.attn(self.norm1(x), keys))
        return x + self.ls2(self.mlp(self.norm2(x)))
