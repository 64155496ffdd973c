"""Post-processing and the making of a scene as they were in commit 39c1548: the baseline of ``postprocess.py``."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earlier import edges
from mapengine.runtime import geometry
from mapengine.runtime.errors import InputError
from mapengine.runtime.geometry import Array
from mapengine.runtime.inputs.normalization import denormalize_image
from mapengine.runtime.options import DEFAULTS, InferOptions

SHAPES = ("points", "colors", "depth", "confidence", "mask", "intrinsics", "poses")
_PREDICTIONS = {
    "points": ("pts3d", 4),
    "colors": ("img_no_norm", 4),
    "depth": ("depth_z", 4),
    "confidence": ("conf", 3),
    "intrinsics": ("intrinsics", 3),
    "poses": ("camera_poses", 3),
}


@dataclass(eq=False)
class EarlierScene:
    """The arrays of a scene."""

    points: NDArray[np.float32]
    colors: NDArray[np.uint8]
    depth: NDArray[np.float32]
    confidence: NDArray[np.float32]
    mask: NDArray[np.bool_]
    intrinsics: NDArray[np.float32]
    poses: NDArray[np.float32]

    def __post_init__(self) -> None:
        # Values that are not finite are no reconstruction, and file formats treat them differently.
        self.mask = self.mask & np.isfinite(self.points).all(axis=-1) & np.isfinite(self.depth)
        self.points = np.where(self.mask[..., None], self.points, np.float32(0))
        self.depth = np.where(self.mask, self.depth, np.float32(0))
        self.confidence = np.nan_to_num(self.confidence, nan=0.0)

    @classmethod
    def from_predictions(cls, predictions: Sequence[Mapping[str, Any]], batch_index: int = 0) -> EarlierScene:
        """Collect what ``infer`` returned."""
        parts: dict[str, list[Array]] = {name: [] for name in SHAPES}
        for view, prediction in enumerate(predictions):
            for name, (key, ndim) in _PREDICTIONS.items():
                parts[name].append(_sample(prediction, view, key, ndim, batch_index))
            mask_key = next((k for k in ("mask", "non_ambiguous_mask") if prediction.get(k) is not None), None)
            size = parts["confidence"][-1].shape
            if mask_key is None:
                parts["mask"].append(np.ones(size, dtype=bool))
            else:
                ndim = 4 if mask_key == "mask" else 3
                parts["mask"].append(_sample(prediction, view, mask_key, ndim, batch_index).reshape(size).astype(bool))
            parts["depth"][-1] = parts["depth"][-1][..., 0]
            with np.errstate(invalid="ignore"):
                parts["colors"][-1] = np.rint(np.clip(np.nan_to_num(parts["colors"][-1]), 0, 1) * 255).astype(np.uint8)
        if any(part.shape != parts["points"][0].shape for part in parts["points"]):
            raise InputError("scene: the views differ in size; predictions of one call have one size")
        return cls(**{name: np.stack(arrays) for name, arrays in parts.items()})


def _sample(prediction: Mapping[str, Any], view: int, key: str, ndim: int, batch_index: int) -> Array:
    """Return sample ``batch_index`` of one prediction; errors name the view and key."""
    if not isinstance(prediction, Mapping) or prediction.get(key) is None:
        raise InputError(f"view {view}: the prediction lacks {key}; pass what infer returned")
    array = np.asarray(prediction[key])
    if array.ndim != ndim:
        raise InputError(f"view {view}: {key} has shape {array.shape}; expected {ndim} axes, the batch first")
    if not isinstance(batch_index, numbers.Integral) or not 0 <= batch_index < array.shape[0]:
        raise InputError(f"view {view}: batch_index {batch_index!r} is outside the batch of {array.shape[0]}")
    return np.asarray(array[batch_index])


def forward_outputs(
    ray_directions: Array,
    depth_along_ray: Array,
    confidence: Array,
    mask_logits: Array,
    cam_trans: Array,
    cam_quats: Array,
    scale: Array,
) -> dict[str, Array]:
    """Assemble one view's metric predictions from the heads' outputs (after their adaptors).

    ``ray_directions`` (B, H, W, 3) unit length, ``depth_along_ray`` (B, H, W, 1) and ``cam_trans`` (B, 3) in the
    network's own unit, ``confidence`` and ``mask_logits`` (B, H, W), ``cam_quats`` (B, 4) xyzw camera-to-world,
    ``scale`` (B, 1) metres per unit. Rays, quaternions, confidence and logits are passed on as they are.
    """
    batch, height, width, _ = ray_directions.shape
    depth = depth_along_ray * scale[:, :, None, None]
    translation = cam_trans * scale
    # Plane by plane: NumPy is slow where the last axis has three elements and the other operand only one.
    points_cam = np.empty_like(ray_directions, order="C")
    for axis in range(3):
        np.multiply(ray_directions[..., axis], depth[..., 0], out=points_cam[..., axis])
    rotation = geometry.quaternion_to_matrix(cam_quats)
    points = np.matmul(points_cam.reshape(batch, -1, 3), rotation.swapaxes(1, 2)).reshape(batch, height, width * 3)
    points += np.tile(translation, width)[:, None]
    return {
        "pts3d": points.reshape(batch, height, width, 3),
        "pts3d_cam": points_cam,
        "ray_directions": ray_directions,
        "depth_along_ray": depth,
        "cam_trans": translation,
        "cam_quats": cam_quats,
        "metric_scaling_factor": scale.copy(),  # the views of a call share it, their dictionaries do not
        "conf": confidence,
        "non_ambiguous_mask": mask_logits > 0,  # the same as sigmoid(logit) > 0.5
        "non_ambiguous_mask_logits": mask_logits,
    }


def finish_view(
    prediction: Mapping[str, Array],
    image: Array,
    options: InferOptions = DEFAULTS,
    *,
    confidence: Array | None = None,
    data_norm_type: str = "dinov2",
    overwrite: bool = False,
) -> dict[str, Array]:
    """Post-process one view; ``confidence`` (B, H, W) replaces the network's when given (multi-view confidence).

    Adds ``img_no_norm`` (B, H, W, 3) in 0..1, ``depth_z`` (B, H, W, 1), ``intrinsics`` (B, 3, 3), ``camera_poses``
    (B, 4, 4) and, with ``apply_mask``, ``mask`` (B, H, W, 1) bool. Points and depths are 0 outside the mask, and with
    ``overwrite`` the arrays of ``prediction`` itself are masked, which saves a third of the memory traffic.
    """
    result = dict(prediction)
    if confidence is not None:
        result["conf"] = confidence
    result["img_no_norm"] = denormalize_image(image, data_norm_type)
    result["depth_z"] = np.ascontiguousarray(prediction["pts3d_cam"][..., 2:])
    result["intrinsics"] = geometry.intrinsics_from_rays(prediction["ray_directions"])
    result["camera_poses"] = geometry.pose_matrix(prediction["cam_quats"], prediction["cam_trans"])
    if not options.apply_mask:
        return result

    mask = prediction["non_ambiguous_mask"].copy()
    if options.apply_confidence_mask:
        mask &= confidence_mask(result["conf"], options.confidence_percentile)
    if options.mask_edges:
        for sample in range(len(mask)):
            mask[sample] &= ~edges.edge_mask(
                prediction["pts3d"][sample],
                result["depth_z"][sample, ..., 0],
                mask[sample],
                normal_threshold=options.edge_normal_threshold,
                depth_threshold=options.edge_depth_threshold,
            )
    result["mask"] = mask[..., None]
    triple = np.empty((*mask.shape, 3), bool)
    for axis in range(3):
        triple[..., axis] = mask
    for key, keep in (("pts3d", triple), ("pts3d_cam", triple), ("depth_along_ray", result["mask"])):
        if not overwrite:
            result[key] = result[key].copy()
        edges.zero_outside(result[key], keep)
    edges.zero_outside(result["depth_z"], result["mask"])
    return result


def confidence_mask(confidence: Array, percentile: float) -> Array:
    """Return the pixels (B, H, W) bool whose confidence lies above the given percentile of their own image."""
    flat = confidence.reshape(len(confidence), -1)
    # Not with NumPy's quantile: it computes positions in the array's type, and float32 has no odd numbers above 2**24.
    position = percentile / 100 * (flat.shape[1] - 1)
    below = min(math.floor(position), max(flat.shape[1] - 2, 0))
    above = min(below + 1, flat.shape[1] - 1)
    ordered = np.partition(flat, (below, above), axis=1)
    weight = confidence.dtype.type(position - below)
    threshold = ordered[:, below] + (ordered[:, above] - ordered[:, below]) * weight
    return confidence > threshold[:, None, None]
