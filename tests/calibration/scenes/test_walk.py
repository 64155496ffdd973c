"""Rendered walks: exact through doors, closed, smooth, deterministic, and rendered a frame at a time."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest

from mapengine.calibration.evaluation import HELD_OUT_SEED
from mapengine.calibration.scenes import WALK_FRAMES, RenderedWalk, WalkFrame, render_walk
from mapengine.calibration.scenes.cameras import camera_rays, measure_overlap
from mapengine.calibration.scenes.world import NEAREST_DEPTH, cast
from mapengine.runtime.errors import InputError

from .depth_agreement import View, count_disagreements

LENGTHS = (60, 150, 300, 1000)


@pytest.fixture(scope="module")
def walks() -> dict[int, RenderedWalk]:
    return {frames: render_walk(HELD_OUT_SEED + frames, frames) for frames in LENGTHS}


def view(frame: WalkFrame) -> View:
    return View(frame.depth_z, frame.pose, frame.intrinsics)


def steps(walk: RenderedWalk) -> tuple[np.ndarray, np.ndarray]:
    """Metres and degrees from every frame to the next, from the last to the first too."""
    poses, after = walk.poses.astype(np.float64), np.roll(walk.poses, -1, axis=0).astype(np.float64)
    moved = np.linalg.norm(after[:, :3, 3] - poses[:, :3, 3], axis=1)
    chord = np.linalg.norm(after[:, :3, :3] - poses[:, :3, :3], axis=(1, 2)) / np.sqrt(8)
    return moved, np.degrees(2 * np.arcsin(chord))


def test_walks_are_the_same_bits_everywhere() -> None:
    walk = render_walk(5, 90, 70, 56)
    frames = [walk[number] for number in (0, 30, 60, 89)]
    parts = [walk.poses, walk.intrinsics, *(part for frame in frames for part in (frame.image, frame.depth_z))]
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts))
    assert digest.hexdigest()[:16] == "186e4280bb390c6f"


def test_a_frame_depends_on_no_other(walks: dict[int, RenderedWalk]) -> None:
    walk = walks[150]
    part, again = walk[100:140:7], render_walk(walk.seed, 150)
    assert isinstance(part, RenderedWalk)
    assert len(part) == 6
    for frame, twin in ((part[5], walk[135]), (part[-1], again[135]), (next(iter(walk)), again[0])):
        for name in ("image", "depth_z", "pose", "intrinsics"):
            np.testing.assert_array_equal(getattr(frame, name), getattr(twin, name))
    with pytest.raises(IndexError):
        walk[150]


@pytest.mark.parametrize("frames", LENGTHS)
def test_a_walk_goes_through_rooms_and_outdoors_and_returns(walks: dict[int, RenderedWalk], frames: int) -> None:
    walk = walks[frames]
    assert len(walk) == frames
    zones = [walk.zone(index) for index in range(frames)]
    outdoors = len(walk.building.zones) - 1
    assert outdoors in zones
    assert len(set(zones)) >= {60: 3, 150: 3, 300: 5, 1000: 9}[frames]
    moved, turned = steps(walk)
    assert moved.sum() > {60: 8, 150: 9, 300: 18, 1000: 60}[frames]
    # From the last frame to the first it is a step like any other.
    most = {60: (0.3, 11)}.get(frames, (0.15, 5.5))
    assert moved.max() < most[0]
    assert turned.max() < most[1]


def test_long_walks_pass_rooms_again(walks: dict[int, RenderedWalk]) -> None:
    walk = walks[1000]
    zones = [walk.zone(index) for index in range(1000)]
    entered = [b for a, b in itertools.pairwise(zones) if a != b]
    assert max(entered.count(zone) for zone in set(entered)) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("frames", LENGTHS)
def test_neighbouring_frames_overlap_and_nothing_is_too_near(walks: dict[int, RenderedWalk], frames: int) -> None:
    small = render_walk(walks[frames].seed, frames, 56, 42)
    np.testing.assert_array_equal(small.poses, walks[frames].poses)
    overlaps = []
    for index in range(0, frames - 1, max(1, frames // 30)):
        first, second = small[index], small[index + 1]
        assert first.depth_z[first.mask].min() >= NEAREST_DEPTH
        overlaps.append(measure_overlap(*view(first), *view(second)))
    assert min(overlaps) > (0.5 if frames == 60 else 0.75)
    assert np.mean(overlaps) > (0.7 if frames == 60 else 0.85)


def test_depth_agrees_between_zones(walks: dict[int, RenderedWalk]) -> None:
    """Frames on both sides of each door see the same surfaces at the same depth."""
    walk = walks[300]
    zones = [walk.zone(index) for index in range(300)]
    doors = [index for index in range(4, 296) if zones[index] != zones[index + 1]]
    assert len(doors) >= 4
    compared = wrong = 0
    for index in doors:
        before, after = view(walk[index - 4]), view(walk[index + 4])
        for a, b in ((before, after), (after, before)):
            counts = count_disagreements(a, b)
            compared, wrong = compared + counts[0], wrong + counts[1]
    assert compared > 20_000
    assert wrong < 0.01 * compared


def test_shapes_out_of_sight_are_left_out_and_no_others(walks: dict[int, RenderedWalk]) -> None:
    walk = walks[1000]
    building = walk.building
    rows, columns = (index.reshape(-1) for index in np.indices((112, 140)))
    left_out = 0
    for index in range(0, 1000, 50):
        number, pose = walk.zone(index), walk.poses[index]
        zone = building.zones[number]
        shapes = building.visible(number, pose, walk.intrinsics, columns, rows)
        left_out += len(zone.shapes) - len(shapes)
        rays = camera_rays(pose, walk.intrinsics, 140, 112)
        for all_of_them, those in zip(cast(zone, *rays), cast(zone, *rays, shapes), strict=True):
            np.testing.assert_array_equal(all_of_them, those)
    assert left_out > 100


def test_a_slow_camera_sees_the_same_walk_in_smaller_steps() -> None:
    walk, slow = render_walk(5, 90), render_walk(5, 360, slow=4)
    np.testing.assert_allclose(slow.poses[::4], walk.poses, atol=1e-6)
    assert steps(slow)[0].mean() < 0.3 * steps(walk)[0].mean()


def test_seeds_have_nothing_in_common() -> None:
    first, second = render_walk(HELD_OUT_SEED, 60), render_walk(0, 60)
    assert first.poses.shape == second.poses.shape
    assert np.abs(first.poses - second.poses).max() > 0.5


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"frames": WALK_FRAMES[0] - 1}, "60 to 1000 frames, not 59"),
        ({"frames": 1001}, "60 to 1000 frames"),
        ({"width": 20}, "28 to 4096"),
        ({"frames": 239, "slow": 4}, "slow is 4 of 239 frames; give 1 to 3"),
        ({"slow": 0}, "slow is 0"),
    ],
)
def test_refusals(arguments: dict[str, int], what: str) -> None:
    with pytest.raises(InputError, match=what):
        render_walk(0, **arguments)
