"""Reduced precision: which parts run in 16 bit, and graphs that say so."""

from .rewrite import LoweredStage, lower_precision

__all__ = ["LoweredStage", "lower_precision"]
