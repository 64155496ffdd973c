"""INT8 and FP8 engines: ranges from the PyTorch reference, exact recoveries folded into weights, and Q/DQ graphs."""

from .budget import keep_accuracy
from .calibrate import CalibrationOptions, calibrate
from .fake_quantization import simulate_rounding
from .fold import fold_calibration
from .layers import LinearLayer, find_layers
from .network import QuantizedNetwork
from .qdq import QuantizedStage, quantize_stage
from .quality import GeometryQuality, OutputQuality
from .weights_only import WeightsOnly

__all__ = [
    "CalibrationOptions",
    "GeometryQuality",
    "LinearLayer",
    "OutputQuality",
    "QuantizedNetwork",
    "QuantizedStage",
    "WeightsOnly",
    "calibrate",
    "find_layers",
    "fold_calibration",
    "keep_accuracy",
    "quantize_stage",
    "simulate_rounding",
]
