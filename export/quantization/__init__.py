"""INT8 and FP8 engines: ranges from the PyTorch reference, exact recoveries folded into weights, and Q/DQ graphs."""

from .budget import OutputQuality, keep_accuracy
from .calibrate import CalibrationOptions, calibrate
from .fake_quantization import emulated
from .fold import folded
from .geometry import GeometryQuality
from .layers import LinearLayer, find_layers
from .network import QuantizedNetwork
from .qdq import QuantisedStage, quantise_stage
from .weights_only import WeightsOnly

__all__ = [
    "CalibrationOptions",
    "GeometryQuality",
    "LinearLayer",
    "OutputQuality",
    "QuantisedStage",
    "QuantizedNetwork",
    "WeightsOnly",
    "calibrate",
    "emulated",
    "find_layers",
    "folded",
    "keep_accuracy",
    "quantise_stage",
]
