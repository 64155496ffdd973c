"""Procedural scenes with exact geometry: calibration data, samples, training and test data of the project."""

from .layouts import KINDS
from .scene import MAX_VIEWS, RenderedScene, render_scene

__all__ = ["KINDS", "MAX_VIEWS", "RenderedScene", "render_scene"]
