"""The command line; ``mapengine --help`` lists its commands."""

from .app import main

__all__ = ["main"]
