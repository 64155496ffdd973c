"""Backends: each loads a stage of a bundle and runs it on NumPy arrays."""
