"""Data with exact geometry, what is measured on it, and the numbers behind INT8 and FP8. Needs no PyTorch."""
