"""The points of a scene in levels that a server gives to a page one by one: coarse ones, those of the first look, all.

A level is a sequence of blocks. Each is the length of its description (four bytes, the lowest first), this description
as JSON, and its points as in :mod:`.quantization`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..scene_arrays import SceneArrays
from .layers import COARSE_POINTS, Layer, PointSet, cameras, frustum_depth, scene_origin
from .page import filled_page
from .quantization import Block
from .thinning import thin

FIRST_POINTS = 1_000_000
"""Points of the first two levels, which a page draws before it is asked for all."""


@dataclass(frozen=True, eq=False)
class SceneLevels:
    """A scene for a page that loads its points.

    Attributes:
        page: asks for the levels ``source/0``, ``source/1`` and, if somebody wants all, ``source/2``.
        first: levels 0 and 1; the rest is that of :func:`packed_rest`.
        counts: points of each of the three levels.
    """

    page: str
    first: tuple[bytes, bytes]
    counts: tuple[int, int, int]

    @classmethod
    def of(cls, scene: SceneArrays, source: str, title: str = "", most: int = FIRST_POINTS) -> SceneLevels:
        """Make them, with ``most`` points in the first two; ``title`` is that of the page, by default what made it."""
        origin = scene_origin(scene)
        points = PointSet.of(scene, origin, None, 0.0)
        layer = Layer.of("", points, int(scene.mask.sum()), most, min(COARSE_POINTS, max(most // 2, 1)))
        blocks = [[block for block in layer.blocks if block.level == number] for number in (0, 1)]
        coarse, fine = (sum(block.count for block in of_level) for of_level in blocks)
        counts = coarse, fine, len(points.points) - coarse - fine
        described = {
            **layer.description(),
            "blocks": [],
            "counts": counts,
            "views": cameras(scene, origin),
            "frustum": frustum_depth(scene),
        }
        page = filled_page(scene, points, [described], title=title, source=source)
        return cls(page, (_joined(blocks[0]), _joined(blocks[1])), counts)


def packed_rest(scene: SceneArrays, most: int = FIRST_POINTS) -> Iterator[bytes]:
    """Yield level 2 of a scene, block by block: all points that are not among the ``most`` of the first levels."""
    points = PointSet.of(scene, scene_origin(scene), None, 0.0)
    is_rest = np.ones(len(points.points), np.bool_)
    is_rest[thin(points.points, points.ranks, most)[0]] = False
    rest = np.flatnonzero(is_rest)
    for block in points.taken(rest).blocks(np.full(len(rest), 2, np.uint8)):  # one view at a time
        yield _packed(block)


def _joined(blocks: list[Block]) -> bytes:
    return b"".join(map(_packed, blocks))


def _packed(block: Block) -> bytes:
    text = json.dumps(block.description()).encode()
    return struct.pack("<I", len(text)) + text + block.content
