"""Mean and standard deviation that an image encoder's training images were normalised with."""

from __future__ import annotations

from ..errors import DataNormTypeError

Constants = tuple[tuple[float, float, float], tuple[float, float, float]]

NORM_TYPES: dict[str, Constants] = {
    "dinov2": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "identity": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""Per norm type, mean and standard deviation of RGB in 0..1."""


def norm_constants(norm_type: str) -> Constants:
    """Mean and standard deviation of a norm type; DataNormTypeError (an InputError) if it is unknown."""
    if norm_type not in NORM_TYPES:
        raise DataNormTypeError(f"unknown norm_type {norm_type!r}; choose one of {', '.join(NORM_TYPES)}")
    return NORM_TYPES[norm_type]
