"""The command line: ``mapengine export | build | verify | run | info``."""

from .app import main

__all__ = ["main"]
