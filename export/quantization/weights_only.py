"""INT8 in the weights alone: the same layers, each weight rounded per output channel, and no activation touched.

It is what TensorRT-RTX documents as its INT8, and it halves what the weights of an FP16 engine take. The products stay
in the type of the activations, so nothing has to be observed and nothing is folded.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..model.network import MapAnythingNetwork
from .layers import LinearLayer, find_layers


@dataclass(frozen=True)
class WeightsOnly:
    """Stands where a calibration does.

    Attributes:
        layers: whose weights are rounded, in running order.
        kept_layers: none are left out.
        precision: of the weights.
        data_sha256: there is no data.
    """

    layers: tuple[LinearLayer, ...]
    kept_layers: tuple[str, ...] = ()
    precision: str = "int8"
    data_sha256: str | None = None

    @classmethod
    def of(cls, network: MapAnythingNetwork) -> WeightsOnly:
        """Take all layers that a calibration would quantise."""
        return cls(tuple(find_layers(network).values()))

    @property
    def quantized(self) -> tuple[LinearLayer, ...]:
        """The layers, as a calibration names those that it quantises."""
        return self.layers

    def described(self) -> str:
        """Return the method in a few words, for manifests. Scales are chosen by ``weight_scales``."""
        return "weights only, mse per channel"
