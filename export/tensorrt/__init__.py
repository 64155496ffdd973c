"""TensorRT plans: profiles, the build, and what a plan turned out to be."""

from .builder import BuiltPlan, build_plan
from .layers import LayerReport
from .limits import check_limits
from .optimization_profiles import gpu_chunks, stage_profiles
from .settings import check_settings, check_targets, parse_target

__all__ = [
    "BuiltPlan",
    "LayerReport",
    "build_plan",
    "check_limits",
    "check_settings",
    "check_targets",
    "gpu_chunks",
    "parse_target",
    "stage_profiles",
]
