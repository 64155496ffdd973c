"""Calibration data, ranges and Q/DQ placement for INT8 and FP8 engines (not part of this release)."""
