"""Loops: places that are seen again, the check that they are the same, and the graph that brings the map together."""
