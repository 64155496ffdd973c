"""Windows of a sequence become one map, whatever is known and however they are joined."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mapengine.runtime import Engine, InputError, Mapper, ProfileError
from mapengine.runtime.mapping.frames import MappedFrame
from mapengine.runtime.mapping.windows import JOINS

from ...random_views import random_views
from .perfect import PerfectEngine, Walk, walk

Array = NDArray[Any]
FRAMES = 17


@pytest.fixture(scope="module")
def truth() -> Walk:
    return walk(FRAMES)


def mapped(engine: Any, views: list[dict[str, Any]], **options: Any) -> tuple[Mapper, list[MappedFrame]]:
    mapper = Mapper(engine, **{"window": 6, "overlap": 2, "mask_edges": False, **options})
    done = [frame for view in views for frame in mapper.add(view)]
    return mapper, done + mapper.finish()


def scale_of(call: int) -> float:
    return (1.0, 0.8, 1.3, 1.1, 0.9)[call]


@pytest.mark.parametrize(
    ("frames", "window", "overlap"), [(1, 6, 2), (2, 2, 1), (6, 6, 2), (7, 6, 5), (17, 6, 2), (17, 5, 1)]
)
def test_every_frame_is_handed_out_once_and_in_order_when_its_window_is_done(
    truth: Walk, frames: int, window: int, overlap: int
) -> None:
    engine = PerfectEngine(truth)
    mapper = Mapper(engine, window=window, overlap=overlap)
    done: list[int] = []
    for number in range(frames):
        done += [frame.number for frame in mapper.add(truth.view(number))]
        complete = max(0, (number + 1 - window) // (window - overlap) + 1) if number + 1 >= window else 0
        assert done == list(range(window + (complete - 1) * (window - overlap) if complete else 0))
        assert len(mapper.poses) == len(mapper.submaps) == len(done)
    done += [frame.number for frame in mapper.finish()]
    assert done == list(range(frames))
    assert all(len(call.views) <= window for call in engine.calls)


def test_an_image_is_encoded_once_though_windows_overlap(truth: Walk) -> None:
    engine = PerfectEngine(truth)
    mapped(engine, [truth.view(number) for number in range(FRAMES)], window=6, overlap=4)
    assert engine.encoded == list(range(FRAMES))
    assert sum(len(call.views) for call in engine.calls) > 2 * FRAMES


@pytest.mark.parametrize("join", JOINS)
@pytest.mark.parametrize("transform", ["rigid", "similarity"])
def test_windows_become_one_map(truth: Walk, join: str, transform: str) -> None:
    engine = PerfectEngine(truth, scale_of if transform == "similarity" else lambda call: 1.0)
    mapper, done = mapped(engine, [truth.view(n) for n in range(FRAMES)], join=join, transform=transform)
    np.testing.assert_allclose(mapper.poses, truth.poses, atol=1e-6)
    for frame, depth, pose in zip(done, truth.depth, mapper.poses, strict=True):
        np.testing.assert_allclose(frame.pose, pose, atol=1e-12)
        assert frame.mask.mean() > 0.5
        np.testing.assert_allclose(frame.depth[frame.mask], depth[frame.mask], rtol=1e-5)
        assert not frame.depth[~frame.mask].any()
        np.testing.assert_allclose(frame.intrinsics, truth.intrinsics, rtol=1e-4)
        assert (frame.depth.dtype, frame.confidence.shape, frame.submap) == (np.float32, depth.shape, 0)


@pytest.mark.parametrize("join", JOINS)
def test_the_network_is_told_what_the_join_says(truth: Walk, join: str) -> None:
    def unsure(call: int, frame: int, heads: dict[str, Array]) -> None:
        heads["confidence"][:, :5] = 1.1

    engine = PerfectEngine(truth, err=unsure)
    mapped(engine, [truth.view(number) for number in range(10)], join=join)
    second = engine.calls[1]
    numbers = engine.numbers(second)
    assert sorted(numbers) == list(range(4, 10))
    told = {number: view for number, view in zip(numbers, second.views, strict=True) if number in (4, 5)}
    assert all(view.known == (False, False, False) for n, view in zip(numbers, second.views, strict=True) if n > 5)
    if join == "align":
        assert all(view.known == (False, False, False) for view in told.values())
        return
    assert numbers[0] == 5  # the reference has a pose, and is the one that shares most with the new frames
    for number, view in told.items():
        assert view.pose is not None
        assert view.rays is not None
        np.testing.assert_allclose(view.pose[1][0], truth.poses[number][:3, 3], atol=1e-6)
        if join == "poses":
            assert view.distance is None
            continue
        assert view.distance is not None
        depth_z = view.distance[0, ..., 0] * view.rays[0, ..., 2]
        there = depth_z > 0
        assert not there[:5].any()
        assert there[5:].all()
        np.testing.assert_allclose(depth_z[there], truth.depth[number][there], rtol=1e-5)


def test_what_comes_with_a_frame_goes_before_what_the_map_says(truth: Walk) -> None:
    engine = PerfectEngine(truth, scale_of)
    mapped(engine, [truth.view(number, "kd" if number % 2 else "") for number in range(10)], join="poses+depth")
    first, second = (dict(zip(engine.numbers(call), call.views, strict=True)) for call in engine.calls)
    assert [view.known == (True, True, False) for _, view in sorted(first.items())] == [False, True] * 3
    assert second[4].known == second[5].known == (True, True, True)
    distances = [view.distance for view in (first[5], second[5])]
    assert np.array_equal(*distances)


@pytest.mark.parametrize("join", JOINS)
def test_wrong_points_do_not_move_a_window(truth: Walk, join: str) -> None:
    def wrong(call: int, frame: int, heads: dict[str, Array]) -> None:
        if call:
            heads["depth_along_ray"][:, ::2, ::2] *= 1.7  # a quarter of the pixels, as sure as the others
            heads["depth_along_ray"][:, :8] *= 3  # unsure
            heads["confidence"][:, :8] = 1.05

    mapper, _ = mapped(PerfectEngine(truth, scale_of, wrong), [truth.view(n) for n in range(10)], join=join)
    np.testing.assert_allclose(mapper.poses, truth.poses[:10], atol=1e-3)


WORLD = np.array([[0.6, 0, 0.8, 300], [0, 1, 0, -20], [-0.8, 0, 0.6, 40], [0, 0, 0, 1]])


@pytest.mark.parametrize("join", JOINS)
@pytest.mark.parametrize("posed", [range(FRAMES), [0], [4, 16], [9, 10, 11]])
def test_a_map_is_in_the_world_of_the_poses_that_come_with_frames(truth: Walk, join: str, posed: Any) -> None:
    views = [truth.view(number, "p" if number in posed else "") for number in range(FRAMES)]
    for number in posed:
        views[number]["camera_poses"] = (WORLD @ truth.poses[number])[None]
    mapper, _ = mapped(PerfectEngine(truth), views, join=join)
    np.testing.assert_allclose(mapper.poses, WORLD @ truth.poses, atol=1e-5)


def test_lengths_are_those_of_given_poses_that_are_not_metric(truth: Walk) -> None:
    views = [truth.view(number, "p" if number in (4, 6, 8) else "") for number in range(FRAMES)]
    for number in (4, 6, 8):
        pose = WORLD @ truth.poses[number]
        pose[:3, 3] *= 2.5
        views[number] |= {"camera_poses": pose[None], "is_metric_scale": np.array([False])}
    engine = PerfectEngine(truth)
    mapper, done = mapped(engine, views, transform="rigid", join="poses")
    expected = WORLD @ truth.poses
    expected[:, :3, 3] *= 2.5
    np.testing.assert_allclose(mapper.poses, expected, atol=1e-5)
    assert mapper.summary["metric"] is False
    told = {n: view for n, view in zip(engine.numbers(engine.calls[-1]), engine.calls[-1].views, strict=True)}
    assert [bool(told[number].is_metric.all()) for number in sorted(told)] == [False] * 2 + [True] * 3
    np.testing.assert_allclose(done[-1].depth[done[-1].mask], 2.5 * truth.depth[-1][done[-1].mask], rtol=1e-5)


@pytest.mark.parametrize("ignored", ["ignore_calibration_inputs", "ignore_depth_inputs", "ignore_pose_inputs"])
def test_what_is_ignored_is_not_told_and_what_the_map_says_is(truth: Walk, ignored: str) -> None:
    engine = PerfectEngine(truth)
    mapped(engine, [truth.view(number, "kdp") for number in range(10)], join="poses", **{ignored: True})
    kept = [name != ignored for name in ("ignore_calibration_inputs", "ignore_depth_inputs", "ignore_pose_inputs")]
    assert all(list(view.known) == kept for view in engine.calls[0].views)
    second = dict(zip(engine.numbers(engine.calls[1]), engine.calls[1].views, strict=True))
    assert second[5].known == (True, ignored != "ignore_depth_inputs", True)


def test_a_window_without_a_valid_shared_pixel_is_joined_by_its_cameras(truth: Walk) -> None:
    def nothing(call: int, frame: int, heads: dict[str, Array]) -> None:
        if call == 1:
            heads["mask_logits"][:] = -1

    mapper, done = mapped(PerfectEngine(truth, err=nothing), [truth.view(n) for n in range(FRAMES)])
    np.testing.assert_allclose(mapper.poses, truth.poses, atol=1e-6)
    assert not done[7].mask.any()


@pytest.mark.slow
@pytest.mark.parametrize("join", JOINS)
def test_the_same_frames_give_the_same_bits(small: Engine, join: str) -> None:
    views = random_views(7, "k", 28, 28)
    runs = [mapped(small, views, window=4, mask_edges=True, join=join) for _ in range(2)]
    assert np.isfinite(runs[0][0].poses).all()
    assert runs[0][0].poses.tobytes() == runs[1][0].poses.tobytes()
    for one, other in zip(*(done for _, done in runs), strict=True):
        assert one.depth.tobytes() == other.depth.tobytes()
        assert one.confidence.tobytes() == other.confidence.tobytes()


def test_buffers_may_be_filled_anew(truth: Walk) -> None:
    mapper = Mapper(PerfectEngine(truth), window=3, overlap=1, mask_edges=False)  # type: ignore[arg-type]
    buffer = np.empty_like(truth.view(0)["img"])
    done: list[MappedFrame] = []
    for number in range(5):
        buffer[...] = truth.view(number)["img"]
        done += mapper.add({**truth.view(number), "img": buffer})
    assert [frame.number for frame in done] == list(range(5))
    np.testing.assert_allclose(mapper.poses, truth.poses[:5], atol=1e-6)


def test_encoded_views_are_taken_as_they_are(truth: Walk) -> None:
    engine = PerfectEngine(truth)
    views = engine.encode([truth.view(number) for number in range(7)])
    mapped(engine, views)  # type: ignore[arg-type]
    assert engine.encoded == list(range(7))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window is 0; give a positive integer"),
        ({"window": True}, "window is True"),
        ({"window": 33}, "up to 32 views; give at most 32"),
        ({"overlap": 6}, "overlap is 6 of windows of 6 frames; give less than 6"),
        ({"overlap": None}, "overlap is None; give a positive integer"),
        ({"join": "posez"}, "join is 'posez'; choose one of align, poses, poses\\+depth"),
        ({"join": None}, "join is None"),
        ({"transform": "affine"}, "transform is 'affine'; choose rigid or similarity"),
        ({"apply_mask": False}, "apply_mask is False, but a map"),
        ({"mask_edge": True}, "the nearest is 'mask_edges'"),
    ],
)
def test_options_that_cannot_be_are_refused(truth: Walk, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Mapper(PerfectEngine(truth), **{"window": 6, "overlap": 2, **options})


def test_a_frame_that_cannot_be_used_is_refused_by_its_number_and_leaves_the_map_as_it_was(truth: Walk) -> None:
    engine = PerfectEngine(truth)
    mapper = Mapper(engine, window=6, overlap=2)
    for number in range(5):
        mapper.add(truth.view(number))
    bad = truth.view(5, "p")
    bad["camera_poses"] = np.full((1, 4, 4), np.nan)
    with pytest.raises(InputError, match=r"^frame 5: camera_poses"):
        mapper.add(bad)
    with pytest.raises(InputError, match="one size"):
        mapper.add({**truth.view(5), "img": np.zeros((1, 3, 28, 28), np.float32)})
    two = truth.view(5)
    with pytest.raises(InputError, match=r"a batch of 2|one size"):
        mapper.add({**two, "img": np.concatenate([two["img"]] * 2)})
    assert [frame.number for frame in mapper.add(truth.view(5))] == list(range(6))
    for number in range(6, FRAMES):
        mapper.add(truth.view(number))
    mapper.finish()
    np.testing.assert_allclose(mapper.poses, truth.poses, atol=1e-6)
    with pytest.raises(InputError, match="finished; begin another"):
        mapper.add(truth.view(0))
    assert mapper.finish() == []


def test_a_call_that_fails_leaves_the_map_as_it_was(truth: Walk) -> None:
    failing = [False]

    def fail(call: int, frame: int, heads: dict[str, Array]) -> None:
        if failing[0]:
            raise ProfileError("no memory now")

    engine = PerfectEngine(truth, err=fail)
    mapper = Mapper(engine, window=6, overlap=2)
    for number in range(9):
        mapper.add(truth.view(number))
    failing[0] = True
    with pytest.raises(ProfileError):
        mapper.add(truth.view(9))
    failing[0] = False
    assert [frame.number for frame in mapper.add(truth.view(9))] == [6, 7, 8, 9]
    np.testing.assert_allclose(mapper.poses, truth.poses[:10], atol=1e-6)


def test_nothing_gives_an_empty_map(truth: Walk) -> None:
    mapper = Mapper(PerfectEngine(truth))
    assert mapper.finish() == []
    assert mapper.poses.shape == (0, 4, 4)
    assert mapper.submaps.shape == (0,)
