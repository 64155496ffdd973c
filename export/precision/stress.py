"""Networks that compute the same with magnitudes far outside of float16's range, to prove that ranges are kept.

Trained transformers have such activations in a few channels and tokens; random weights do not. A layer is multiplied
by a power of two and the linear layer behind it is divided by it, so that the float32 network returns the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn

FACTOR = 2.0**17
"""Carries numbers near 1 beyond float16's 65504."""

Place = Literal["mlp", "attention", "queries", "dense head", "geometry encoder"]
PLACES: tuple[Place, ...] = ("mlp", "attention", "queries", "dense head", "geometry encoder")


def stress(network: nn.Module, place: Place) -> None:
    """Change the weights of a float32 MapAnything network in place.

    Args:
        network: with the parameter names of :class:`..network.MapAnythingNetwork`.
        place: ``mlp``: the product of gate and value in the blocks with a gated MLP. ``attention``: the values, and so
            what attention returns. ``queries``: large queries and tiny keys. ``dense head``: the last map before the
            regressor. ``geometry encoder``: what the first convolutions of rays and depth return.
    """
    weights = {name: parameter.data for name, parameter in network.named_parameters()}
    for grown, shrunk in _pairs(weights, place):
        grown.mul_(FACTOR)
        shrunk.div_(FACTOR)


def _pairs(weights: dict[str, Tensor], place: Place) -> Iterator[tuple[Tensor, Tensor]]:
    """Parts of the weights to multiply and to divide; a second part of zero elements where there is none left."""
    if place == "mlp":
        for layer in _layers(weights, ".mlp.w12"):
            half = len(weights[f"{layer}.bias"]) // 2
            yield weights[f"{layer}.weight"][half:], weights[f"{layer.removesuffix('w12')}w3.weight"]
            yield weights[f"{layer}.bias"][half:], weights[f"{layer}.bias"][:0]
    elif place in ("attention", "queries"):
        for layer in _layers(weights, ".attn.qkv"):
            weight, bias = weights[f"{layer}.weight"], weights[f"{layer}.bias"]
            dim = len(bias) // 3
            if place == "attention":
                yield weight[2 * dim :], weights[f"{layer.removesuffix('qkv')}proj.weight"]
                yield bias[2 * dim :], bias[:0]
            else:
                yield weight[:dim], weight[dim : 2 * dim]
                yield bias[:dim], bias[dim : 2 * dim]
    elif place == "dense head":
        last = "dense_head.0.scratch.refinenet1.out_conv"
        yield weights[f"{last}.weight"], weights["dense_head.1.conv1.weight"]
        yield weights[f"{last}.bias"], weights[f"{last}.bias"][:0]
    else:
        for encoder in ("ray_dirs_encoder", "depth_encoder"):
            first = f"{encoder}.conv_in"
            yield weights[f"{first}.weight"], weights[f"{encoder}.encoder.0.conv1.weight"]
            yield weights[f"{first}.bias"], weights[f"{encoder}.encoder.0.shortcut.weight"]


def _layers(weights: dict[str, Tensor], suffix: str) -> list[str]:
    ends = f"{suffix}.weight"
    return [name.removesuffix(".weight") for name in weights if name.endswith(ends)]
