"""Float16 and bfloat16, written into the exported graphs."""

from .magnitudes import measure_magnitudes
from .policy import POLICY, Rule
from .rewrite import LoweredStage, lower_precision
from .rounded_graphs import load_runnable, runnable

__all__ = ["POLICY", "LoweredStage", "Rule", "load_runnable", "lower_precision", "measure_magnitudes", "runnable"]
