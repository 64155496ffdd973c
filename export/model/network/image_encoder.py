"""DINOv2 image encoder: normalised images to patch features and one class token per view.

Source: DINOv2 (Oquab et al., arXiv 2304.07193) as MapAnything uses it: the v1.1 model keeps the first 24 of ViT-g's 40
blocks without the final norm, v1 keeps all of ViT-L with it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import PATCH_SIZE, ImageEncoderConfig
from .transformer import Block, layer_norm

_RESIZE_OFFSET = 0.1
"""DINOv2 adds this to the target size before it derives the scale; the whole table shifts without it."""

_CUBIC_A = -0.75
"""Free parameter of the cubic convolution kernel (Keys, 1981) that PyTorch's bicubic resize uses."""


def cubic_resize_matrix(positions: Tensor, scale: Tensor, grid: int) -> Tensor:
    """Return the matrix that resizes one axis of the positional grid by cubic convolution.

    Written as comparisons and products, because it must trace with a dynamic size, and every parser (ONNX Runtime,
    OpenVINO, TensorRT) runs these operators, while a bicubic ``Resize`` with a computed scale is refused by some.

    Args:
        positions: (n,) output indices 0..n-1, floating point.
        scale: () or (1,), output samples per grid cell.
        grid: number of grid cells.

    Returns:
        (n, grid) weights, each row sums to 1.
    """
    source = (positions + 0.5) / scale - 0.5
    base = torch.floor(source)
    t = source - base
    # Distances of the four taps to the sample point are t + 1, t, 1 - t and 2 - t.
    near = (((_CUBIC_A + 2) * t - (_CUBIC_A + 3)) * t) * t + 1
    u = 1 - t
    near_next = (((_CUBIC_A + 2) * u - (_CUBIC_A + 3)) * u) * u + 1
    far = _cubic_tail(t + 1)
    far_next = _cubic_tail(u + 1)
    cells = torch.arange(grid, device=positions.device).to(positions.dtype)
    matrix = torch.zeros_like(source)[:, None] * cells[None, :]
    for step, weight in enumerate((far, near, near_next, far_next), start=-1):
        tap = (base + step).clamp(0, grid - 1)  # taps beyond the border read the border
        matrix = matrix + weight[:, None] * (tap[:, None] == cells[None, :]).to(positions.dtype)
    return matrix


def _cubic_tail(d: Tensor) -> Tensor:
    """Evaluate Keys' kernel for distances between 1 and 2."""
    return ((_CUBIC_A * d - 5 * _CUBIC_A) * d + 8 * _CUBIC_A) * d - 4 * _CUBIC_A


class PatchEmbed(nn.Module):
    """Linear projection of 14 x 14 patches, written as a strided convolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=PATCH_SIZE, stride=PATCH_SIZE)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, 3, H, W) -> (N, C, h, w)."""
        return self.proj(images)


class DinoV2(nn.Module):
    """Vision transformer over [class token, patch tokens]."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        dim = config.block.dim
        self.grid = config.grid
        self.patch_embed = PatchEmbed(dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.grid**2, dim))
        self.blocks = nn.ModuleList(Block(config.block) for _ in range(config.depth))
        self.norm: nn.Module = layer_norm(dim) if config.final_norm else nn.Identity()

    def patch_positions(self, height: int, width: int) -> Tensor:
        """Return the positional embedding of an h x w patch grid, (h * w, C).

        The stored grid is used unchanged only for a square image of its own size; everything else is resized.
        """
        dtype = torch.promote_types(self.pos_embed.dtype, torch.float32)
        device = self.pos_embed.device
        # Zero-dimensional tensors, not Python numbers: a traced graph must compute them from the image that it gets.
        rows = torch.arange(height, device=device).to(dtype)
        columns = torch.arange(width, device=device).to(dtype)
        h, w = rows.max() + 1, columns.max() + 1
        native = (h == self.grid) & (w == self.grid)
        one = torch.ones_like(h)
        # A scale of exactly 1 makes both matrices the identity, so the stored grid passes through bit for bit.
        row_matrix = cubic_resize_matrix(rows, torch.where(native, one, (h + _RESIZE_OFFSET) / self.grid), self.grid)
        column_matrix = cubic_resize_matrix(
            columns, torch.where(native, one, (w + _RESIZE_OFFSET) / self.grid), self.grid
        )
        table = self.pos_embed[0, 1:].to(dtype)  # (grid * grid, C)
        dim = table.shape[-1]
        resized = row_matrix @ table.reshape(self.grid, self.grid * dim)  # (h, grid * C)
        resized = torch.matmul(column_matrix, resized.reshape(-1, self.grid, dim))  # (h, w, C)
        return resized.reshape(-1, dim).to(self.pos_embed.dtype)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images.

        Args:
            images: (N, 3, H, W), normalised, H and W multiples of 14.

        Returns:
            Patch features (N, h, w, C), row-major, and the class token (N, 1, C).
        """
        patches = self.patch_embed(images)
        n, dim, h, w = patches.shape
        tokens = patches.reshape(n, dim, h * w).transpose(1, 2) + self.patch_positions(h, w)
        cls_token = (self.cls_token + self.pos_embed[:, :1]).expand(n, -1, -1)
        x = torch.cat([cls_token, tokens], dim=1)  # (N, 1 + h * w, C)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return x[:, 1:].reshape(n, h, w, dim), x[:, :1]


class ImageEncoder(nn.Module):
    """Holds the vision transformer under upstream's parameter name ``encoder.model``."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.model = DinoV2(config)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`DinoV2.forward`."""
        return self.model(images)
