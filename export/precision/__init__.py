"""Float16 and bfloat16, written into the exported graphs."""

from .emulate import load_runnable, runnable
from .policy import POLICY, Rule
from .ranges import measure_ranges
from .rewrite import LoweredStage, lower_precision

__all__ = ["POLICY", "LoweredStage", "Rule", "load_runnable", "lower_precision", "measure_ranges", "runnable"]
