"""Latency and memory of calls, measured so that two figures may be compared: see :mod:`.measure` for what is timed."""

from .compare import Comparison, compare_records
from .measure import BOUNDARY, Contender, Settings, profile
from .statistics import Summary, is_beyond_noise

__all__ = [
    "BOUNDARY",
    "Comparison",
    "Contender",
    "Settings",
    "Summary",
    "compare_records",
    "is_beyond_noise",
    "profile",
]
