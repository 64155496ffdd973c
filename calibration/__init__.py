"""Data with exact geometry and what is measured on it: rendered scenes, samples and evaluation. Needs no PyTorch."""
