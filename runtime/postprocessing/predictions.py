"""From the heads' outputs to what ``infer`` returns: metric points, masks, intrinsics, poses, plain images.

As in MapAnything inference (assembly of the predictions and their post-processing). Used by the runtime and, with the
same numbers, by the PyTorch reference. No function changes an array that it was given, but for the arrays of ``into``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np

from .. import geometry
from ..errors import InputError
from ..geometry import Array, zero_outside
from ..inputs.normalization import denormalize_image
from ..options import DEFAULTS, OUTPUTS, InferOptions
from ..system.threads import in_order
from . import edges, multiview
from .scene_stage import present_outputs

Heads = Mapping[str, Array]
"""The outputs of the dense head for one view, and the scale: the arguments of :func:`forward_outputs`."""

FORWARD_OUTPUTS = OUTPUTS[: OUTPUTS.index("img_no_norm")]
"""What :func:`forward_outputs` gives: all that needs no image and no post-processing."""

_METRIC = frozenset({"pts3d", "pts3d_cam", "depth_along_ray", "depth_z"})
_MASKED = _METRIC | {"mask"}
_CAMERA_POINTS = frozenset({"pts3d", "pts3d_cam"})
_POSE = frozenset({"cam_trans", "cam_quats", "scale"})
_POINTS = frozenset({"ray_directions", "depth_along_ray", "scale"})
_NEEDS: dict[str, frozenset[str]] = {
    "pts3d": _POINTS | _POSE,
    "pts3d_cam": _POINTS,
    "ray_directions": frozenset({"ray_directions"}),
    "depth_along_ray": frozenset({"depth_along_ray", "scale"}),
    "cam_trans": frozenset({"cam_trans", "scale"}),
    "cam_quats": frozenset({"cam_quats"}),
    "metric_scaling_factor": frozenset({"scale"}),
    "conf": frozenset({"confidence"}),
    "non_ambiguous_mask": frozenset({"mask_logits"}),
    "non_ambiguous_mask_logits": frozenset({"mask_logits"}),
    "img_no_norm": frozenset(),
    "depth_z": _POINTS,
    "intrinsics": frozenset({"ray_directions"}),
    "camera_poses": _POSE,
    "mask": frozenset({"mask_logits"}),
}
"""Which of the heads' outputs each output is made of, without the mask."""

_PRODUCT_PIXELS = 16_384
"""Points multiplied at a time: few enough for BLAS to use no threads of its own beside ours."""

SMALL_PIXELS = 65_536
"""A view of fewer is finished by the caller's thread: several would wait longer for the interpreter than they save."""

_SMALL_VIEWS = 8
"""Small views that wait to be finished together, so that the network is not held up between them."""

_EXACT = ("intrinsics", "camera_poses", "mask", "non_ambiguous_mask")
"""What :func:`halved` leaves as it is, besides vectors: cameras, and what has no fraction."""


def needed_heads(options: InferOptions, outputs: Collection[str] = OUTPUTS) -> frozenset[str]:
    """Return which of the heads' outputs, and whether the ``scale``, are read for ``outputs``."""
    needs = frozenset().union(*(_NEEDS[name] for name in outputs))
    if options.apply_mask and not _MASKED.isdisjoint(outputs):
        needs |= _NEEDS["mask"]
        if options.apply_confidence_mask:
            needs |= _NEEDS["conf"]
        if options.mask_edges:
            needs |= _POINTS
    if options.use_multiview_confidence and (options.apply_confidence_mask or "conf" in outputs):
        needs |= _POINTS | _POSE | _NEEDS["non_ambiguous_mask"]
    return needs


def forward_outputs(
    ray_directions: Array,
    depth_along_ray: Array,
    confidence: Array,
    mask_logits: Array,
    cam_trans: Array,
    cam_quats: Array,
    scale: Array,
) -> dict[str, Array]:
    """Assemble one view's metric predictions from the heads' outputs (after their adaptors), without a mask.

    ``ray_directions`` (B, H, W, 3) unit length, ``depth_along_ray`` (B, H, W, 1) and ``cam_trans`` (B, 3) in the
    network's own unit, ``confidence`` and ``mask_logits`` (B, H, W), ``cam_quats`` (B, 4) xyzw camera-to-world,
    ``scale`` (B, 1) metres per unit. Rays, quaternions, confidence and logits are passed on as they are.
    """
    heads = {
        "ray_directions": ray_directions,
        "depth_along_ray": depth_along_ray,
        "confidence": confidence,
        "mask_logits": mask_logits,
        "cam_trans": cam_trans,
        "cam_quats": cam_quats,
        "scale": scale,
    }
    return finish_view(heads, None, _UNMASKED, FORWARD_OUTPUTS)


_UNMASKED = InferOptions(apply_mask=False)


def heads_of(prediction: Mapping[str, Array]) -> dict[str, Array]:
    """Return the heads' outputs that would give a prediction without a mask, in metres: their ``scale`` is 1."""
    return {
        "ray_directions": prediction["ray_directions"],
        "depth_along_ray": prediction["depth_along_ray"],
        "confidence": prediction["conf"],
        "mask_logits": prediction["non_ambiguous_mask_logits"],
        "cam_trans": prediction["cam_trans"],
        "cam_quats": prediction["cam_quats"],
        "scale": np.ones_like(prediction["metric_scaling_factor"]),
    }


def finish_predictions(
    heads: Iterable[Heads],
    images: Sequence[Array],
    options: InferOptions = DEFAULTS,
    outputs: Collection[str] = OUTPUTS,
    *,
    kept: Sequence[Array | None] | None = None,
    data_norm_type: str = "dinov2",
    into: Sequence[Mapping[str, Array]] | None = None,
    threads: int | None = None,
) -> Iterator[dict[str, Array]]:
    """Yield one dictionary per view of a call, in order: see :func:`finish_view`.

    Args:
        heads: what the network says of each view. Views are taken as fast as they come, and finished meanwhile, or
            eight by eight if they are small; but multi-view confidence waits for the last one.
        images: the normalised inputs, V times (B, 3, H, W).
        options: of the call.
        outputs: what each dictionary holds, of :data:`..options.OUTPUTS`.
        kept: per view (B, H, W) bool, where it counts, or None.
        data_norm_type: of the images.
        into: per view the arrays that hold the results, by name; what is not among them is new.
        threads: that large views are finished on, all processors that this process may use unless given.

    Raises:
        InputError: as many views as images are needed.
    """
    confidences: Sequence[Array | None] = [None] * len(images)
    if options.use_multiview_confidence and (options.apply_confidence_mask or "conf" in outputs):
        heads = list(heads)
        confidences = _multiview_confidences(heads, options)

    def numbered() -> Iterator[tuple[int, Heads]]:
        count = 0
        for count, view in enumerate(heads, 1):
            if count <= len(images):
                yield count - 1, view
        if count != len(images):
            raise InputError(f"there are {count} predictions but {len(images)} images; give one image per view")

    def finish(view: tuple[int, Heads]) -> dict[str, Array]:
        index, maps = view
        return finish_view(
            maps,
            images[index] if "img_no_norm" in outputs else None,  # an image that comes as bytes is normalised by this
            options,
            outputs,
            kept=None if kept is None else kept[index],
            confidence=confidences[index],
            data_norm_type=data_norm_type,
            into=None if into is None else into[index],
        )

    def finished() -> Iterator[dict[str, Array]]:
        views = numbered()
        first = list(islice(views, 1))
        views = chain(first, views)
        if any(math.prod(values.shape[1:3]) >= SMALL_PIXELS for _, maps in first for values in maps.values()):
            yield from in_order(finish, views, threads)
        while batch := list(islice(views, _SMALL_VIEWS)):
            yield from map(finish, batch)

    return finished()


def finish_view(
    heads: Heads,
    image: Array | None,
    options: InferOptions = DEFAULTS,
    outputs: Collection[str] = OUTPUTS,
    *,
    kept: Array | None = None,
    confidence: Array | None = None,
    data_norm_type: str = "dinov2",
    into: Mapping[str, Array] | None = None,
) -> dict[str, Array]:
    """Return what ``infer`` returns for one view: ``outputs``, and nothing that they do not need is computed.

    Args:
        heads: what :func:`needed_heads` names, with the shapes of :func:`forward_outputs`.
        image: normalised (B, 3, H, W); only read for ``img_no_norm``.
        options: of the call. With ``apply_mask`` points and depths are 0 outside the mask. Without it, and without
            ``kept``, there is no ``mask``, whatever ``outputs`` says.
        outputs: of :data:`..options.OUTPUTS`, which has their order.
        kept: (B, H, W) bool, where the view counts: elsewhere there are no points, depths and mask in any case.
        confidence: (B, H, W), in place of the network's (multi-view confidence).
        data_norm_type: of the image.
        into: arrays of the right shape and type, C-contiguous, which get results and are those of the dictionary.
    """
    wanted = present_outputs(outputs, options, kept)
    given = into or {}
    masks = options.apply_mask and not _MASKED.isdisjoint(wanted)
    finds_edges = masks and options.mask_edges
    scale = heads["scale"] if "scale" in heads else np.empty((0, 1), np.float32)  # only read where it is needed

    distance: Any = None  # (B, H, W, 1), metres
    camera: Any = None  # x, y, z in camera axes, metres, and 1 where they count: planes (B, 4, H, W), or the last two
    pose: Any = None
    mask: Any = None
    with np.errstate(over="ignore", invalid="ignore"):
        if finds_edges or not _METRIC.isdisjoint(wanted):
            distance = heads["depth_along_ray"] * scale[:, :, None, None]
        if finds_edges or not _CAMERA_POINTS.isdisjoint(wanted):
            camera = _camera_planes(heads["ray_directions"], distance)
        elif "depth_z" in wanted:
            camera = _camera_planes(heads["ray_directions"][..., 2:], distance)
        if masks:
            mask = _final_mask(heads, camera, confidence, options)
        if kept is not None:
            mask = kept if mask is None else mask & kept
        if camera is not None:
            camera[:, -1] = 1 if mask is None else mask
            if mask is not None:
                zero_outside(camera[:, :-1], mask[:, None])
        if mask is not None and "depth_along_ray" in wanted:
            zero_outside(distance, mask[..., None])
        if not wanted.isdisjoint({"pts3d", "camera_poses"}):
            pose = geometry.pose_matrix(heads["cam_quats"], heads["cam_trans"] * scale)
        if "pts3d" in wanted:
            shape, dtype = heads["ray_directions"].shape, heads["ray_directions"].dtype
            pts3d = given["pts3d"] if "pts3d" in given else np.empty(shape, dtype)
            _fill_points(camera, pose, pts3d)

    make: dict[str, Callable[[], Array]] = {
        "pts3d": lambda: pts3d,
        "pts3d_cam": lambda: np.moveaxis(camera[:, :-1], 1, -1),
        "ray_directions": lambda: heads["ray_directions"],
        "depth_along_ray": lambda: distance,
        "cam_trans": lambda: heads["cam_trans"] * scale,
        "cam_quats": lambda: heads["cam_quats"],
        "metric_scaling_factor": scale.copy,  # the views of a call share it, their dictionaries do not
        "conf": lambda: heads["confidence"] if confidence is None else confidence,
        "non_ambiguous_mask": lambda: heads["mask_logits"] > 0,  # the same as sigmoid(logit) > 0.5
        "non_ambiguous_mask_logits": lambda: heads["mask_logits"],
        "img_no_norm": lambda: denormalize_image(np.asarray(image), data_norm_type),
        "depth_z": lambda: camera[:, -2, ..., None],
        "intrinsics": lambda: geometry.intrinsics_from_rays(heads["ray_directions"]),
        "camera_poses": lambda: pose,
        "mask": lambda: (mask if options.apply_mask else mask & (heads["mask_logits"] > 0))[..., None],
    }
    result = {name: make[name]() for name in OUTPUTS if name in wanted}
    for name, values in result.items():
        if name not in given:
            if name in ("pts3d_cam", "depth_z"):  # or the result would keep all of the planes
                result[name] = values.copy()
        elif values is not given[name]:
            given[name][...] = values
            result[name] = given[name]
    return result


def _camera_planes(rays: Array, distance: Array) -> Array:
    """Return points in camera axes, of rays (B, H, W, N) and distances (B, H, W, 1), as planes (B, N + 1, H, W).

    The last plane is left to the mask. Plane by plane since NumPy is slow where the last axis has three elements, and
    the edge mask reads planes.
    """
    batch, height, width, axes = rays.shape
    planes = np.empty((batch, axes + 1, height, width), rays.dtype)
    for axis in range(axes):
        np.multiply(rays[..., axis], distance[..., 0], out=planes[:, axis])
    return planes


def _final_mask(heads: Heads, camera: Array, confidence: Array | None, options: InferOptions) -> Array:
    """Return the mask (B, H, W) bool; the points of :func:`_camera_planes` are only read where edges are left out."""
    mask: Array = heads["mask_logits"] > 0
    if options.apply_confidence_mask:
        conf = heads["confidence"] if confidence is None else confidence
        mask &= confidence_mask(conf, options.confidence_percentile)
    if options.mask_edges:
        for planes, inside in zip(camera, mask, strict=True):
            inside &= ~edges.edge_mask(
                np.moveaxis(planes[:3], 0, -1),
                planes[2],
                inside,
                normal_threshold=options.edge_normal_threshold,
                depth_threshold=options.edge_depth_threshold,
            )
    return mask


def _fill_points(camera: Array, pose: Array, points: Array) -> None:
    """Write points (B, H, W, 3) in the world's axes, of those of :func:`_camera_planes` by ``pose`` (B, 4, 4).

    The fourth plane adds the translation in the same product.
    """
    for planes, matrix, moved in zip(camera, pose[:, :3].astype(camera.dtype), points, strict=True):
        _, height, width = planes.shape
        rows = min(height, max(1, _PRODUCT_PIXELS // width))
        whole = height - height % rows
        for block, result in ((planes[:, :whole], moved[:whole]), (planes[:, whole:], moved[whole:])):
            if block.size:
                parts = block.reshape(4, -1, min(rows, block.shape[1]) * width)
                np.matmul(np.moveaxis(parts, 0, -1), matrix.T, out=result.reshape(parts.shape[1], -1, 3))
        if not np.isfinite(matrix).all():  # outlasts a product with 0
            zero_outside(moved, planes[3, ..., None] != 0)


def _multiview_confidences(heads: Iterable[Heads], options: InferOptions) -> list[Array]:
    """Return the confidence (B, H, W) of each view by how the depths of the views agree."""
    wanted = ("depth_z", "intrinsics", "camera_poses", "non_ambiguous_mask")
    views = [finish_view(view, None, _UNMASKED, wanted) for view in heads]
    return multiview.multiview_confidence(
        *([view[name] for view in views] for name in wanted),
        depth_abs_thresh=options.multiview_conf_depth_abs_thresh,
        depth_rel_thresh=options.multiview_conf_depth_rel_thresh,
    )


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
