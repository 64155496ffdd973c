"""Whether two places are one: calls over frames of both, from either side, have to agree with each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..frames import KnownFrame
from ..similarity import Similarity
from ..turns import correlation
from .sightings import Sighting

if TYPE_CHECKING:
    from ...engine import Engine

Array = NDArray[Any]

MOST_DOUBT = 0.85
"""Of a loop that passes; see :attr:`LoopCheck.doubt`."""
_DEGREES, _OFFSET = 8.0, 0.15
"""How far two calls differ where that alone makes a loop doubtful: degrees, and lengths over the median depth."""
_ELSEWHERE, _UNSEEN, _UNLIKE = 0.3, 0.6, 0.35
"""The same of what two sides have in common: one minus agreement, overlap and likeness."""
_SAME_DEPTH = 0.15
"""Relative difference of depth of points that are at one place."""
_GRID = 4
"""Pixels between the points that are compared."""
_FEW = 20
"""Points that are compared at least."""
_OUTPUTS = ("ray_directions", "depth_along_ray", "conf", "intrinsics", "camera_poses", "mask")


@dataclass(frozen=True, eq=False)
class LoopCheck:
    """What the calls said about two frames.

    Attributes:
        relative: from the camera of the second frame into that of the first, in the lengths of their windows.
        degrees, offset: largest difference between two calls: degrees, and lengths of the first frame's window.
        agreement: share of the points of one side, of those that the other side's image has, that is where that side's
            depth says; the lowest of all calls and sides.
        overlap: the share of all points of one side for which that holds; the lowest where the call is about both
            frames.
        likeness: correlation of the images where they show the same points, because rooms of one shape may have other
            walls; the lowest as well.
        reach: median depth of the first frame.
        growth: how far the calls differ in the logarithm of the scale.
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
    def doubt(self) -> float:
        """How much speaks against the loop: the root mean square of five signs, each 1 where it is doubtful by itself.

        Together they tell loops from what looks like one better than a limit for each does. On 32 rendered walks that
        are not those of the results, with ``preset:nano``, the best pair of 28 had 0.24 to 0.79, its frames sharing
        49 to 86 % of their pixels. Of the 200 pairs that shared less than 25 %, one had 0.67, the others 0.91 or more.
        """
        signs = (
            self.degrees / _DEGREES,
            self.offset / (_OFFSET * self.reach),
            (1 - self.agreement) / _ELSEWHERE,
            (1 - self.overlap) / _UNSEEN,
            (1 - self.likeness) / _UNLIKE,
        )
        return math.sqrt(sum(sign * sign for sign in signs) / len(signs))

    @property
    def passed(self) -> bool:
        """Whether the two frames see one place, as far as the calls can tell."""
        return self.doubt <= MOST_DOUBT


def check_loop(
    engine: Engine,
    first: Sequence[Sighting],
    second: Sighting,
    placements: Mapping[int, Similarity] | Sequence[Similarity],
    options: Mapping[str, Any],
    *,
    scale: bool = False,
) -> LoopCheck | None:
    """Reconstruct pairs of frames from two places, each from either side, and compare what comes out.

    A call gets two frames with what came with the sequence, and says where one camera is in the other's frame, and
    the depth of both. By that, the depth of either side has to be where the other side sees it, in an image that is
    like the other's there. Each frame of the one place is paired with that of the other, and each pair is called
    twice, once with either frame as the reference. What all calls say of the first pair, by the poses that the frames
    of a place have to each other, has to be one transform.

    The calls end with the first one after which the check fails: for most places that only look alike that is the
    first of all. Two frames at a time, because small networks say where two views are far better than where several
    of either place are. What the map estimated is not told to the network: it would believe it, so that calls over
    different places agreed with each other, and those over one place were off by what the estimate is.

    Args:
        engine: runs the network.
        first: frames of one place: the one that the result is about, and its neighbours.
        second: a frame of the other place.
        placements: per window where it is in the map.
        options: of ``infer``.
        scale: whether the lengths of the windows may differ; then those of each side are compared with the call's.

    Returns:
        None where one of the frames has no depth.
    """
    here = first[0]
    if not here.reach or not second.reach:
        return None
    said: list[Similarity] = []
    sides: list[tuple[float, float, float]] = []
    for one in first:
        into_here = _between(here, one, placements)
        for reference, other in ((one, second), (second, one)):
            found = _called(engine, reference, other, options, scale)
            if found is None:
                return None
            relative, compared = found
            said.append(into_here @ (relative if other is second else relative.inverse()))
            # A neighbour sees less of the other place, and is there to agree.
            sides += compared if one is here else [(agreement, 1.0, likeness) for agreement, _, likeness in compared]
            judged = _judged(said, sides, here.reach)
            if not judged.passed:
                return judged
    return judged


def _judged(said: Sequence[Similarity], sides: Sequence[tuple[float, float, float]], reach: float) -> LoopCheck:
    """Return what the calls so far say together."""
    relative, degrees, offset = _agreed(said)
    growth = float(np.std(np.log([one.scale for one in said])))
    agreement, overlap, likeness = (min(values) for values in zip(*sides, strict=True))
    return LoopCheck(relative, degrees, offset, agreement, overlap, likeness, reach, growth, len(said))


def _between(one: Sighting, other: Sighting, placements: Mapping[int, Similarity] | Sequence[Similarity]) -> Similarity:
    """Return the transform from the camera of ``other`` into that of ``one``, as the map has it."""
    first, second = (placements[each.window] @ Similarity.of_pose(each.pose) for each in (one, other))
    return first.inverse() @ second


def _called(
    engine: Engine, reference: Sighting, other: Sighting, options: Mapping[str, Any], scale: bool
) -> tuple[Similarity, list[tuple[float, float, float]]] | None:
    """Return the transform from the camera of ``other`` into that of ``reference`` that the network predicts, in the
    lengths of their windows, and how its two sides compare; None where it predicts no depth."""
    views: Any = [reference.view, other.view]
    predictions = engine.infer(views, outputs=_OUTPUTS, **options)
    here, there = (KnownFrame.of(prediction, Similarity.identity()) for prediction in predictions)
    relative = Similarity.of_pose(here.pose).inverse() @ Similarity.of_pose(there.pose)
    one, two = (
        replace(side, depth=np.where(known.mask, known.points[..., 2], 0).astype(np.float32))
        for side, known in ((reference, here), (other, there))
    )
    if not one.reach or not two.reach:
        return None
    compared = [_compared(one, two, relative), _compared(two, one, relative.inverse())]
    if scale:
        lengths = _size(reference.depth, one.depth), _size(other.depth, two.depth)
        relative = Similarity(relative.rotation, relative.translation * lengths[0], lengths[0] / lengths[1])
    return relative, compared


def _size(depth: Array, of_call: Array) -> float:
    """Return by how much the depth of a frame is larger in its window than in a call: the median over its pixels."""
    both = (depth > 0) & (of_call > 0)
    return float(np.median(depth[both] / of_call[both])) if np.count_nonzero(both) >= _FEW else 1.0


def _agreed(said: Sequence[Similarity]) -> tuple[Similarity, float, float]:
    """Return the mean of transforms, and by how much two of them differ at most: degrees, and lengths."""
    tangents = [(said[0].inverse() @ one).log() for one in said]
    mean = said[0] @ Similarity.exp(np.mean(tangents, axis=0))
    pairs = list(combinations(said, 2))
    degrees = max((_degrees(one, other) for one, other in pairs), default=0.0)
    offset = max((float(np.linalg.norm(one.translation - other.translation)) for one, other in pairs), default=0.0)
    return mean, degrees, offset


def _degrees(one: Similarity, other: Similarity) -> float:
    cosine = (float(np.sum(one.rotation * other.rotation)) - 1) / 2
    return math.degrees(math.acos(min(max(cosine, -1.0), 1.0)))


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
