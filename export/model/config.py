"""Typed description of a MapAnything network: everything that fixes tensor names and shapes.

``config_json`` builds these from upstream's ``config.json``; ``network`` builds modules from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mapengine.runtime.bundle.requests import PATCH_SIZE as PATCH_SIZE

MlpKind = Literal["mlp", "swiglu"]


@dataclass(frozen=True)
class BlockConfig:
    """One pre-norm transformer block (DINOv2 and the alternating-attention blocks share it)."""

    dim: int
    num_heads: int
    mlp: MlpKind
    mlp_hidden: int
    layer_scale: bool


@dataclass(frozen=True)
class ImageEncoderConfig:
    """DINOv2 image encoder. ``depth`` counts the blocks that are kept."""

    block: BlockConfig
    depth: int
    grid: int
    """Side of the positional-embedding grid (37 for 518 x 518 pixels)."""
    final_norm: bool
    """v1 normalises the features, v1.1 does not (and has no such weights)."""


@dataclass(frozen=True)
class GeometryEncoderConfig:
    """Hidden widths of the dense (ray, depth) and global (rotation, translation, scale) encoders."""

    rays: tuple[int, int, int] = (588, 768, 1024)
    depth: tuple[int, int, int] = (588, 768, 1024)
    rotation: tuple[int, int, int] = (128, 256, 512)
    translation: tuple[int, int, int] = (128, 256, 512)
    scale: tuple[int, int, int] = (128, 256, 512)


@dataclass(frozen=True)
class AggregatorConfig:
    """Alternating global / frame-wise attention over all views ("info sharing")."""

    block: BlockConfig
    depth: int
    taps: tuple[int, int]
    """0-based indices of the blocks whose output the dense head reads besides the last one."""
    reference_view_embedding: bool
    key_shares: tuple[tuple[int, float], ...] = ()
    """Global blocks that keep a share of the keys, with the share; the others keep all. A build chooses them, no
    checkpoint has them."""


@dataclass(frozen=True)
class HeadConfig:
    """DPT dense head, pose head and scale head."""

    layer_dims: tuple[int, int, int, int] = (96, 192, 384, 768)
    feature_dim: int = 256
    pose_hidden: int = 784
    pose_blocks: int = 2
    scale_hidden: int = 196
    scale_layers: int = 2


@dataclass(frozen=True)
class ModelConfig:
    """A whole network. ``source`` is the JSON that it was read from, kept for the manifest."""

    image_encoder: ImageEncoderConfig
    geometry_encoder: GeometryEncoderConfig
    aggregator: AggregatorConfig
    head: HeadConfig
    use_class_token: bool
    """Whether the encoder's class token of every view joins the aggregator (v1.1)."""
    data_norm_type: str = "dinov2"
    source: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def with_key_shares(self, shares: Mapping[int, float]) -> ModelConfig:
        """Return the configuration with these shares of the keys by block, and all keys in the other blocks."""
        return replace(self, aggregator=replace(self.aggregator, key_shares=tuple(sorted(shares.items()))))
