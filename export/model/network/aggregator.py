"""Alternating attention over all views ("info sharing") and the metric scale that it regresses.

Source: MapAnything (arXiv 2509.13414), section "Multi-view transformer", and VGGT (arXiv 2503.11651) for the
alternation of global and frame-wise attention.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import AggregatorConfig, HeadConfig
from .kept_keys import key_indices
from .transformer import Block, layer_norm

_MIN_METRIC_SCALE = 1e-8


class AlternatingAttention(nn.Module):
    """Even blocks attend over the tokens of all views and the scale token, odd blocks within each view."""

    def __init__(self, config: AggregatorConfig, input_dim: int) -> None:
        super().__init__()
        dim = config.block.dim
        self.taps = config.taps
        self.key_shares = dict(config.key_shares)
        self.proj_embed: nn.Module = nn.Identity() if input_dim == dim else nn.Linear(input_dim, dim)
        self.self_attention_blocks = nn.ModuleList(Block(config.block) for _ in range(config.depth))
        self.norm = layer_norm(dim)
        self.view_pos_table: Tensor | None
        if config.reference_view_embedding:
            table = torch.zeros(1, dim)
            table[:, 1::2] = 1.0  # row 0 of a sinusoid table: sin 0 at even channels, cos 0 at odd ones
            self.register_buffer("view_pos_table", table)
        else:
            self.view_pos_table = None

    def forward(self, tokens: Tensor, scale_token: Tensor, rows: int, columns: int) -> tuple[list[Tensor], Tensor]:
        """Exchange information between views.

        Args:
            tokens: (B, V, T, E), the patch tokens of each view first, then its extra tokens.
            scale_token: (E,) learned token, appended once per sample.
            rows, columns: patches of each view along its sides; P is their product.

        Returns:
            Three maps (B, V, P, D): the two taps and the last block, all through the final norm; and the normalised
            scale token (B, D).
        """
        batch, views, length, _ = tokens.shape
        x = self.proj_embed(tokens)
        scale = self.proj_embed(scale_token).expand(batch, 1, -1)
        if self.view_pos_table is not None:
            is_reference = torch.arange(views, device=x.device)[None, :, None, None] == 0
            zero = torch.zeros((), dtype=x.dtype, device=x.device)
            x = x + torch.where(is_reference, self.view_pos_table.to(x.dtype), zero)
        patches = rows * columns
        keys = {
            share: key_indices(views, rows, columns, length - patches, share, x.device)
            for share in sorted(set(self.key_shares.values()))
        }
        dim = x.shape[-1]
        x = torch.cat([x.reshape(batch, views * length, dim), scale], dim=1)  # (B, V * T + 1, D)
        maps: list[Tensor] = []
        last = len(self.self_attention_blocks) - 1
        for index, block in enumerate(self.self_attention_blocks):
            if index % 2 == 0:
                share = self.key_shares.get(index)
                x = block(x, None if share is None else keys[share])
            else:
                framewise = block(x[:, :-1].reshape(batch * views, length, dim))
                x = torch.cat([framewise.reshape(batch, views * length, dim), x[:, -1:]], dim=1)
            if index in self.taps or index == last:
                patch_tokens = x[:, :-1].reshape(batch, views, length, dim)[:, :, :patches]
                maps.append(self.norm(patch_tokens))
        return maps, self.norm(x[:, -1])


class ScaleHead(nn.Module):
    """Scale token to the metric scaling factor."""

    def __init__(self, dim: int, config: HeadConfig) -> None:
        super().__init__()
        hidden = config.scale_hidden
        self.proj = nn.Linear(dim, hidden)
        self.mlp = nn.Sequential(
            *(nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU()) for _ in range(config.scale_layers))
        )
        self.output_proj = nn.Linear(hidden, 1)

    def forward(self, token: Tensor) -> Tensor:
        """Map (B, D) -> (B, 1), positive."""
        raw = self.output_proj(self.mlp(self.proj(token)))
        return torch.exp(raw).clamp(min=_MIN_METRIC_SCALE)
