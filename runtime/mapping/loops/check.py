"""Whether two places are one: calls over frames of both, from either side, have to agree with each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..frames import pose_of
from ..similarity import Similarity
from ..turns import correlation
from .sightings import Sighting

if TYPE_CHECKING:
    from ...engine import Engine

Array = NDArray[Any]

MOST_DEGREES = 6.0
MOST_OFFSET = 0.15
"""Of the median depth: the most that the calls may differ from each other, in the median."""
LEAST_AGREEMENT = 0.8
"""Share of the points of one side, of those that the other side's image has, that is where that side's depth says."""
LEAST_OVERLAP = 0.2
"""Share of all points of one side for which that holds."""
LEAST_LIKENESS = 0.85
"""Correlation of the images where they show the same points: rooms of one shape may have other walls."""
_HOPELESS = 2.0
"""Times as far from what passes: no further call is made."""
_SAME_DEPTH = 0.15
"""Relative difference of depth of points that are at one place."""
_GRID = 4
"""Pixels between the points that are compared."""
_FEW = 20
"""Points that are compared at least."""
_OUTPUTS = ("camera_poses",)


@dataclass(frozen=True, eq=False)
class LoopCheck:
    """What the calls said about two frames.

    Attributes:
        relative: from the camera of the second frame into that of the first, in the lengths of their windows.
        degrees, offset: median difference between calls: degrees, and lengths of the first frame's window.
        agreement, overlap: see :data:`LEAST_AGREEMENT` and :data:`LEAST_OVERLAP`; of both sides, the lower one.
        likeness: see :data:`LEAST_LIKENESS`; of both sides, the lower one.
        reach: median depth of the first frame.
        growth: spread of the logarithm of the scale.
        calls: how many there were.
    """

    relative: Similarity
    degrees: float
    offset: float
    agreement: float
    overlap: float
    likeness: float
    reach: float
    growth: float
    calls: int

    @property
    def is_open(self) -> bool:
        """Whether more calls may still show that they do; most pairs of frames are far from it after two."""
        return (
            self.degrees <= _HOPELESS * MOST_DEGREES
            and self.offset <= _HOPELESS * MOST_OFFSET * self.reach
            and self.agreement >= LEAST_AGREEMENT / _HOPELESS
        )

    @property
    def passed(self) -> bool:
        """Whether the two frames see one place, as far as can be told."""
        return (
            self.degrees <= MOST_DEGREES
            and self.offset <= MOST_OFFSET * self.reach
            and self.agreement >= LEAST_AGREEMENT
            and self.overlap >= LEAST_OVERLAP
            and self.likeness >= LEAST_LIKENESS
        )


def check_loop(
    engine: Engine,
    first: Sequence[Sighting],
    second: Sequence[Sighting],
    placements: Mapping[int, Similarity] | Sequence[Similarity],
    options: Mapping[str, Any],
    *,
    scale: bool = False,
) -> LoopCheck | None:
    """Reconstruct pairs of frames from two places, each from either side, and compare what comes out.

    A call gets two images with intrinsics and depth, and says where one camera is in the other's frame. Each frame of
    one place is paired with each of the other, and each pair is called twice, once with either frame as the reference.
    What all calls say of the first frames of both places, by the poses that the frames of a place have to each other,
    has to be one transform; and by it, the depth of either side has to be where the other side sees it, in an image
    that is like the other's there.

    The calls end as soon as they are far from that. Two frames at a time, because small networks say where two views
    are far better than where several of either place are; all depth is given, because it is known.

    Args:
        engine: runs the network.
        first, second: frames of the two places, in the order of the one that the result is about and its neighbours.
        placements: per window where it is in the map.
        options: of ``infer``.
        scale: whether the lengths of the windows may differ; then their ratio is that of the depths that meet.

    Returns:
        None where one of the first frames has no depth.
    """
    here, there = first[0], second[0]
    if not here.reach or not there.reach:
        return None
    into_here = [_between(here, one, placements) for one in first]
    into_there = [_between(there, one, placements) for one in second]
    said: list[Similarity] = []
    pairs = product(zip(first, into_here, strict=True), zip(second, into_there, strict=True))
    for (one, to_here), (other, to_there) in pairs:
        back = to_there.inverse()
        said.append(to_here @ _called(engine, one, other, options) @ back)
        said.append(to_here @ _called(engine, other, one, options).inverse() @ back)
        found = _judged(here, there, said, scale)
        if not found.is_open:
            break
    return found


def _judged(here: Sighting, there: Sighting, said: Sequence[Similarity], scale: bool) -> LoopCheck:
    """Return what the calls so far say together."""
    relative, degrees, offset = _agreed(said, here.reach)
    growth = 0.0
    if scale:
        relative, growth = _scaled(here, there, relative)
    sides = zip(_compared(here, there, relative), _compared(there, here, relative.inverse()), strict=True)
    agreement, overlap, likeness = map(min, sides)
    return LoopCheck(relative, degrees, offset, agreement, overlap, likeness, here.reach, growth, len(said))


def _between(one: Sighting, other: Sighting, placements: Mapping[int, Similarity] | Sequence[Similarity]) -> Similarity:
    """Return the transform from the camera of ``other`` into that of ``one``, as the map has it."""
    first, second = (placements[each.window] @ Similarity.of_pose(each.pose) for each in (one, other))
    return first.inverse() @ second


def _called(engine: Engine, reference: Sighting, other: Sighting, options: Mapping[str, Any]) -> Similarity:
    """Return the transform from the camera of ``other`` into that of ``reference`` that the network predicts."""
    views: Any = [reference.view, other.view]
    first, second = (pose_of(view) for view in engine.infer(views, outputs=_OUTPUTS, **options))
    return Similarity.of_pose(first).inverse() @ Similarity.of_pose(second)


def _agreed(said: Sequence[Similarity], reach: float) -> tuple[Similarity, float, float]:
    """Return the mean of those transforms that agree with most others, and by how much all differ from it, in the
    median: degrees, and lengths."""
    turns = np.array([[_degrees(a, b) for b in said] for a in said])
    offsets = np.array([[float(np.linalg.norm(a.translation - b.translation)) for b in said] for a in said])
    distance = turns / MOST_DEGREES + offsets / (MOST_OFFSET * reach)
    centre = int(np.argmin(np.minimum(distance, 4).sum(axis=1)))
    near = np.flatnonzero(distance[centre] <= np.median(distance[centre]))
    tangents = [(said[centre].inverse() @ said[index]).log() for index in near.tolist()]
    mean = said[centre] @ Similarity.exp(np.mean(tangents, axis=0))
    degrees = float(np.median([_degrees(mean, one) for one in said]))
    offset = float(np.median([np.linalg.norm(mean.translation - one.translation) for one in said]))
    return mean, degrees, offset


def _degrees(one: Similarity, other: Similarity) -> float:
    cosine = (float(np.sum(one.rotation * other.rotation)) - 1) / 2
    return math.degrees(math.acos(min(max(cosine, -1.0), 1.0)))


def _scaled(here: Sighting, there: Sighting, relative: Similarity) -> tuple[Similarity, float]:
    """Return the transform with the scale by which depths of both sides meet, and the spread of its logarithm."""
    logarithms = np.concatenate([_met(here, there, relative)[0], -_met(there, here, relative.inverse())[0]])
    near = logarithms[np.abs(logarithms) < math.log(1.5)]
    if not near.size:
        return relative, 1.0
    middle = float(np.median(near))
    spread = float(np.median(np.abs(near - middle)))
    return Similarity(relative.rotation, relative.translation, relative.scale * math.exp(middle)), spread


def _compared(here: Sighting, there: Sighting, relative: Similarity) -> tuple[float, float, float]:
    """Return the share of points of ``there``, among those in the image of ``here`` and among all, that are where the
    depth of ``here`` says, and the correlation of both images at these."""
    ratios, count, places, others = _met(here, there, relative)
    same = np.abs(np.expm1(ratios)) < _SAME_DEPTH
    met = int(np.count_nonzero(same))
    likeness = correlation(here.brightness[places][same], there.brightness[others][same]) if met >= _FEW else 0.0
    return met / max(len(ratios), 1), met / max(count, 1), likeness


def _met(here: Sighting, there: Sighting, relative: Similarity) -> tuple[NDArray[np.float64], int, Any, Any]:
    """Project points of ``there`` into the image of ``here``.

    Returns:
        Logarithms of depths of ``here`` over those of the points that its image has (N,); how many points there are;
        and where these N are in the image of ``here`` and in that of ``there``, as indices of arrays (H, W).
    """
    height, width = here.depth.shape
    rows, columns = (grid.ravel() for grid in np.mgrid[_GRID // 2 : height : _GRID, _GRID // 2 : width : _GRID])
    seen = there.depth[rows, columns] > 0
    rows, columns = rows[seen], columns[seen]
    pixels = np.stack([columns, rows, np.ones(len(rows))], axis=1)
    depth = there.depth[rows, columns, None].astype(np.float64)
    points = relative.apply(pixels @ np.linalg.inv(there.intrinsics.astype(np.float64)).T * depth)
    ahead = points[:, 2] > 0
    rows, columns, points = rows[ahead], columns[ahead], points[ahead]
    projected = points @ here.intrinsics.astype(np.float64).T
    column, row = np.rint(projected[:, :2] / projected[:, 2:]).T
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    places = row[inside].astype(np.intp), column[inside].astype(np.intp)
    found = here.depth[places]
    known = found > 0
    logarithms = np.log(found[known] / points[inside, 2][known])
    others = rows[inside][known], columns[inside][known]
    return logarithms, int(seen.sum()), tuple(index[known] for index in places), others
