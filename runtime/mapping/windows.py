"""One window: a call of the network over its frames, told of those that the map knows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import geometry
from ..errors import InputError
from ..inputs.prepared import PreparedView
from .frames import Frame, KnownFrame

if TYPE_CHECKING:
    from ..engine import Engine

Array = NDArray[Any]


@dataclass(frozen=True)
class Join:
    """What the network gets of the frames that a window shares with the map, besides their images.

    Attributes:
        name: as it is chosen.
        gives_poses: their poses in the map and their intrinsics.
        gives_depth: their depth in the map, too.
        about: for messages and documents.
    """

    name: str
    gives_poses: bool
    gives_depth: bool
    about: str


JOINS = {
    join.name: join
    for join in (
        Join("align", False, False, "the network gets their images alone"),
        Join("poses", True, False, "it gets their poses in the map and their intrinsics"),
        Join("poses+depth", True, True, "it gets their confident depth, too"),
    )
}
"""The ways to join a window to the map. In each of them the result is brought into the map by the shared frames."""

DEFAULT_JOIN = "align"
"""The most accurate on held-out walks: ``docs/results/sequences.md``."""
DEFAULT_WINDOW = 16
"""Frames of a window."""
DEFAULT_OVERLAP = 4
"""Of these, how many are shared with the window before."""


def join_named(name: Any) -> Join:
    """Return one of :data:`JOINS` (InputError)."""
    if not isinstance(name, str) or name not in JOINS:
        raise InputError(f"join is {name!r}; choose one of {', '.join(JOINS)}")
    return JOINS[name]


def run_window(
    engine: Engine,
    frames: Sequence[Frame],
    known: Mapping[int, KnownFrame],
    join: Join,
    metric: bool,
    outputs: Iterable[str],
    options: Mapping[str, Any],
) -> list[dict[str, Array]]:
    """Run the network over the frames of a window.

    Args:
        engine: runs it.
        frames: of the window, in order.
        known: what the map knows of some of them, by number.
        join: what the network is told of these.
        metric: whether the lengths of the map are metres.
        outputs, options: of ``infer``.

    Returns:
        Per frame what ``infer`` gives, in the camera of the reference.
    """
    views = [_told(frame, known.get(frame.number), join, metric) for frame in frames]
    order = call_order([view.pose is not None for view in views])
    predictions = engine.infer([views[index] for index in order], outputs=tuple(outputs), **options)
    found = dict(zip(order, predictions, strict=True))
    return [found[index] for index in range(len(frames))]


def call_order(posed: Sequence[bool]) -> list[int]:
    """Return the indices of the views of a window in the order of the call: the reference, then the others in time.

    The network answers in the camera of the first view and takes poses relative to it, so that view has to have a
    pose if any has one. Of those that may be it, the one nearest to the middle shares most with the others.
    """
    middle = (len(posed) - 1) / 2
    eligible = [index for index, has in enumerate(posed) if has] or range(len(posed))
    reference = min(eligible, key=lambda index: (abs(index - middle), -index))
    return [reference, *(index for index in range(len(posed)) if index != reference)]


def _told(frame: Frame, known: KnownFrame | None, join: Join, metric: bool) -> PreparedView:
    """Return what the network gets of a frame; what came with the sequence goes before what the map says."""
    view = frame.view
    if known is None or not join.gives_poses:
        return view
    changes: dict[str, Any] = {} if metric else {"is_metric": np.zeros_like(view.is_metric)}
    _, height, width = view.shape
    rays = view.rays
    if view.pose is None:
        changes["pose"] = geometry.split_pose_matrix(known.pose[None])
    if rays is None:
        rays = geometry.rays_from_intrinsics(known.intrinsics[None].astype(np.float32), height, width)
        changes["rays"] = rays
    if join.gives_depth and view.distance is None:
        changes["distance"] = geometry.depth_along_ray(known.sure_depth[None], rays)
    return replace(view, **changes)
