"""Attention that our own kernels compute between the segments of a stage."""
