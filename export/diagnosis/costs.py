"""Floating-point operations and memory traffic of the network, stage by stage, from its configuration alone.

A product of (M, K) and (K, N) counts 2 M K N operations, as PyTorch's FLOP counter counts; what is not a product or a
convolution (norms, activations, softmax, resizing) is left out: it is below one per cent. Bytes are the least that a
stage moves: its weights once per call, its inputs and outputs once. Tests compare both with the network itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from mapengine.runtime.bundle.kernel_attention import kept_keys

from ..model.config import PATCH_SIZE, BlockConfig, ModelConfig

STAGES = ("image_encoder", "geometry_encoder", "aggregator", "dense_head")


@dataclass(frozen=True)
class Cost:
    """Work of a stage in one call: operations, of them those of attention's two products, and bytes."""

    flops: float
    attention: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.attention + other.attention, self.bytes + other.bytes)


@dataclass(frozen=True)
class CallShape:
    """A call: views, and patches of a view along both sides; how many views bring geometry; views per call of the
    chunked stages, each of which reads the weights once."""

    views: int
    rows: int
    columns: int
    with_geometry: int = 0
    chunk: int = 1

    @property
    def patches(self) -> int:
        """Patches of a view."""
        return self.rows * self.columns


def stage_costs(
    config: ModelConfig, request: CallShape, weight_bytes: float = 4, value_bytes: float = 4
) -> dict[str, Cost]:
    """Return the costs of all stages.

    Args:
        config: of the network.
        request: of the call.
        weight_bytes: of a weight: 4 in float32, 2 in 16 bits, 1 in 8 bits.
        value_bytes: of a value between stages.
    """
    views, patches = request.views, request.patches
    encoder, aggregator = config.image_encoder, config.aggregator
    width, dim = encoder.block.dim, aggregator.block.dim
    calls = -(-views // request.chunk)
    geometry_calls = -(-request.with_geometry // request.chunk)

    patch = _linear(views * patches, 3 * PATCH_SIZE**2, width)
    # The grid of positions is resized by two products in every call, first along the rows.
    positions = 2.0 * request.rows * encoder.grid * (encoder.grid + request.columns) * width
    encode = patch + positions + views * encoder.depth * _block(encoder.block, 1, patches + 1)
    encode_weights = 3 * PATCH_SIZE**2 * width + encoder.depth * _block_weights(encoder.block)

    given, given_weights = _geometry(config, request)

    tokens = patches + (1 if config.use_class_token else 0)
    shares = dict(aggregator.key_shares)
    fuse, attention = 0.0, 0.0
    for index in range(aggregator.depth):
        sequences, length = (1, views * tokens + 1) if index % 2 == 0 else (views, tokens)
        keys = length
        if index in shares:
            keys = kept_keys(views, request.rows, request.columns, tokens - patches, shares[index])
        fuse += sequences * _block(aggregator.block, 1, length, keys)
        attention += sequences * _attention(aggregator.block, length, keys)
    fuse_weights = aggregator.depth * _block_weights(aggregator.block)
    if width != dim:
        fuse += _linear(views * tokens + 1, width, dim)
        fuse_weights += width * dim
    hidden = config.head.scale_hidden
    scale = _linear(1, dim, hidden) + config.head.scale_layers * _linear(1, hidden, hidden) + _linear(1, hidden, 1)

    decode, decode_weights = _head(config, request)
    maps = views * patches * (width + 3 * dim) * value_bytes
    pixels = views * patches * PATCH_SIZE**2
    features = views * patches * width * value_bytes
    return {
        "image_encoder": Cost(
            encode,
            views * encoder.depth * _attention(encoder.block, patches + 1),
            calls * encode_weights * weight_bytes + 3 * pixels * value_bytes + features,
        ),
        "geometry_encoder": Cost(
            given,
            0.0,
            geometry_calls * given_weights * 4
            + request.with_geometry * patches * (4 * PATCH_SIZE**2 + width) * value_bytes,
        ),
        "aggregator": Cost(fuse + scale, attention, fuse_weights * weight_bytes + features + maps),
        "dense_head": Cost(decode, 0.0, calls * decode_weights * weight_bytes + maps + 6 * pixels * value_bytes),
    }


def total(costs: dict[str, Cost]) -> Cost:
    """Sum all stages."""
    return sum(costs.values(), Cost(0.0))


def _linear(rows: float, inputs: int, outputs: int) -> float:
    return 2.0 * rows * inputs * outputs


def _attention(block: BlockConfig, length: int, keys: int | None = None) -> float:
    """Count Q K^T and the product with the values, of one sequence: 4 L K C, with as many keys as tokens if not
    given."""
    return 4.0 * length * (length if keys is None else keys) * block.dim


def _block(block: BlockConfig, sequences: int, length: int, keys: int | None = None) -> float:
    return sequences * (_linear(length, 1, 1) * _block_weights(block) + _attention(block, length, keys))


def _block_weights(block: BlockConfig) -> int:
    """Count the weights of qkv, proj and the MLP."""
    return block.dim * (4 * block.dim + (3 if block.mlp == "swiglu" else 2) * block.mlp_hidden)


def _geometry(config: ModelConfig, request: CallShape) -> tuple[float, int]:
    """Count operations and weights of the geometry encoders."""
    encoders, dim = config.geometry_encoder, config.image_encoder.block.dim
    dense = 0
    for channels, (first, second, third) in ((3, encoders.rays), (1, encoders.depth)):
        dense += 9 * channels * PATCH_SIZE**2 * first + third * dim
        for inner, outer in ((first, second), (second, third)):
            dense += 9 * outer * (inner + outer) + (inner * outer if inner != outer else 0)
    vectors = 0
    for channels, (first, second, third) in (
        (1, encoders.scale),
        (4, encoders.rotation),
        (3, encoders.translation),
        (1, encoders.scale),
    ):
        vectors += channels * first + first * second + second * third + third * dim
    flops = 2.0 * request.with_geometry * (request.patches * dense + vectors)
    return flops, dense + vectors


def _head(config: ModelConfig, request: CallShape) -> tuple[float, int]:
    """Count operations and weights of the dense head and the pose head."""
    head, rows, columns = config.head, request.rows, request.columns
    width, dim, features = config.image_encoder.block.dim, config.aggregator.block.dim, config.head.feature_dim
    a, b, c, d = head.layer_dims
    flops, weights = 0.0, 0

    def add(pixels: float, count: int) -> None:
        nonlocal flops, weights
        flops += 2.0 * pixels * count
        weights += count

    levels = [(16, a), (4, b), (1, c)]  # pixels per patch
    half = (-(-rows // 2)) * (-(-columns // 2)) / request.patches
    for inputs, outputs in zip((width, dim, dim, dim), (a, b, c, d), strict=True):
        add(request.patches, inputs * outputs)
    add(request.patches, 16 * a * a)  # transposed convolutions: every input pixel meets every weight
    add(request.patches, 4 * b * b)
    add(half * request.patches, 9 * d * d)
    sizes = [*(factor * request.patches for factor, _ in levels), half * request.patches]
    for pixels, channels in zip(sizes, (a, b, c, d), strict=True):
        add(pixels, 9 * channels * features)
    unit = 2 * 9 * features * features
    for index, pixels in enumerate(sizes):
        for _ in range(1 if index == 3 else 2):
            add(pixels, unit)
        add(pixels, features * features)
    fine = 64 * request.patches
    add(fine, 9 * features * (features // 2))
    full = request.patches * PATCH_SIZE**2
    add(full, 9 * (features // 2) ** 2 + 6 * (features // 2))
    hidden = head.pose_hidden
    add(request.patches, dim * hidden + 3 * head.pose_blocks * hidden * hidden)
    add(1, 2 * hidden * hidden + 7 * hidden)
    return request.views * flops, weights
