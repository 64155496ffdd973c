"""The demonstration that ``make engine`` ends with: a scene, its reconstruction, and the picture of both."""
