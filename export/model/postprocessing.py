"""From the heads' outputs to what ``infer`` returns, as a module: the reference runs it, and the stage ``scene`` is it.

Nothing here depends on values but through arithmetic: no list of pixels, no sorting, no branch in a trace. So the graph
has fixed shapes, and operators that every parser knows.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mapengine.runtime.geometry import FIT_MAX_PIXELS, FIT_SAMPLES_PER_AXIS
from mapengine.runtime.inputs.normalization import norm_constants
from mapengine.runtime.postprocessing.edges import NORM_GUARD

_NEIGHBOURS = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1) if row or column]


class PostProcessed(NamedTuple):
    """What :class:`PostProcessing` gives, by the names of ``infer``."""

    pts3d: Tensor
    pts3d_cam: Tensor
    depth_along_ray: Tensor
    cam_trans: Tensor
    non_ambiguous_mask: Tensor
    img_no_norm: Tensor
    depth_z: Tensor
    intrinsics: Tensor
    camera_poses: Tensor
    mask: Tensor


class PostProcessing(nn.Module):
    """Metric points, depths, masks, intrinsics, poses and plain images of N views. Has no parameters."""

    def __init__(self, data_norm_type: str) -> None:
        """Make it for images that are normalised in this way."""
        super().__init__()
        self._mean, self._std = norm_constants(data_norm_type)

    def forward(
        self,
        ray_directions: Tensor,
        unscaled_depth_along_ray: Tensor,
        confidence: Tensor,
        mask_logits: Tensor,
        unscaled_cam_trans: Tensor,
        cam_quats: Tensor,
        metric_scaling_factor: Tensor,
        images: Tensor,
        kept: Tensor,
        options: Tensor,
    ) -> PostProcessed:
        """Compute everything.

        Args:
            ray_directions: (N, H, W, 3) unit length.
            unscaled_depth_along_ray: (N, H, W, 1) in the network's own unit.
            confidence: (N, H, W), at least 1, as that of the head is.
            mask_logits: (N, H, W).
            unscaled_cam_trans: (N, 3) in the network's own unit.
            cam_quats: (N, 4) xyzw, camera-to-world.
            metric_scaling_factor: (N, 1), or (1) for all views; metres per unit.
            images: (N, 3, H, W) normalised.
            kept: (N, H, W) bool, where the view counts.
            options: (7), see :data:`mapengine.runtime.postprocessing.scene_stage.OPTIONS`.
        """
        apply_mask, mask_edges, edge_cosine, edge_depth, apply_confidence, rank, fraction = options.unbind()
        scale = metric_scaling_factor.reshape(-1, 1)
        distance = unscaled_depth_along_ray * scale[:, :, None, None]
        points = ray_directions * distance
        depth_z = points[..., 2:]
        translation = unscaled_cam_trans * scale
        rotation = _rotation(cam_quats)

        non_ambiguous = mask_logits > 0  # the same as sigmoid(logit) > 0.5
        mask = non_ambiguous
        if _may_be_set(apply_confidence):
            threshold = percentile(confidence.flatten(1), rank, fraction)
            mask = mask & ((confidence > threshold[:, :, None]) | (apply_confidence < 0.5))
        if _may_be_set(mask_edges):
            mask = mask & ~(edges(points, mask, edge_cosine, edge_depth) & (mask_edges > 0.5))
        inside = ((mask | (apply_mask < 0.5)) & kept)[..., None]

        def masked(values: Tensor) -> Tensor:
            return torch.where(inside, values, torch.zeros_like(values))

        x, y, z = points[..., :1], points[..., 1:2], points[..., 2:]
        columns = rotation[:, None, None].unbind(-1)  # (N, 1, 1, 3) each
        world = x * columns[0] + y * columns[1] + z * columns[2] + translation[:, None, None]
        last_row = torch.cat([torch.zeros_like(rotation[:, :1]), torch.ones_like(translation[:, :1, None])], 2)
        return PostProcessed(
            pts3d=masked(world),
            pts3d_cam=masked(points),
            depth_along_ray=masked(distance),
            cam_trans=translation,
            non_ambiguous_mask=non_ambiguous,
            img_no_norm=self._plain(images),
            depth_z=masked(depth_z),
            intrinsics=intrinsics_from_rays(ray_directions),
            camera_poses=torch.cat([torch.cat([rotation, translation[:, :, None]], 2), last_row], 1),
            mask=(mask & kept)[..., None],
        )

    def _plain(self, images: Tensor) -> Tensor:
        mean, std = (images.new_tensor(values) for values in (self._mean, self._std))
        return (images.permute(0, 2, 3, 1) * std + mean).clamp(0, 1)


def percentile(values: Tensor, rank: Tensor, fraction: Tensor) -> Tensor:
    """Return per row (N, P) the value of number ``rank`` in order, moved by ``fraction`` of the way on: (N, 1).

    Values are at least 1. Without sorting, and exact: the number is found digit by digit, in base 4, first of its
    exponent and then of its mantissa, each time as the largest of three candidates that at most ``rank`` values are
    below. What is not a number counts as largest.
    """
    low = torch.ones_like(values[:, :1])
    for exponents in ((64,), (16, 32, 48), (4, 8, 12), (1, 2, 3)):
        low = _largest_reached(values, low, low * values.new_tensor([2.0**exponent for exponent in exponents]), rank)
    bits = round(-math.log2(torch.finfo(values.dtype).eps))
    step = low
    for digit_bits in [2] * (bits // 2) + [1] * (bits % 2):
        step = step * 0.5**digit_bits
        low = _largest_reached(values, low, low + step * values.new_tensor(range(1, 2**digit_bits)), rank)
    up_to = (values <= low).to(values.dtype).sum(1, keepdim=True)
    largest = torch.full_like(values, torch.finfo(values.dtype).max)
    next_larger = torch.where(values > low, values, largest).amin(1, keepdim=True)
    high = torch.where(up_to > rank + 1, low, next_larger)
    return low + (high - low) * fraction


def _largest_reached(values: Tensor, low: Tensor, candidates: Tensor, rank: Tensor) -> Tensor:
    below = (values[:, None] < candidates[:, :, None]).to(values.dtype).sum(2)
    return torch.where(below <= rank, candidates, low).amax(1, keepdim=True)


def edges(points: Tensor, mask: Tensor, cosine: Tensor, relative_depth: Tensor) -> Tensor:
    """Return the pixels (N, H, W) bool where depth jumps and the surface normal turns, near pixels of ``mask``.

    As :func:`mapengine.runtime.postprocessing.edges.edge_mask`, whose rule for dot products above 1 is the reference's.
    ``points`` (N, H, W, 3) in the camera's axes.
    """
    planes, inside = points.permute(0, 3, 1, 2), mask[:, None]
    z = planes[:, 2:]
    outside = torch.full_like(z, -torch.finfo(z.dtype).max)
    spread = _dilated(torch.where(inside, z, outside)) + _dilated(torch.where(inside, -z, outside))
    jumps = spread / z > relative_depth
    normals, valid = _normals(planes, inside.to(planes.dtype))
    turns = _dilated(_turning(normals, valid, cosine).to(planes.dtype)) > 0.5
    return (jumps & turns)[:, 0]


def _dilated(planes: Tensor) -> Tensor:
    return F.max_pool2d(planes, 3, stride=1, padding=1)


def _normals(planes: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Return unit normals (N, 3, H, W), 0 where there is none, and whether there is one (N, 1, H, W) bool."""
    tall, wide = (0, 0, 1, 1), (1, 1, 0, 0)
    padded, padded_inside = F.pad(planes, tall), F.pad(inside, tall)
    above = (padded_inside[:, :, 1:] > 0.5) & (padded_inside[:, :, :-1] > 0.5)
    vertical = _if(above, padded[:, :, 1:] - padded[:, :, :-1])
    padded, padded_inside = F.pad(planes, wide), F.pad(inside, wide)
    beside = (padded_inside[..., 1:] > 0.5) & (padded_inside[..., :-1] > 0.5)
    horizontal = _if(beside, padded[..., 1:] - padded[..., :-1])
    # x, y, z, x, y: a cross product is then two products of slices.
    vertical, horizontal = (torch.cat([x, x[:, :2]], 1) for x in (vertical, horizontal))
    up, down = vertical[:, :, :-1], vertical[:, :, 1:]
    left, right = horizontal[..., :-1], horizontal[..., 1:]
    normals = torch.zeros_like(planes)
    for along, across in ((up, left), (down, left), (down, right), (up, right)):  # all four face the same side
        normals = normals + _unit(along[:, 1:4] * across[:, 2:5] - along[:, 2:5] * across[:, 1:4])
    valid = (above[:, :, :-1] | above[:, :, 1:]) & (beside[..., :-1] | beside[..., 1:])
    return _unit(_unit(normals)), valid  # the second only changes the last bit, as in the reference


def _turning(normals: Tensor, valid: Tensor, cosine: Tensor) -> Tensor:
    """Return pixels (N, 1, H, W) bool with a valid normal beside them that turns, where no dot product is above 1."""
    around, valid_around = F.pad(normals, (1, 1, 1, 1)), F.pad(valid.to(normals.dtype), (1, 1, 1, 1))
    undefined = (_dot(normals, normals) > 1) & valid
    turning = torch.zeros_like(valid)
    for row, column in _NEIGHBOURS:
        there = (slice(None), slice(None), _shifted(row), _shifted(column))
        dot, exists = _dot(normals, around[there]), valid_around[there] > 0.5
        turning = turning | ((dot < cosine) & exists)
        undefined = undefined | ((dot > 1) & exists)
    return turning & ~undefined


def _shifted(step: int) -> slice:
    """Return the part of an axis, padded by one on either side, that lies ``step`` further than what was padded."""
    return slice(1 + step, step - 1 if step < 1 else None)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the dot products (N, 1, H, W) of vectors (N, 3, H, W), summed in the order x, y, z as the reference does.

    Whether one rounds above 1 decides about pixels.
    """
    products = a * b
    return products[:, :1] + products[:, 1:2] + products[:, 2:]


def _unit(vectors: Tensor) -> Tensor:
    return vectors / (_square_root(_dot(vectors, vectors)) + NORM_GUARD)


def _square_root(x: Tensor) -> Tensor:
    """Return the correctly rounded square root, as the engines' libraries and NumPy do.

    That of PyTorch is off by one in the last bit for a fifth of all numbers on a CPU, which would decide about pixels.
    """
    return x.sqrt() if _traced() else x.double().sqrt().to(x.dtype)


def _if(condition: Tensor, values: Tensor) -> Tensor:
    return torch.where(condition, values, torch.zeros_like(values))


def _rotation(quaternion: Tensor) -> Tensor:
    """Return the rotation matrices (N, 3, 3) of quaternions (N, 4) xyzw, normalised first."""
    norm = (quaternion * quaternion).sum(-1, keepdim=True).sqrt()
    x, y, z, w = (quaternion / norm.clamp(min=torch.finfo(quaternion.dtype).tiny)).unbind(-1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(rows, -1).reshape(-1, 3, 3)


def intrinsics_from_rays(rays: Tensor) -> Tensor:
    """Return pinhole intrinsics (N, 3, 3) in pixels that explain ray directions (N, H, W, 3) best.

    As :func:`mapengine.runtime.geometry.intrinsics_from_rays`: least squares over a grid of rays, or the slope between
    three rays of the centre lines of images of more than a million pixels.
    """
    _, height, width, _ = rays.shape
    # Zero-dimensional tensors, not Python numbers: a traced graph must compute them from the rays that it gets.
    rows, columns = (torch.arange(side, device=rays.device).to(rays.dtype) for side in (height, width))
    h, w = rows.max() + 1, columns.max() + 1
    z = rays[..., 2]
    usable = z != 0
    slopes = rays[..., :2] / torch.where(usable, z, torch.ones_like(z))[..., None]
    sampled = usable & _on_grid(rows, h)[:, None] & _on_grid(columns, w)
    weight = sampled.to(rays.dtype)
    few = (h * w) <= FIT_MAX_PIXELS
    fx, cx = _fit_line(slopes[..., 0], columns[None, None, :], weight)
    fy, cy = _fit_line(slopes[..., 1], rows[None, :, None], weight)
    long_fx, long_cx = _three_point_line(slopes[..., 0], h, w)
    long_fy, long_cy = _three_point_line(slopes[..., 1].transpose(1, 2), w, h)
    fx, cx = torch.where(few, fx, long_fx), torch.where(few, cx, long_cx)
    fy, cy = torch.where(few, fy, long_fy), torch.where(few, cy, long_cy)
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    return torch.stack([fx, zero, cx, zero, fy, cy, zero, zero, one], -1).reshape(-1, 3, 3)


def _on_grid(positions: Tensor, size: Tensor) -> Tensor:
    step = (size / FIT_SAMPLES_PER_AXIS).floor().clamp(min=1)
    return positions == (positions / step).floor() * step


def _fit_line(slope: Tensor, pixel: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return focal length (N) and centre (N) of pixel = centre + focal * slope, by least squares."""
    sides = (1, 2)
    count = weight.sum(sides).clamp(min=1)
    mean_slope = (slope * weight).sum(sides) / count
    mean_pixel = (pixel * weight).sum(sides) / count
    # Both centred: sums of products of what is not lose the digits of a long focal length.
    centred = (slope - mean_slope[:, None, None]) * weight
    variance = (centred * centred).sum(sides)
    covariance = (centred * (pixel - mean_pixel[:, None, None])).sum(sides)
    focal = torch.where(variance > 0, covariance / torch.where(variance > 0, variance, 1), 0)
    return focal, mean_pixel - focal * mean_slope


def _three_point_line(slopes: Tensor, lines: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Return focal length (N) and centre (N) of the middle line of slopes (N, lines, length), from three points."""
    middle = (lines / 2).floor().long().reshape(1)
    index = torch.stack([(length * part).floor() for part in (0.25, 0.5, 0.75)])
    at = slopes.index_select(1, middle).index_select(2, index.long())[:, 0]  # (N, 3)
    step, run = at[:, 1:] - at[:, :-1], index[1:] - index[:-1]
    focal = torch.where(step != 0, run / torch.where(step != 0, step, 1), 0).mean(1)
    return focal, index[1] - focal * at[:, 1]


def _may_be_set(flag: Tensor) -> bool:
    """Return whether what an option asks for has to be computed: always in a graph, which serves every call."""
    return _traced() or bool(flag > 0.5)


def _traced() -> bool:
    return torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()
