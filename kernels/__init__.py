"""Fused attention kernels and their ahead-of-time compilation (not part of this release)."""
