"""The whole network, cut into the four stages that are exported (one source for eager and traced code)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from .aggregator import AlternatingAttention, ScaleHead
from .dense_head import DenseHead, PoseHead, dense_outputs
from .geometry_encoder import GeometryEncoders
from .image_encoder import ImageEncoder
from .transformer import layer_norm

Network = TypeVar("Network", bound="MapAnythingNetwork")


class ViewFeatures(NamedTuple):
    """What the dense head reads: four maps (N, h, w, C), finest supervision first."""

    fused: Tensor
    first_tap: Tensor
    second_tap: Tensor
    final: Tensor


class HeadOutputs(NamedTuple):
    """Predictions per view, before metric scaling. Shapes as in :func:`.dense_head.dense_outputs`."""

    ray_directions: Tensor
    depth_along_ray: Tensor
    confidence: Tensor
    mask_logits: Tensor
    cam_trans: Tensor
    cam_quats: Tensor


class MapAnythingNetwork(GeometryEncoders):
    """MapAnything v1.1 or v1 (arXiv 2509.13414), with upstream's parameter names.

    Views are a tensor dimension and missing inputs are flags, so that nothing depends on their number or mix.
    """

    def __init__(self, config: ModelConfig) -> None:
        encoder_dim = config.image_encoder.block.dim
        dim = config.aggregator.block.dim
        super().__init__(config.geometry_encoder, encoder_dim)  # upstream keeps these encoders at the top level
        self.config = config
        self.encoder = ImageEncoder(config.image_encoder)
        self.fusion_norm_layer = layer_norm(encoder_dim)
        self.scale_token = nn.Parameter(torch.zeros(encoder_dim))
        self.info_sharing = AlternatingAttention(config.aggregator, encoder_dim)
        self.dense_head = DenseHead((encoder_dim, dim, dim, dim), config.head)
        self.pose_head = PoseHead(dim, config.head)
        self.scale_head = ScaleHead(dim, config.head)

    def encode_images(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map (N, 3, H, W) -> patch features (N, h, w, E), extra tokens (N, 1, E) or None."""
        features, class_token = self.encoder(images)
        return features, class_token if self.config.use_class_token else None

    def aggregate(self, features: Tensor, extra_tokens: Tensor | None) -> tuple[ViewFeatures, Tensor]:
        """Fuse views.

        Args:
            features: (B, V, h, w, E) patch features plus geometry features.
            extra_tokens: (B, V, 1, E) or None.

        Returns:
            Maps (B, V, h, w, C) for the dense head and the metric scaling factor (B, 1).
        """
        batch, views, h, w, channels = features.shape
        fused = self.fusion_norm_layer(features)
        tokens = fused.reshape(batch, views, h * w, channels)
        if extra_tokens is not None:
            tokens = torch.cat([tokens, extra_tokens], dim=2)
        maps, scale_token = self.info_sharing(tokens, self.scale_token, h, w)
        first, second, final = (x.reshape(batch, views, h, w, x.shape[-1]) for x in maps)
        return ViewFeatures(fused, first, second, final), self.scale_head(scale_token)

    def decode(self, features: ViewFeatures) -> HeadOutputs:
        """Map maps (N, h, w, C) of a chunk of views -> predictions of those views."""
        # Permuted and not copied: the convolutions see channels-last memory and keep it, which is faster in eager mode.
        maps = [x.permute(0, 3, 1, 2) for x in features]
        return HeadOutputs(*dense_outputs(self.dense_head(maps)), *self.pose_head(maps[-1]))


def shared_copy(network: Network) -> Network:
    """Return a copy with its own modules and the same parameters: a change replaces a parameter, and costs only its
    memory."""
    memo: dict[int, object] = {id(value): value for value in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, memo)


def with_key_shares(network: Network, shares: Mapping[int, float]) -> Network:
    """Return the network with these shares of the keys in its global blocks, and all keys in the others.

    Args:
        network: it is not changed; the copy has the same parameters.
        shares: share of the keys by block of the aggregator, as
            :meth:`mapengine.export.attention.choice.AttentionChoice.key_shares` checks them.
    """
    if dict(network.config.aggregator.key_shares) == dict(shares):
        return network
    result = shared_copy(network)
    result.config = network.config.with_key_shares(shares)
    result.info_sharing.key_shares = dict(shares)
    return result
