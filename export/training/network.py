"""The project's own network, set up to be trained: initial weights, precision, and one differentiable forward pass."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..model.config import ModelConfig
from ..model.network import ViewFeatures
from ..model.network.dense_head import dense_outputs
from ..model.network.geometry_encoder import GlobalEncoder
from ..model.reference import MapAnything
from .batch import Batch, Targets
from .losses import Predictions

_PIXEL_STRIDE = 2
"""The losses look at every second pixel along both axes, starting at random: a quarter of the cost, the same mean."""


def new_network(config: ModelConfig, seed: int) -> MapAnything:
    """Return a network with fresh weights.

    PyTorch's defaults for layers; small noise for tokens; sines and cosines for positions; biases that make the
    untrained network predict rays straight ahead, depth 1, the identity pose and a metric factor of 3; and pose
    encoders that are as sensitive as poses need (without it the network takes far longer to notice them).
    """
    torch.manual_seed(seed)
    network = MapAnything(config, "training")
    with torch.no_grad():
        vit = network.encoder.model
        for token in (vit.cls_token, vit.pos_embed, network.scale_token):
            nn.init.trunc_normal_(token, std=0.02)
        vit.pos_embed[0, 1:] = 0.3 * _sinusoids(vit.grid, vit.pos_embed.shape[-1])
        pose = network.pose_head
        for layer, bias in (
            (_last_layer(network), (0.0, 0.0, 1.0, 0.0, 0.0, 1.0)),
            (pose.fc_rot, (0.0, 0.0, 0.0, 1.0)),
            (pose.fc_t, (0.0, 0.0, 0.0)),
            (network.scale_head.output_proj, (1.1,)),
        ):
            assert layer.bias is not None
            layer.weight.mul_(0.1)
            layer.bias.copy_(torch.tensor(bias))
        # Rotations differ from the identity by little: unless that little is made large, a LayerNorm later hides it.
        _first_layer(network.cam_rot_encoder).weight[:, :3] *= 6
        _first_layer(network.cam_trans_encoder).weight *= 2
    return network


@torch.no_grad()
def balance_heads(network: MapAnything, batch: Batch) -> None:
    """Scale the layers of the heads until each gives outputs of size 1 (LSUV, arXiv 1511.06422).

    Without it the coarsest level of the dense head starts thirty times as loud as the finest, whose detail the network
    then takes very long to hear.
    """
    outputs = {_last_layer(network), network.pose_head.fc_rot, network.pose_head.fc_t}

    def scale(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        size = output.float().pow(2).mean().sqrt().clamp(min=1e-6)
        for parameter in layer.parameters():
            parameter.div_(size)
        return output / size

    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    layers = [x for head in (network.dense_head, network.pose_head) for x in head.modules() if isinstance(x, kinds)]
    hooks = [layer.register_forward_hook(scale) for layer in layers if layer not in outputs]
    TrainableNetwork(network, None)(batch)
    for hook in hooks:
        hook.remove()


def _last_layer(network: MapAnything) -> nn.Conv2d:
    """Return the 1 x 1 convolution that gives the six channels of the dense head."""
    layer = network.dense_head[1].get_submodule("conv2.2")
    assert isinstance(layer, nn.Conv2d)
    return layer


def _sinusoids(grid: int, dim: int) -> Tensor:
    """Return (grid * grid, dim): sines and cosines of the row in the first half of the channels, of the column in the
    second.

    Wavelengths run from twice the grid to two cells.
    """
    position = (torch.arange(grid) + 0.5) / grid
    angle = position[:, None] * math.pi * 2.0 ** torch.linspace(0, math.log2(grid), dim // 4)
    waves = torch.cat([angle.sin(), angle.cos()], -1)  # (grid, dim / 2)
    rows, columns = waves[:, None].expand(grid, grid, -1), waves[None].expand(grid, grid, -1)
    return torch.cat([rows, columns], -1).reshape(grid * grid, -1)


def _first_layer(encoder: GlobalEncoder) -> nn.Linear:
    layer = encoder.get_submodule("encoder.0.0.0.0")
    assert isinstance(layer, nn.Linear)
    return layer


class TrainableNetwork(nn.Module):
    """Forward pass of the whole network over a batch, under autocast where asked for.

    Like upstream (its inference and training keep these parts out of autocast) what turns numbers into features and
    features into numbers runs in float32: the encoders of poses and scales, and the last layers of the heads. BF16 has
    8 bits, which is half a degree of rotation.
    """

    def __init__(self, network: MapAnything, amp: torch.dtype | None) -> None:
        super().__init__()
        self.network = network
        self._amp = amp
        if amp is not None:
            pose = network.pose_head
            exact: list[nn.Module] = [module for module in network.modules() if isinstance(module, GlobalEncoder)]
            exact += [pose.more_mlps, pose.fc_t, pose.fc_rot, network.scale_head, _last_layer(network)]
            for module in exact:
                module.forward = _in_float32(module.forward)

    def forward(self, batch: Batch, offset: tuple[int, int] = (0, 0)) -> tuple[Predictions, Targets]:
        """Return predictions and targets at every second pixel from ``offset``."""
        samples, views = batch.images.shape[:2]
        network, device = self.network, batch.images.device.type
        autocast = torch.autocast(device, self._amp) if self._amp else contextlib.nullcontext()
        # On a CPU the fused backward pass of attention is slower than plain products at these lengths.
        attention = sdpa_kernel(SDPBackend.MATH) if device == "cpu" else contextlib.nullcontext()
        with autocast, attention:
            features, extra = network.encode_images(batch.images.flatten(0, 1))
            features = features + network.encode_geometry(**batch.inputs)
            per_sample = features.reshape(samples, views, *features.shape[1:])
            tokens = None if extra is None else extra.reshape(samples, views, *extra.shape[1:])
            maps, scale = network.aggregate(per_sample, tokens)
            maps = ViewFeatures(*(x.flatten(0, 1) for x in maps))
            channels_first = [x.permute(0, 3, 1, 2) for x in maps]
            raw = network.dense_head(channels_first)
            translations, quaternions = network.pose_head(channels_first[-1])
        top, left = offset
        picked = (slice(None), slice(None), slice(top, None, _PIXEL_STRIDE), slice(left, None, _PIXEL_STRIDE))
        rays, depth, confidence, logits = dense_outputs(raw[picked].float())

        def split(x: Tensor) -> Tensor:
            return x.float().reshape(samples, views, *x.shape[1:])

        predicted = Predictions(
            split(rays),
            split(depth[..., 0]),
            split(confidence),
            split(logits),
            split(quaternions),
            split(translations),
            scale.float(),
        )
        truth = batch.targets
        return predicted, Targets(truth.rays[picked], truth.depth[picked], truth.quaternions, truth.translations)


def _in_float32(forward: Callable[..., Any]) -> Callable[..., Any]:
    def exact(*tensors: Tensor) -> Any:
        with torch.autocast(tensors[0].device.type, enabled=False):
            return forward(*(x.float() for x in tensors))

    return exact
