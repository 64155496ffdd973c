"""The frame of a result: that of view 0, as the network has it, or the world of the poses that were given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, warn
from ..geometry import all_finite, closest_rotation, matrix_to_quaternion, pose_matrix, zero_outside
from ..inputs.prepared import PreparedView
from ..options import InferOptions

Array = NDArray[Any]

FRAMES = ("given", "view0")
"""The world of the given poses (where there are some), or the camera of view 0."""

_FAR = 100.0
"""Units from the origin above which coordinates are float64: float32 leaves less than five digits behind the point."""
_AT_ONE_PLACE = 1e-9
"""Of the largest coordinate: centres that are nearer to each other differ by rounding alone."""


@dataclass(frozen=True, eq=False)
class Alignment:
    """The transform from the frame of view 0, in which the network predicts, into the world of the given poses.

    It fits the predicted cameras to the given ones: rigid where the poses are metric, else a similarity. Centres and
    orientations count, so one pose, two poses and cameras on a line determine it. In closed form: the rotation is the
    best one for the centres, over their spread, and the axes of the cameras together; scale and translation are then
    the least squares of the centres.

    Attributes:
        rotation, translation: (3, 3) and (3,) float64.
        scale: by which lengths are multiplied before; 1 for a rigid transform.
        cameras: how many poses were given.
        metric: whether they are in metres.
        translation_error: root mean square of the distances between predicted and given centres afterwards, in the
            unit of the given poses.
        rotation_error: root mean square of the angles between them, degrees.
        note: why the scale is that of the network although the poses are not metric, or empty.
    """

    rotation: NDArray[np.float64]
    translation: NDArray[np.float64]
    scale: float
    cameras: int
    metric: bool
    translation_error: float
    rotation_error: float
    note: str = ""

    @property
    def matrix(self) -> NDArray[np.float64]:
        """(4, 4), for homogeneous points."""
        result = np.eye(4)
        result[:3, :3], result[:3, 3] = self.scale * self.rotation, self.translation
        return result

    @property
    def dtype(self) -> type[np.floating[Any]]:
        """Type of points and poses in that world: float64 where float32 has too few digits, as for map coordinates."""
        return np.float64 if np.abs(self.translation).max() > _FAR else np.float32

    def __str__(self) -> str:
        unit = "m" if self.metric else "of their unit"
        kind = "rigid" if self.scale == 1 else f"scaled by {self.scale:.4g}"
        count = f"{self.cameras} given pose{'' if self.cameras == 1 else 's'}"
        text = f"of {count}, {kind}; off by {self.translation_error:.3g} {unit} and {self.rotation_error:.3g} degrees"
        return f"{text} ({self.note})" if self.note else text

    def facts(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "matrix": self.matrix.tolist(),
            "scale": self.scale,
            "given_poses": self.cameras,
            "metric": self.metric,
            "translation_error": self.translation_error,
            "rotation_error_degrees": self.rotation_error,
            "note": self.note,
        }

    def arrays(self) -> dict[str, Array]:
        """Return it for an archive; :meth:`of_arrays` is the inverse."""
        return {f"alignment_{field.name}": np.asarray(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Array]) -> Alignment | None:
        """Return what :meth:`arrays` gave, or None where there is nothing of it.

        Raises:
            ValueError: it is not what was written.
        """
        found: dict[str, Any] = {}
        for field in fields(cls):
            array = arrays.get(f"alignment_{field.name}")
            if array is None:
                if found:
                    raise ValueError(f"alignment_{field.name} is missing")
                continue
            if (array.dtype.kind, array.shape) != _STORED[field.name]:
                raise ValueError(f"alignment_{field.name} is {array.dtype} of shape {array.shape}")
            found[field.name] = array if array.shape else array.item()
        return cls(**found) if found else None

    def poses(self, poses: Array) -> Array:
        """Return camera-to-world poses (..., 4, 4) in the world of the given ones."""
        moved = np.empty(poses.shape, np.float64)
        moved[..., :3, :3] = self.rotation @ poses[..., :3, :3]
        moved[..., :3, 3] = self.scale * (poses[..., :3, 3] @ self.rotation.T) + self.translation
        moved[..., 3, :] = (0, 0, 0, 1)
        return moved.astype(self.dtype)

    def points(self, points: Array, mask: Array) -> Array:
        """Return points (..., 3) in the world of the given poses, and 0 outside the mask (...)."""
        points = points.astype(np.result_type(points, np.float32), copy=False)
        flat = points.reshape(-1, 3) @ (self.scale * self.rotation.T).astype(points.dtype)
        moved = flat.astype(self.dtype, copy=False)
        moved += self.translation.astype(self.dtype)
        zero_outside(moved, mask.reshape(-1, 1))
        return moved.reshape(points.shape)


_STORED: dict[str, tuple[str, tuple[int, ...]]] = {
    "rotation": ("f", (3, 3)),
    "translation": ("f", (3,)),
    "scale": ("f", ()),
    "cameras": ("i", ()),
    "metric": ("b", ()),
    "translation_error": ("f", ()),
    "rotation_error": ("f", ()),
    "note": ("U", ()),
}
"""Kind and shape of each field in an archive."""


def check_frame(frame: Any) -> None:
    """Refuse what is none of :data:`FRAMES` (InputError)."""
    if frame not in FRAMES:
        raise InputError(f"frame is {frame!r}; choose {' or '.join(FRAMES)}")


def align_cameras(predicted: Array, given: Array, metric: bool) -> Alignment:
    """Return the best transform from predicted to given cameras.

    Args:
        predicted, given: (N, 4, 4) camera-to-world poses of the same N cameras, one or more, finite.
        metric: whether the given ones are in metres, as the predicted ones are; then nothing is scaled.
    """
    predicted, given = predicted.astype(np.float64), given.astype(np.float64)
    turns, wanted = predicted[:, :3, :3], given[:, :3, :3]
    centre, target = predicted[:, :3, 3].mean(axis=0), given[:, :3, 3].mean(axis=0)
    offsets, goals = predicted[:, :3, 3] - centre, given[:, :3, 3] - target
    spread, wanted_spread = (math.sqrt(np.mean(np.sum(values * values, axis=-1))) for values in (offsets, goals))
    moved = spread > _rounding(predicted, np.float32) and wanted_spread > _rounding(given, np.float64)
    covariance = np.einsum("nij,nkj->ik", wanted, turns)
    if moved:
        covariance += goals.T @ offsets / (spread * wanted_spread)
    rotation = closest_rotation(covariance)
    turned = offsets @ rotation.T
    scale, note = 1.0, ""
    if not metric:
        agreement = float(np.sum(turned * goals)) if moved else 0.0
        if len(given) == 1:
            note = "one pose has no scale, so it is the network's"
        elif not moved:
            note = "cameras at one place have no scale, so it is the network's"
        elif agreement <= 0:
            note = "the predicted cameras do not follow the given ones, so the scale is the network's"
        else:
            scale = agreement / float(np.sum(offsets * offsets))
    off = scale * turned - goals
    chords = np.linalg.norm(rotation @ turns - wanted, axis=(1, 2)) / (2 * math.sqrt(2))  # sines of half the angles
    angles = 2 * np.arcsin(np.minimum(chords, 1))
    return Alignment(
        rotation,
        target - scale * (rotation @ centre),
        scale,
        len(given),
        metric,
        translation_error=math.sqrt(np.mean(np.sum(off * off, axis=-1))),
        rotation_error=math.degrees(math.sqrt(np.mean(angles * angles))),
        note=note,
    )


def alignment_of(
    poses: Sequence[Array] | Array, views: Sequence[PreparedView], options: InferOptions
) -> Alignment | None:
    """Return the transform into the world of the poses that the views brought.

    Args:
        poses: (4, 4) of each view, as predicted.
        views: with a batch of one.
        options: of the call; poses that it ignores count as not given.

    Returns:
        None where no view has a pose, or none that has one was predicted a finite one, which a warning says.
    """
    if options.ignore_pose_inputs:
        return None
    posed = [(pose, view) for pose, view in zip(poses, views, strict=True) if view.pose is not None]
    pairs = [(pose, view) for pose, view in posed if all_finite(pose)]
    if not pairs:
        if posed:
            warn(
                "the network predicted no finite pose of a view whose pose was given, so the result stays in the "
                "camera of view 0; try another precision or backend"
            )
        return None
    given = np.stack([pose_matrix(*view.pose)[0] for _, view in pairs if view.pose is not None])
    metric = not options.ignore_pose_scale_inputs and all(view.is_metric.all() for _, view in pairs)
    return align_cameras(np.stack([pose for pose, _ in pairs]), given, metric)


def move_arrays(arrays: dict[str, Array], alignment: Alignment) -> None:
    """Move the arrays of a scene, which :mod:`.scene_arrays` names, into the world of the given poses.

    Depth is scaled with them; points stay the unprojected depth, seen from the poses.
    """
    points, scale = arrays["points"], alignment.scale
    moved = points if alignment.dtype == points.dtype else np.empty(points.shape, alignment.dtype)
    for own, result, mask in zip(points, moved, arrays["mask"], strict=True):
        result[...] = alignment.points(own, mask)
    arrays["points"] = moved
    arrays["poses"] = alignment.poses(arrays["poses"])
    if scale != 1:
        arrays["depth"] *= np.float32(scale)


def moved_prediction(prediction: Mapping[str, Array], alignment: Alignment) -> dict[str, Array]:
    """Return what ``infer`` gives for a view, in the world of the given poses: points, depths, pose and scale."""
    result = dict(prediction)
    scale = np.float32(alignment.scale)
    for name in ("pts3d_cam", "depth_along_ray", "depth_z", "metric_scaling_factor"):
        if name in result:
            result[name] = result[name] * scale
    if "pts3d" in result:
        points = result["pts3d"]
        mask = result["mask"][..., 0] if "mask" in result else np.ones(points.shape[:-1], bool)
        result["pts3d"] = alignment.points(points, mask)
    if "camera_poses" in result:
        poses = alignment.poses(result["camera_poses"])
        result["camera_poses"] = poses
        result["cam_trans"] = poses[..., :3, 3].copy()
        result["cam_quats"] = matrix_to_quaternion(poses[..., :3, :3]).astype(np.float32)
    return result


def _rounding(poses: Array, dtype: type[np.floating[Any]]) -> float:
    """Spread of centres that rounding alone makes of one place."""
    largest = float(np.abs(poses[:, :3, 3]).max())
    return largest * max(_AT_ONE_PLACE, float(np.finfo(dtype).eps))
