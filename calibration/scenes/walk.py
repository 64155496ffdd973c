"""Rendered walks: the frames of a phone that is carried through rooms and outdoors, and back to where it started."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np
from numpy.typing import NDArray

from mapengine.runtime.errors import InputError

from .building import random_building
from .cameras import Camera, Lens
from .draws import Draws, frame
from .render import Exposure, check_picture_size, render_inside
from .shapes import Array
from .world import Building

WALK_FRAMES = (60, 1000)
"""Fewest and most frames of a walk."""

_TANGENTS = (0.55, 0.84)
"""Tangents of half the horizontal field of view: 58 to 80 degrees, as phones have."""
_WALL = 0.004
"""Metres that a camera stays from the plane of a wall when it passes a door, where the two sides meet."""
_EXPOSURE_FRAMES = 20
"""Frames in which exposure and white balance drift from one random value to the next."""


@dataclass(frozen=True, eq=False)
class WalkFrame:
    """One frame of a walk, metric and exact.

    Attributes:
        image: (H, W, 3) uint8.
        depth_z: (H, W) float32, z in the camera in metres; 0 for sky and whatever is beyond 20 m.
        intrinsics: (3, 3) float32, pixels, pixel centres at integers.
        pose: (4, 4) float32, camera-to-world, OpenCV axes; y of the world points down.
    """

    image: NDArray[np.uint8]
    depth_z: Array
    intrinsics: Array
    pose: Array

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(H, W), where there is depth."""
        return self.depth_z > 0


@dataclass(frozen=True, eq=False)
class RenderedWalk(Sequence[WalkFrame]):
    """Frames that are rendered when they are asked for, each by itself; a slice renders nothing.

    Attributes:
        poses: (N, 4, 4) float32, camera-to-world; the last is one step before the first.
        intrinsics: (3, 3) float32, of all frames.
        size: width and height in pixels.
        seed: what the walk was drawn from.
        building: what is seen, to cast further rays against.
        numbers: of the frames in the whole walk.
    """

    poses: Array = field(repr=False)
    intrinsics: Array = field(repr=False)
    size: tuple[int, int]
    seed: int
    building: Building = field(repr=False)
    numbers: range
    gain: float = field(repr=False)

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> WalkFrame: ...
    @overload
    def __getitem__(self, index: slice) -> RenderedWalk: ...
    def __getitem__(self, index: int | slice) -> WalkFrame | RenderedWalk:
        if isinstance(index, slice):
            return RenderedWalk(
                self.poses[index],
                self.intrinsics,
                self.size,
                self.seed,
                self.building,
                self.numbers[index],
                self.gain,
            )
        number, pose = self.numbers[index], self.poses[index]
        exposure = self._exposure(number)
        image, depth = render_inside(
            self.building,
            self.zone(index),
            pose,
            self.intrinsics,
            *self.size,
            exposure,
            Draws("walk-noise", self.seed, number),
        )
        return WalkFrame(image, depth, self.intrinsics, pose)

    def __iter__(self) -> Iterator[WalkFrame]:
        return (self[index] for index in range(len(self)))

    def zone(self, index: int) -> int:
        """Return the number of the zone of the building that a frame's camera stands in; the last is outdoors."""
        return self.building.zone_at(float(self.poses[index, 0, 3]), float(self.poses[index, 2, 3]))

    def _exposure(self, number: int) -> Exposure:
        """Return the exposure of a frame: between those of two knots, so that it drifts as a video's does."""
        knot, part = number // _EXPOSURE_FRAMES, number % _EXPOSURE_FRAMES / _EXPOSURE_FRAMES
        before, after = (Exposure.random(Draws("walk-exposure", self.seed, knot + k), self.gain) for k in (0, 1))

        def between(a: float, b: float) -> float:
            return a + (b - a) * part

        return Exposure(
            between(before.gain, after.gain),
            between(before.blur, after.blur),
            between(before.noise, after.noise),
            tuple(between(a, b) for a, b in zip(before.balance, after.balance, strict=True)),  # type: ignore[arg-type]
        )


def render_walk(seed: int, frames: int = 300, width: int = 140, height: int = 112, slow: int = 1) -> RenderedWalk:
    """Draw a building and a closed walk through it; frames are rendered when they are asked for.

    The walk goes through several rooms, outdoors and back to where it started; long ones pass rooms again on the way.
    The same arguments give the same bits on every machine. Seeds from ``HELD_OUT_SEED`` of the evaluation on are kept
    for measuring, as those of scenes are.

    Args:
        seed: any integer.
        frames: 60 to 1000. From about 120 on a step is about as long; with fewer frames the same round is made in
            larger steps. A slice of a longer walk is the beginning of one that is not closed.
        width: pixels, at least 28.
        height: pixels, at least 28.
        slow: how many frames show each step: the walk of ``frames / slow`` frames, at a higher frame rate.

    Raises:
        InputError: arguments outside these ranges.
    """
    if not WALK_FRAMES[0] <= frames <= WALK_FRAMES[1]:
        raise InputError(f"a rendered walk has {WALK_FRAMES[0]} to {WALK_FRAMES[1]} frames, not {frames}")
    if slow < 1 or frames < slow * WALK_FRAMES[0]:
        raise InputError(f"slow is {slow} of {frames} frames; give 1 to {frames // WALK_FRAMES[0]}")
    check_picture_size(width, height)
    draws = Draws("walk", seed)
    lens = Lens(0.5 / draws.uniform(*_TANGENTS), draws.uniform(-0.02, 0.02), draws.uniform(-0.02, 0.02))
    gain = draws.uniform(0.9, 1.4)
    building, route = random_building(Draws("building", seed), frames // slow)
    walls = (
        sorted({side for floor in building.floors for side in floor[:2]}),
        sorted({side for floor in building.floors for side in floor[2:]}),
    )
    poses = np.empty((frames, 4, 4), np.float32)
    for index, (point, forward, down) in enumerate(zip(*route.at_even_pace(frames), strict=True)):
        x, y, z = (float(value) for value in point)
        position = (_off_walls(x, walls[0]), y, _off_walls(z, walls[1]))
        poses[index] = Camera(lens, position, frame(tuple(map(float, forward)), tuple(map(float, down)))).pose()  # type: ignore[arg-type]
    return RenderedWalk(poses, lens.intrinsics(width, height), (width, height), seed, building, range(frames), gain)


def _off_walls(value: float, walls: list[float]) -> float:
    """Return a coordinate moved out of the plane of a wall, where it is in one."""
    for wall in walls:
        if abs(value - wall) < _WALL:
            return wall + _WALL if value >= wall else wall - _WALL
    return value
