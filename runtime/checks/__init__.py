"""Checks of a loaded bundle against the PyTorch reference."""
