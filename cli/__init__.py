"""The command line; ``mapengine --help`` lists its commands."""

from .program import main

__all__ = ["main"]
