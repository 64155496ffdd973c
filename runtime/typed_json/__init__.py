"""Typed values from strict JSON and back, by the annotations of dataclasses."""
