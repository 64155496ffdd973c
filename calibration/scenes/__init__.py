"""Procedural scenes with exact geometry: calibration data, samples, training and test data of the project."""

from .layouts import KINDS
from .scene import MAX_VIEWS, RenderedScene, render_scene
from .walk import WALK_FRAMES, RenderedWalk, WalkFrame, render_walk

__all__ = [
    "KINDS",
    "MAX_VIEWS",
    "WALK_FRAMES",
    "RenderedScene",
    "RenderedWalk",
    "WalkFrame",
    "render_scene",
    "render_walk",
]
