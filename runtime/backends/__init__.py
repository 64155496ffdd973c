"""Backends: each loads a stage of a bundle and runs it on NumPy arrays."""

from .base import Backend, StageRunner
from .registry import available_backends, make_backend

__all__ = ["Backend", "StageRunner", "available_backends", "make_backend"]
