"""Rendered scenes: images with exact depth, intrinsics and poses, named by a seed."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mapengine.runtime.errors import InputError

from .cameras import Camera, choose_cameras, measure_overlap
from .draws import Draws
from .layouts import KINDS, random_world
from .render import Exposure, check_picture_size, render_view
from .shapes import Array
from .world import NEAREST_DEPTH, World

MAX_VIEWS = 8
"""Most views of a scene."""

_KIND_SHARES = (0.45, 0.25, 0.3)


@dataclass(frozen=True)
class RenderedScene:
    """V views of one world, metric and exact.

    Attributes:
        images: (V, H, W, 3) uint8.
        depth_z: (V, H, W) float32, z in the camera in metres; 0 for sky and whatever is beyond 20 m.
        intrinsics: (V, 3, 3) float32, pixels, pixel centres at integers.
        poses: (V, 4, 4) float32, camera-to-world, OpenCV axes; y of the world points down.
        seed: what the scene was drawn from.
        kind: one of ``KINDS``.
        world: shapes and light, to cast further rays against.
    """

    images: NDArray[np.uint8]
    depth_z: Array
    intrinsics: Array
    poses: Array
    seed: int
    kind: str
    world: World

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(V, H, W), where there is depth."""
        return self.depth_z > 0

    @functools.cached_property
    def overlap(self) -> Array:
        """(V, V) float32: share of row's pixels with depth whose surface column sees too, measured from depth."""
        views = [
            (self.depth_z[v][::2, ::2], self.poses[v], _halved(self.intrinsics[v])) for v in range(len(self.poses))
        ]
        return np.array([[measure_overlap(*a, *b) for b in views] for a in views], np.float32)


def _halved(intrinsics: Array) -> Array:
    """Return intrinsics of every second pixel."""
    result = intrinsics * np.float32(0.5)
    result[2, 2] = 1
    return result


def render_scene(
    seed: int, views: int = 4, width: int = 140, height: int = 112, kind: str | None = None
) -> RenderedScene:
    """Draw a scene and render it.

    The same arguments give the same bits on every machine. The first views of a scene do not depend on how many are
    asked for, except in a scene that has no room for more.

    Args:
        seed: any integer; scenes of different seeds have nothing in common.
        views: 1 to 8; every view shares at least 30 % of its surface with view 0.
        width: pixels, at least 28.
        height: pixels, at least 28.
        kind: ``"room"``, ``"table"`` or ``"outdoor"``; drawn by default.

    Raises:
        InputError: arguments outside these ranges.
    """
    if not 1 <= views <= MAX_VIEWS:
        raise InputError(f"a rendered scene has 1 to {MAX_VIEWS} views, not {views}")
    check_picture_size(width, height)
    if kind is not None and kind not in KINDS:
        raise InputError(f"there is no kind {kind!r} of scene; there are {', '.join(KINDS)}")
    for attempt in range(1000):
        draws = Draws("scene", seed, attempt)
        pick = draws.unit()
        chosen = kind or ("room" if pick < _KIND_SHARES[0] else "table" if pick < sum(_KIND_SHARES[:2]) else "outdoor")
        world = random_world(chosen, Draws("world", seed, attempt))
        cameras = choose_cameras(world, Draws("cameras", seed, attempt), views, width / height)
        if cameras is None:
            continue
        scene = _render(world, cameras, seed, chosen, width, height, draws)
        if scene is not None:
            return scene
    raise InputError(f"no scene can be drawn from seed {seed} with {views} views; choose another seed")


def _render(
    world: World, cameras: list[Camera], seed: int, kind: str, width: int, height: int, draws: Draws
) -> RenderedScene | None:
    gain = draws.uniform(0.8, 1.5)
    intrinsics = np.stack([camera.lens.intrinsics(width, height) for camera in cameras])
    poses = np.stack([camera.pose() for camera in cameras])
    images = np.empty((len(cameras), height, width, 3), np.uint8)
    depths = np.empty((len(cameras), height, width), np.float32)
    for view in range(len(cameras)):
        sensor = Draws("sensor", seed, view)
        exposure = Exposure.random(sensor, gain)
        images[view], depths[view] = render_view(world, poses[view], intrinsics[view], width, height, exposure, sensor)
        near = depths[view][depths[view] > 0]
        if near.size == 0 or near.min() < NEAREST_DEPTH:  # too thin for the coarse look at it
            return None
    return RenderedScene(images, depths, intrinsics, poses, seed, kind, world)
