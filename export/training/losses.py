r"""Training losses of MapAnything (arXiv 2509.13414, section "Training losses"), for factored, up-to-scale predictions.

Predicted per view i: unit rays :math:`\hat R_i`, depth along the ray :math:`\hat D_i`, quaternion :math:`\hat Q_i` and
translation :math:`\hat T_i` (camera to world, in the frame of view 0), all in one unknown unit, and one metric factor
:math:`\hat m`. With local points :math:`\hat L_i = \hat R_i \hat D_i` and world points
:math:`\hat X_i = O(\hat Q_i) \hat L_i + \hat T_i`, over the valid pixels :math:`V` of all views of a sample::

    z      = sum |X| / |V|                                     mean distance, of truth and prediction each
    f(x)   = x / |x| * log(1 + |x|)                            log space, direction kept
    rays   = mean |R^ - R|
    rot    = mean min(|Q^ - Q|, |Q^ + Q|)
    trans  = mean |T^ / z^ - T / z|
    depth  = mean |log(D^ / z^) - log(D / z)|
    rel    = mean |(D^ / z^) / (D / z) - 1|
    local  = mean |f(L^ / z^) - f(L / z)|
    points = mean C |f(X^ / z^) - f(X / z)| - alpha log C      C is the confidence (DUSt3R, arXiv 2312.14132)
    scale  = |log(m stop(z^)) - log(z)|
    grad   = mean |d(log D^ - log D)|                          neighbours, both valid (MiDaS, arXiv 1907.01341)
    normal = mean 1 - n^ . n                                   of the local points (arXiv 2410.19115)
    mask   = binary cross entropy of the mask logits           1 where there is depth

Where this differs from the paper: depth is compared in plain logarithms and not through f, since what is judged is the
relative error; so is the scale. The term ``rel`` is that error itself, for the last part of a run: at an edge the
logarithm asks for the likelier of two surfaces, the relative error for the nearer one unless that is very unlikely,
because too far costs more than too near. Terms are averaged over pixels without the paper's exclusion of the worst 5 %
and its robust kernel, as rendered depth has no outliers. Gradient and normal terms apply to all data, because all of it
is synthetic.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .batch import Targets
from .config import LossWeights

_MIN = 1e-6
_MOST = 4.0
"""Log depth error above which the relative error grows no more: networks at their start are off by any factor."""
_EDGE = 0.1
"""Log depth step between neighbours above which they lie on different surfaces."""


class Predictions(NamedTuple):
    """B samples of V views before metric scaling; shapes as in :class:`.batch.Targets`, ``scale`` (B, 1)."""

    rays: Tensor
    depth: Tensor
    confidence: Tensor
    mask_logits: Tensor
    quaternions: Tensor
    translations: Tensor
    scale: Tensor


def training_loss(predicted: Predictions, targets: Targets, weights: LossWeights) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the weighted sum, and every term of it (unweighted, detached)."""
    terms = loss_terms(predicted, targets, weights.confidence)
    factors = asdict(weights)
    total = torch.stack([factors[name] * value for name, value in terms.items()]).sum()
    return total, {name: value.detach() for name, value in terms.items()}


def loss_terms(predicted: Predictions, targets: Targets, alpha: float) -> dict[str, Tensor]:
    """Return all terms, unweighted, by the name of their weight."""
    valid = targets.depth > 0
    weight = valid / valid.sum().clamp(min=1)
    true_depth = targets.depth.clamp(min=_MIN)

    local, true_local = predicted.rays * predicted.depth[..., None], targets.rays * targets.depth[..., None]
    world = _to_world(local, predicted.quaternions, predicted.translations)
    true_world = _to_world(true_local, targets.quaternions, targets.translations)
    size, true_size = _mean_distance(world, valid), _mean_distance(true_world, valid)  # (B,)
    pixel, true_pixel = size[:, None, None, None], true_size[:, None, None, None]
    vector, true_vector = pixel[..., None], true_pixel[..., None]

    point_error = _norm(_log_space(world / vector) - _log_space(true_world / true_vector))
    log_ratio = torch.log(predicted.depth / pixel) - torch.log(true_depth / true_pixel)
    log_confidence = torch.log(predicted.confidence)
    sign_error = torch.minimum(
        _norm(predicted.quaternions - targets.quaternions), _norm(predicted.quaternions + targets.quaternions)
    )
    translation_error = _norm(
        predicted.translations / size[:, None, None] - targets.translations / true_size[:, None, None]
    )
    mask_error = F.binary_cross_entropy_with_logits(predicted.mask_logits, valid.float())
    return {
        "pointmap": ((predicted.confidence * point_error - alpha * log_confidence) * weight).sum(),
        "local_points": (_norm(_log_space(local / vector) - _log_space(true_local / true_vector)) * weight).sum(),
        "depth": (log_ratio.abs() * weight).sum(),
        "relative": (torch.expm1(log_ratio.clamp(max=_MOST)).abs() * weight).sum(),
        "rays": _norm(predicted.rays - targets.rays).mean(),
        "rotation": sign_error.mean(),
        "translation": translation_error.mean(),
        "scale": (torch.log(predicted.scale[:, 0] * size.detach()) - torch.log(true_size)).abs().mean(),
        "gradient": _gradient_error(log_ratio, valid, true_depth),
        "normal": _normal_error(local, true_local, valid, true_depth),
        "mask": mask_error,
    }


def _to_world(points: Tensor, quaternions: Tensor, translations: Tensor) -> Tensor:
    """Move (B, V, H, W, 3) camera points by quaternions (B, V, 4) xyzw, normalised, and translations (B, V, 3)."""
    x, y, z, w = quaternions.unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    rotation = torch.stack([torch.stack(row, -1) for row in rows], -2)  # (B, V, 3, 3)
    shape = points.shape
    moved = points.reshape(*shape[:2], -1, 3) @ rotation.transpose(-1, -2) + translations[:, :, None]
    return moved.reshape(shape)


def _mean_distance(points: Tensor, valid: Tensor) -> Tensor:
    """Return the mean distance from the origin of the valid points of each sample, (B,)."""
    dims = (1, 2, 3)
    return ((_norm(points) * valid).sum(dims) / valid.sum(dims).clamp(min=1)).clamp(min=_MIN)


def _norm(vectors: Tensor) -> Tensor:
    """Return the length over the last axis, with a gradient at zero."""
    return (vectors * vectors).sum(-1).add(1e-12).sqrt()


def _log_space(vectors: Tensor) -> Tensor:
    length = _norm(vectors)[..., None]
    return vectors * (torch.log1p(length) / length)


def _neighbours(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Return each pixel's value and the next one's along an image axis."""
    size = x.shape[axis]
    return x.narrow(axis, 0, size - 1), x.narrow(axis, 1, size - 1)


def _same_surface(valid: Tensor, true_depth: Tensor, axis: int) -> Tensor:
    (here, there), (near, far) = _neighbours(valid, axis), _neighbours(torch.log(true_depth), axis)
    return here & there & ((near - far).abs() < _EDGE)


def _gradient_error(log_ratio: Tensor, valid: Tensor, true_depth: Tensor) -> Tensor:
    total = log_ratio.new_zeros(())
    for axis in (2, 3):
        here, there = _neighbours(log_ratio, axis)
        both = _neighbours(valid, axis)
        pairs = both[0] & both[1]
        total = total + ((here - there).abs() * pairs).sum() / pairs.sum().clamp(min=1)
    return total


def _normals(points: Tensor) -> Tensor:
    """Return normals (B, V, H - 1, W - 1, 3) from the next pixel to the right and below."""
    corner = points[:, :, :-1, :-1]
    right, below = points[:, :, :-1, 1:] - corner, points[:, :, 1:, :-1] - corner
    return F.normalize(torch.linalg.cross(right, below), dim=-1, eps=_MIN)


def _normal_error(local: Tensor, true_local: Tensor, valid: Tensor, true_depth: Tensor) -> Tensor:
    right = _same_surface(valid, true_depth, 3)[:, :, :-1]
    below = _same_surface(valid, true_depth, 2)[:, :, :, :-1]
    inside = right & below
    error = 1 - (_normals(local) * _normals(true_local)).sum(-1)
    return (error * inside).sum() / inside.sum().clamp(min=1)
