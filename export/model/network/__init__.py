"""The PyTorch reference network."""

from .model import HeadOutputs, MapAnythingNetwork, ViewFeatures

__all__ = ["HeadOutputs", "MapAnythingNetwork", "ViewFeatures"]
