"""From the network's raw maps to what ``infer`` returns: metric points, masks, intrinsics, poses, plain images.

As in MapAnything inference (assembly of the predictions and their post-processing). Used by the runtime and, with the
same numbers, by the PyTorch reference. No function changes an array that it was given, unless told to (``overwrite``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from .. import geometry
from ..errors import InputError
from ..geometry import Array
from ..inputs.normalization import denormalize_image
from ..options import DEFAULTS, InferOptions
from . import edges, multiview

_EXACT = ("intrinsics", "camera_poses", "mask", "non_ambiguous_mask")
"""What :func:`halved` leaves as it is, besides vectors: cameras, and what has no fraction."""


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


def finish_predictions(
    predictions: Sequence[Mapping[str, Array]],
    images: Sequence[Array],
    options: InferOptions = DEFAULTS,
    *,
    data_norm_type: str = "dinov2",
    overwrite: bool = False,
) -> list[dict[str, Array]]:
    """Post-process the predictions of all views of a call: one new dictionary per view.

    ``predictions`` as ``forward_outputs`` gives them, ``images`` the normalised inputs (B, 3, H, W). With ``overwrite``
    the points and depths given are masked in place.
    """
    if len(predictions) != len(images):
        raise InputError(f"there are {len(predictions)} predictions but {len(images)} images; give one image per view")
    confidences: list[Array | None] = [None] * len(predictions)
    if options.use_multiview_confidence:
        confidences[:] = multiview.multiview_confidence(
            [np.ascontiguousarray(prediction["pts3d_cam"][..., 2:]) for prediction in predictions],
            [geometry.intrinsics_from_rays(prediction["ray_directions"]) for prediction in predictions],
            [geometry.pose_matrix(prediction["cam_quats"], prediction["cam_trans"]) for prediction in predictions],
            [prediction["non_ambiguous_mask"] for prediction in predictions],
            depth_abs_thresh=options.multiview_conf_depth_abs_thresh,
            depth_rel_thresh=options.multiview_conf_depth_rel_thresh,
        )
    return [
        finish_view(
            prediction, image, options, confidence=confidence, data_norm_type=data_norm_type, overwrite=overwrite
        )
        for prediction, image, confidence in zip(predictions, images, confidences, strict=True)
    ]


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


def outside_masked(prediction: Mapping[str, Array], mask: Array) -> dict[str, Array]:
    """Return what :func:`finish_view` gave without points and depth where ``mask`` (B, H, W) bool is False."""
    result = dict(prediction)
    result["mask"] = result.get("mask", result["non_ambiguous_mask"][..., None]) & mask[..., None]
    for key in ("pts3d", "pts3d_cam", "depth_along_ray", "depth_z"):
        result[key] = np.where(mask[..., None], result[key], result[key].dtype.type(0))
    return result


def halved(prediction: Mapping[str, Array]) -> dict[str, Array]:
    """Return a view with float16 for what has a value per pixel; values beyond its range become the largest one."""
    most = np.finfo(np.float16).max
    return {
        key: np.clip(value, -most, most).astype(np.float16) if value.ndim >= 3 and key not in _EXACT else value
        for key, value in prediction.items()
    }


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
