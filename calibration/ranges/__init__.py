"""Numbers behind INT8 and FP8: statistics of activations, ranges, rounding, smoothing, and what a calibration records.

NumPy only; what needs the network (hooks, folding, graphs) is in ``mapengine.export.quantization``.
"""

from .histogram import Histogram
from .record import Calibration, LayerCalibration, TokenStatistics, load_calibration, save_calibration
from .rounding import FORMATS, NumberFormat, quantize, round_to_grid, weight_scales
from .selection import METHODS, choose_range, noise_ratio

__all__ = [
    "FORMATS",
    "METHODS",
    "Calibration",
    "Histogram",
    "LayerCalibration",
    "NumberFormat",
    "TokenStatistics",
    "choose_range",
    "load_calibration",
    "noise_ratio",
    "quantize",
    "round_to_grid",
    "save_calibration",
    "weight_scales",
]
