"""Geometric inputs to features: ray directions, depth, relative pose and their metric scales.

Source: MapAnything (arXiv 2509.13414), section "Encoding images and geometric inputs". Each term is added to the patch
features of its view; a view that lacks a modality gets exactly zero for it, selected by ``where`` and not by a product,
so that nothing non-finite of an unused branch can leak through (0 * NaN is NaN).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import PATCH_SIZE, GeometryEncoderConfig
from .transformer import layer_norm


class ResidualConv(nn.Module):
    """Two 3 x 3 convolutions with GELU around a shortcut."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut: nn.Module = (
            nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, h, w) -> (N, C', h, w)."""
        return F.gelu(self.conv2(F.gelu(self.conv1(x))) + self.shortcut(x))


class DenseEncoder(nn.Module):
    """Per-pixel quantities to one feature per patch."""

    def __init__(self, in_channels: int, widths: Sequence[int], dim: int) -> None:
        super().__init__()
        first, second, third = widths
        self.conv_in = nn.Conv2d(in_channels * PATCH_SIZE**2, first, 3, padding=1)
        self.encoder = nn.Sequential(ResidualConv(first, second), ResidualConv(second, third), nn.Conv2d(third, dim, 1))
        self.norm_layer = layer_norm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, H, W, c) -> (N, h, w, C)."""
        n, height, width, channels = x.shape
        h, w = height // PATCH_SIZE, width // PATCH_SIZE
        # Pixel unshuffle from channel-last: input channel slowest, then row offset, then column offset.
        x = x.reshape(n, h, PATCH_SIZE, w, PATCH_SIZE, channels).permute(0, 5, 2, 4, 1, 3)
        x = x.reshape(n, channels * PATCH_SIZE**2, h, w)
        return self.norm_layer(self.encoder(self.conv_in(x)).permute(0, 2, 3, 1))


class GlobalEncoder(nn.Module):
    """One vector per view (rotation, translation or a log scale) to one feature."""

    def __init__(self, in_channels: int, widths: Sequence[int], dim: int) -> None:
        super().__init__()
        first, second, third = widths
        # Nested the way upstream grows the stack, because the nesting is part of the parameter names.
        stack = nn.Sequential(nn.Linear(in_channels, first), nn.GELU())
        stack = nn.Sequential(stack, nn.Linear(first, second), nn.GELU())
        stack = nn.Sequential(stack, nn.Linear(second, third), nn.GELU())
        self.encoder = nn.Sequential(stack, nn.Linear(third, dim))
        self.norm_layer = layer_norm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c) -> (N, C)."""
        return self.norm_layer(self.encoder(x))


class GeometryEncoders(nn.Module):
    """The six encoders, under upstream's names, as the base of a module that owns them."""

    def __init__(self, config: GeometryEncoderConfig, dim: int) -> None:
        super().__init__()
        self.ray_dirs_encoder = DenseEncoder(3, config.rays, dim)
        self.depth_encoder = DenseEncoder(1, config.depth, dim)
        self.depth_scale_encoder = GlobalEncoder(1, config.scale, dim)
        self.cam_rot_encoder = GlobalEncoder(4, config.rotation, dim)
        self.cam_trans_encoder = GlobalEncoder(3, config.translation, dim)
        self.cam_trans_scale_encoder = GlobalEncoder(1, config.scale, dim)

    def encode_geometry(
        self,
        ray_directions: Tensor,
        depth: Tensor,
        depth_log_scale: Tensor,
        rotation: Tensor,
        translation: Tensor,
        translation_log_scale: Tensor,
        modality_flags: Tensor,
    ) -> Tensor:
        """Compute the features to add to the patch features of each view.

        Args:
            ray_directions: (N, H, W, 3) unit vectors, camera frame.
            depth: (N, H, W, 1) depth along the ray, divided by its mean over the valid pixels, then log-compressed.
            depth_log_scale: (N, 1) natural log of that mean, in metres.
            rotation: (N, 4) quaternion xyzw relative to the reference view.
            translation: (N, 3) translation relative to the reference view, divided by its mean length over the views.
            translation_log_scale: (N, 1) natural log of that mean length, in metres.
            modality_flags: (N, 5) 1 where the view has the modality, 0 where not; columns as in
                ``runtime.views.MODALITIES``. Values of absent modalities are ignored; pass zeros.

        Returns:
            (N, h, w, E).
        """
        present = (modality_flags > 0.5).unbind(dim=1)
        rays, depths, depth_scales, poses, pose_scales = (flag[:, None, None, None] for flag in present)
        zero = torch.zeros((), dtype=ray_directions.dtype, device=ray_directions.device)

        def per_view(feature: Tensor) -> Tensor:
            return feature[:, None, None, :]  # (N, 1, 1, E), the same for every patch

        pose = per_view(self.cam_rot_encoder(rotation) + self.cam_trans_encoder(translation))
        features = torch.where(rays, self.ray_dirs_encoder(ray_directions), zero)
        features = features + torch.where(depths, self.depth_encoder(depth), zero)
        features = features + torch.where(depth_scales, per_view(self.depth_scale_encoder(depth_log_scale)), zero)
        features = features + torch.where(poses, pose, zero)
        return features + torch.where(pose_scales, per_view(self.cam_trans_scale_encoder(translation_log_scale)), zero)
