"""The PyTorch reference network."""

from .geometry_encoder import MODALITIES
from .model import HeadOutputs, MapAnythingNetwork, ViewFeatures

__all__ = ["MODALITIES", "HeadOutputs", "MapAnythingNetwork", "ViewFeatures"]
