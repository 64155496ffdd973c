"""A scene as a layer of what is looked at: its points in blocks, its cameras with images, and what was left out."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...system.threads import in_order
from ..scene_arrays import SceneArrays, selected_pixels
from .quantization import Block, confidence_ranks, quantize
from .thinning import levels, thin, usual_spacing

COARSE_POINTS = 200_000
"""What a slow machine draws while a scene moves."""
_IMAGE_BYTES = 2_000_000
"""For the images of all cameras."""
_IMAGE_WIDTHS = (320, 240, 160, 96)
_FRUSTUM = 0.12  # of the median depth
_SAMPLED = 20_000  # points by which their middle and their usual depth are told
_INSIDE = 0.2  # of the median distance of the points, that their middle is away from the cameras at least


@dataclass(frozen=True, eq=False)
class PointSet:
    """The points of a scene that may be shown.

    Attributes:
        points: (N, 3) float32, relative to an origin.
        colors: (N, 3) uint8.
        ranks: (N,) uint8, of the confidence.
        limits: (256,) the smallest confidence of each rank.
        views: (N,) the view of each.
        spacing: about how far they are apart where no camera tells that by its pixels; else 0.
    """

    points: NDArray[np.float32]
    colors: NDArray[np.uint8]
    ranks: NDArray[np.uint8]
    limits: NDArray[np.float32]
    views: NDArray[np.int32]
    spacing: float = 0.0

    @classmethod
    def of(
        cls, scene: SceneArrays, origin: NDArray[np.float64], max_points: int | None, confidence_percentile: float
    ) -> PointSet:
        """Return the points of the mask that the options of saving leave.

        Raises:
            InputError: an option outside its range.
        """
        keep = selected_pixels(scene, max_points, confidence_percentile)
        views = np.repeat(np.arange(len(keep), dtype=np.int32), keep.sum(axis=(1, 2)))
        # Taking rows by number is ten times as fast as indexing by a mask of pixels.
        chosen = np.flatnonzero(keep)
        ranks, limits = confidence_ranks(scene.confidence.reshape(-1)[chosen])
        points = scene.points.reshape(-1, 3).take(chosen, axis=0)
        points -= origin.astype(points.dtype)
        colors = scene.colors.reshape(-1, 3).take(chosen, axis=0)
        points = points.astype(np.float32, copy=False)
        spacing = usual_spacing(points, len(points)) if is_cloud(scene) and len(points) else 0.0
        return cls(points, colors, ranks, limits, views, spacing)

    def taken(self, indices: NDArray[np.integer]) -> PointSet:
        """Return some of the points."""
        own = {name: getattr(self, name).take(indices, axis=0) for name in ("points", "colors", "ranks", "views")}
        return replace(self, **own)

    def blocks(self, levels: NDArray[np.uint8]) -> Iterator[Block]:
        """Yield the blocks of the points, whose levels (N,) are given."""
        return quantize(self.points, self.colors, self.ranks, self.views, levels)


@dataclass(frozen=True, eq=False)
class Layer:
    """What is drawn of one scene.

    Attributes:
        name: what it is called where there are several.
        blocks: its points.
        total: how many points the scene has.
        edges: of the voxels that its coarse level and all of it were thinned by; 0 for what was not.
        spacing: as in :class:`PointSet`.
        limits: of the ranks of the confidence, as in :class:`PointSet`.
    """

    name: str
    blocks: tuple[Block, ...]
    total: int
    edges: tuple[float, float]
    spacing: float
    limits: NDArray[np.float32]

    @classmethod
    def of(cls, name: str, points: PointSet, total: int, most: int, coarse_points: int = COARSE_POINTS) -> Layer:
        """Return a layer of at most ``most`` of the points, of a scene that has ``total``."""
        chosen, edge = thin(points.points, points.ranks, most)
        kept = points.taken(chosen)
        level, coarse = levels(kept.points, kept.ranks, coarse_points)
        blocks = tuple(kept.blocks(level))
        return cls(name, blocks, total, (max(edge, coarse), edge), points.spacing, points.limits)

    @property
    def stored(self) -> int:
        """How many points it holds."""
        return sum(block.count for block in self.blocks)

    def description(self) -> dict[str, Any]:
        """Return what a viewer has to know of it beside the bytes of its blocks."""
        return {
            "name": self.name,
            "total": self.total,
            "stored": self.stored,
            "thinned": f"at most one per cube of {length(self.edges[1])}" if self.edges[1] else "",
            "edges": [max(edge, self.spacing) for edge in (*self.edges, 0.0)],
            "confidence": [float(f"{limit:.4g}") for limit in self.limits],
            "blocks": [block.description() for block in self.blocks],
        }


def is_cloud(scene: SceneArrays) -> bool:
    """Return whether it is points without cameras: views of one row, of which none has intrinsics."""
    return scene.mask.shape[1] == 1 and not np.isfinite(scene.intrinsics).any()


def scene_origin(scene: SceneArrays) -> NDArray[np.float64]:
    """Return a round place (3,) near the cameras, from which float32 has enough digits."""
    places = scene.poses[:, :3, 3].astype(np.float64)
    places = places[np.isfinite(places).all(axis=1)]
    return np.rint(np.median(places, axis=0)) if len(places) else np.zeros(3)


def cameras(scene: SceneArrays, origin: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Return name, pose, frustum, width of a pixel and image of each view.

    A pose has 16 numbers, column by column; a frustum is left, top, right and bottom at depth 1, where the width of a
    pixel counts, too; an image is a JPEG as ``data:`` address, empty for points without
    cameras. A camera that is not finite has the pose of the origin and a frustum of no size.
    """
    _, height, width = scene.depth.shape
    images = [""] * len(scene.names) if is_cloud(scene) else _images(scene.colors)
    result = []
    for k, pose, name, image in zip(
        scene.intrinsics.astype(np.float64), scene.poses.astype(np.float64), scene.names, images, strict=True
    ):
        edges, place = np.zeros(4), np.eye(4)
        if np.isfinite(k).all() and np.isfinite(pose).all() and k[0, 0] != 0 and k[1, 1] != 0:
            horizontal, vertical = (
                (np.array([-0.5, side - 0.5]) - k[a, 2]) / k[a, a] for a, side in ((0, width), (1, height))
            )
            edges = np.array([horizontal[0], vertical[0], horizontal[1], vertical[1]])
            place = pose.copy()
            place[:3, 3] -= origin
        result.append(
            {
                "name": name,
                "pose": place.T.reshape(-1).tolist(),
                "frustum": edges.tolist(),
                "pixel": float(abs(edges[2] - edges[0])) / width,
                "image": image,
            }
        )
    return result


def frustum_depth(scene: SceneArrays) -> float:
    """Return how deep a frustum is drawn: a share of the usual depth."""
    step = max(1, scene.depth.size // _SAMPLED)
    depth = scene.depth.reshape(-1)[::step]
    valid = depth[scene.mask.reshape(-1)[::step] & (depth > 0)]
    return _FRUSTUM * float(np.median(valid)) if valid.size else 0.1


def first_look(scene: SceneArrays, points: PointSet) -> dict[str, Any]:
    """Return where a viewer begins: its position, what it looks at and turns about, up, and the radius of it all.

    It looks over the shoulders of the cameras, with their upper edges up; of cameras that look around themselves, over
    those of the first one.
    """
    origin = scene_origin(scene)
    poses = scene.poses[np.isfinite(scene.poses).all(axis=(1, 2))].astype(np.float64)
    if not len(poses):
        poses = np.eye(4)[None]
    centres = poses[:, :3, 3] - origin
    up = _unit(-poses[:, :3, 1].mean(axis=0), np.array([0.0, -1.0, 0.0]))
    ahead = _unit(poses[:, :3, 2].mean(axis=0), poses[0, :3, 2])
    eye = centres.mean(axis=0)
    some = points.points[:: max(1, len(points.points) // _SAMPLED)]
    target = np.median(some, axis=0) if len(some) else eye + ahead
    if len(some):
        # Cameras that look around themselves stand in the middle of what they see.
        distance = float(np.median(np.linalg.norm(some - eye, axis=1)))
        if np.linalg.norm(target - eye) < _INSIDE * distance:
            target = eye + distance * ahead
    arm = eye - target
    reach = max(float(np.linalg.norm(arm)), 1e-3)
    spread = float(np.max(np.linalg.norm(centres - eye, axis=1)))
    back = _unit(arm, -ahead)
    position = target + (1.35 * reach + 1.2 * spread) * back + 0.35 * reach * up
    return {
        "position": position.tolist(),
        "target": target.tolist(),
        "up": up.tolist(),
        "radius": max(reach, spread, 1e-3),
    }


def length(metres: float) -> str:
    """Return a length with a unit that suits it."""
    return f"{1000 * metres:.2g} mm" if metres < 0.01 else f"{100 * metres:.2g} cm" if metres < 1 else f"{metres:.3g} m"


def _unit(vector: NDArray[np.float64], otherwise: NDArray[np.float64]) -> NDArray[np.float64]:
    size = float(np.linalg.norm(vector))
    return vector / size if size > 1e-6 else otherwise


def _images(colors: NDArray[np.uint8]) -> list[str]:
    """JPEGs as ``data:`` addresses, smaller ones where there are many."""
    for width in _IMAGE_WIDTHS:
        images = list(in_order(partial(_jpeg, width=width), colors))
        if sum(map(len, images)) <= _IMAGE_BYTES:
            break
    return [f"data:image/jpeg;base64,{base64.b64encode(image).decode()}" for image in images]


def _jpeg(image: NDArray[np.uint8], width: int) -> bytes:
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((width, width), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=82)
    return buffer.getvalue()
