"""How far predictions are from a reference: per output, and as geometry (metres and degrees)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle.build_record import GeometryParity, OutputParity, Parity
from ..errors import InputError, ParityError
from ..geometry import quaternion_to_matrix

Predictions = Sequence[Mapping[str, NDArray[Any]]]


def measure_parity(
    found: Mapping[str, Predictions], reference: Mapping[str, Predictions], measured_with: str
) -> Parity:
    """Compare predictions with a reference over several cases.

    Args:
        found: case name to predictions per view (:func:`..postprocessing.predictions.forward_outputs`, unmasked).
        reference: the same cases, computed by the reference.
        measured_with: what computed ``found``, for the record.

    Returns:
        For every floating output the largest absolute difference, and that difference over the largest magnitude of
        the reference; and the differences as geometry, the worst over the cases.

    Raises:
        InputError: there is nothing to compare.
        ParityError: a prediction is not finite.
    """
    outputs: dict[str, OutputParity] = {}
    geometry: list[GeometryParity] = []
    for case, views in reference.items():
        pairs = list(zip(found[case], views, strict=True))
        for view, (got, want) in enumerate(pairs):
            for key, value in want.items():
                if value.dtype.kind != "f":
                    continue
                if not np.isfinite(got[key]).all():  # a maximum would hide NaN
                    raise ParityError(
                        f"{key} of view {view} in the case {case!r} is not finite; build the bundle again, or choose "
                        f"another backend"
                    )
                difference = float(np.abs(got[key].astype(np.float64) - value).max(initial=0.0))
                relative = difference / max(float(np.abs(value).max(initial=0.0)), 1e-12)
                old = outputs.get(key, OutputParity(0.0, 0.0))
                outputs[key] = OutputParity(max(old.max_abs, difference), max(old.max_rel, relative))
        geometry.append(_geometry(pairs))
    if not geometry:
        raise InputError("there are no cases to compare")
    worst = {name: max(getattr(entry, name) for entry in geometry) for name in GeometryParity.__dataclass_fields__}
    return Parity(tuple(reference), outputs, GeometryParity(**worst), measured_with)


def _geometry(pairs: Sequence[tuple[Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]]]]) -> GeometryParity:
    def both(key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        got, want = ([np.asarray(p[key], np.float64) for p in side] for side in zip(*pairs, strict=True))
        return np.stack(got), np.stack(want)

    depth, true_depth = both("depth_along_ray")
    rays, true_rays = both("ray_directions")
    rotation, true_rotation = (quaternion_to_matrix(q) for q in both("cam_quats"))
    centres, true_centres = both("cam_trans")
    scale, true_scale = both("metric_scaling_factor")
    spread = np.linalg.norm(true_centres - true_centres[:1], axis=-1).max(initial=0.0)
    chord = np.linalg.norm(rotation - true_rotation, axis=(-2, -1)) / np.sqrt(8.0)
    return GeometryParity(
        depth_abs_rel=float(np.mean(np.abs(depth - true_depth) / true_depth)),
        # From the chord, not from the arc cosine: that cannot resolve angles below 0.02 degrees in float32.
        ray_degrees=float(np.degrees(2 * np.arcsin(np.clip(_half_chord(rays, true_rays), 0, 1))).max(initial=0.0)),
        rotation_degrees=float(np.degrees(2 * np.arcsin(np.clip(chord, 0, 1))).max(initial=0.0)),
        translation=float(
            np.linalg.norm(centres - true_centres, axis=-1).max(initial=0.0)
            / (spread if spread > 0 else max(float(np.abs(true_centres).max(initial=0.0)), 1e-12))
        ),
        metric_scale=float((np.abs(scale - true_scale) / true_scale).max(initial=0.0)),
    )


def _half_chord(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.norm(a - b, axis=-1) / 2)
