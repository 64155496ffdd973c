"""The tasks of an evaluation: how many views there are, and what is given of each beside its image.

What is drawn at random (sparse pixels, mixes, the unit of geometry that is not metric) depends on the scene's seed and
the task's name only, so every network gets the same inputs.
"""

from __future__ import annotations

import difflib
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mapengine.runtime.errors import InputError

from .truth import EvaluationScene, full_views

Array = NDArray[Any]

HELD_OUT_SEED = 1_000_000
"""First seed of the rendered scenes that evaluation uses; training uses smaller ones."""

SPARSE_SHARE = (0.02, 0.05)
"""Share of a view's depth that sparse depth keeps, drawn for each view."""

UNIT_RANGE = (0.2, 5.0)
"""Units per metre of geometry that is not metric, drawn per scene, evenly in the logarithm."""


@dataclass(frozen=True)
class Task:
    """What the network gets.

    Attributes:
        name: short, as on the command line.
        views: the first views of the scene.
        intrinsics: given for every view.
        depth: given for every view (dense or sparse), or not at all.
        poses: given for every view.
        mixed: instead of all this, each view gets what a coin says.
        metric: depth and poses are in metres; if not, in one unit per scene that nobody tells
            (``is_metric_scale`` False). Answers are always judged in metres.
    """

    name: str
    views: int
    intrinsics: bool = False
    depth: Literal["none", "sparse", "dense"] = "none"
    poses: bool = False
    mixed: bool = False
    metric: bool = True

    @property
    def inputs(self) -> str:
        """What is given, in words."""
        if self.mixed:
            return "images, each with a random choice of intrinsics, dense or sparse depth and pose"
        parts = ["images"]
        if self.intrinsics:
            parts.append("intrinsics")
        if self.depth != "none":
            parts.append(f"{self.depth} depth")
        if self.poses:
            parts.append("poses")
        return ", ".join(parts) + ("" if self.metric else "; not metric")


TASKS = (
    Task("image-only-1", 1),
    Task("image-only-2", 2),
    Task("image-only-4", 4),
    Task("image-only-8", 8),
    Task("calibrated", 4, intrinsics=True),
    Task("poses-only", 4, poses=True),
    Task("posed", 4, intrinsics=True, poses=True),
    Task("depth", 4, intrinsics=True, depth="dense"),
    Task("depth-completion", 4, intrinsics=True, depth="sparse"),
    Task("registration", 2, intrinsics=True, depth="dense"),
    Task("mixed", 4, mixed=True),
    Task("all", 4, intrinsics=True, depth="dense", poses=True),
    Task("depth-nonmetric", 4, intrinsics=True, depth="dense", metric=False),
    Task("all-nonmetric", 4, intrinsics=True, depth="dense", poses=True, metric=False),
)
"""Every task, in the order of the tables."""


def select_tasks(names: Iterable[str] | None = None) -> list[Task]:
    """Return the tasks of these names in the order of ``TASKS``; all of them without names.

    Raises:
        InputError: an unknown name, or none at all.
    """
    if names is None:
        return list(TASKS)
    if isinstance(names, str):
        raise InputError(f"tasks is the text {names!r}; give a list of names")
    wanted, known = list(names), [task.name for task in TASKS]
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise InputError(f"there is no task {str(name)!r}; {hint}")
    if not wanted:
        raise InputError(f"no task is named; there are {', '.join(known)}")
    return [task for task in TASKS if task.name in wanted]


def task_views(task: Task, scene: EvaluationScene, norm_type: str = "dinov2") -> list[dict[str, Any]]:
    """Return the views of a task, in the form that ``infer`` takes; new arrays wherever a value differs from the
    scene's.

    Args:
        task: a task with at most as many views as the scene.
        scene: checked by :meth:`.truth.Truth.of`.
        norm_type: ``data_norm_type`` of the network.

    Returns:
        ``task.views`` dictionaries with ``img`` (1, 3, H, W), ``data_norm_type``, ``is_metric_scale`` (1,) and what the
        task gives: ``intrinsics`` (1, 3, 3), ``depth_z`` (1, H, W), ``camera_poses`` (1, 4, 4).
    """
    rng = np.random.default_rng([scene.seed, zlib.crc32(task.name.encode())])
    unit = 1.0 if task.metric else float(np.exp(rng.uniform(*np.log(UNIT_RANGE))))
    # View 0 is the reference: without its pose those of the others mean nothing.
    any_pose = task.poses or (task.mixed and rng.random() < 0.5)
    result = []
    for index, full in enumerate(full_views(scene, norm_type, task.views)):
        intrinsics, depth, pose = task.intrinsics, task.depth, any_pose
        if task.mixed:
            intrinsics = rng.random() < 0.5
            # Depth needs the intrinsics of its view.
            depth = ("none", "sparse", "dense")[rng.integers(3)] if intrinsics else "none"
            pose = any_pose and (index == 0 or rng.random() < 0.5)
        view = {key: full[key] for key in ("img", "data_norm_type")}
        view["is_metric_scale"] = np.array([task.metric])
        if intrinsics:
            view["intrinsics"] = full["intrinsics"]
        if depth != "none":
            given = _sparse(full["depth_z"], rng) if depth == "sparse" else full["depth_z"]
            view["depth_z"] = given * np.float32(unit)
        if pose:
            view["camera_poses"] = full["camera_poses"].astype(np.float64)
            view["camera_poses"][:, :3, 3] *= unit
        result.append(view)
    return result


def _sparse(depth: Array, rng: np.random.Generator) -> Array:
    """Return a random share of the pixels that have depth, at least one of them; 0 elsewhere."""
    known = np.flatnonzero(depth)
    count = min(known.size, max(1, round(float(rng.uniform(*SPARSE_SHARE)) * known.size)))
    kept = rng.choice(known, count, replace=False)
    result = np.zeros_like(depth)
    result.flat[kept] = depth.flat[kept]
    return result
