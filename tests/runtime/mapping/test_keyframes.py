"""Windows are made of keyframes; the frames between are localised beside them, and all come out as without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mapengine.runtime import Engine, InputError, Mapper, ProfileError, load_view
from mapengine.runtime.mapping.frames import MappedFrame
from mapengine.runtime.mapping.keyframes import MOST_BETWEEN, TOGETHER
from mapengine.runtime.outputs.view_files import view_files

from ...random_views import random_views
from .perfect import PerfectEngine, Walk, walk

Array = NDArray[Any]
FRAMES = 30
COLUMNS = 10
EVERY = 4
"""A frame has a tenth less of a keyframe than the one before it: of the fourth after it 0.6 is left."""
OVERLAP = {"keyframes": "overlap", "keyframe_threshold": 0.65}
WORLD = np.array([[0.6, 0, 0.8, 300], [0, 1, 0, -20], [-0.8, 0, 0.6, 40], [0, 0, 0, 1]])


class LookingEngine(PerfectEngine):
    """Sees patches of a wall move by: ``at`` says per frame which column of the wall its image begins with."""

    def __init__(self, truth: Walk, at: Any = range(FRAMES), **options: Any) -> None:
        super().__init__(truth, **options)
        self._at, self._wall = list(at), np.random.default_rng(0).normal(size=(8, 400, 32)).astype(np.float32)

    def _patches(self, number: int) -> Array:
        return self._wall[None, :, self._at[number] : self._at[number] + COLUMNS]


@pytest.fixture(scope="module")
def truth() -> Walk:
    return walk(FRAMES)


def mapped(engine: Any, views: list[dict[str, Any]], **options: Any) -> tuple[Mapper, list[MappedFrame]]:
    mapper = Mapper(engine, **{"window": 4, "overlap": 2, "mask_edges": False, **OVERLAP, **options})
    done = [frame for view in views for frame in mapper.add(view)]
    return mapper, done + mapper.finish()


def plain(truth: Walk, known: str = "") -> list[dict[str, Any]]:
    return [truth.view(number, known) for number in range(len(truth.poses))]


def chosen(mapper: Mapper) -> list[int]:
    return np.flatnonzero(mapper.keyframes).tolist()


@pytest.mark.parametrize(("frames", "last"), [(29, [28]), (30, [28, 29]), (3, [0, 2]), (1, [0])])
def test_a_frame_with_too_little_of_the_last_keyframe_becomes_one_and_so_does_the_last(
    truth: Walk, frames: int, last: list[int]
) -> None:
    engine = LookingEngine(truth)
    mapper, done = mapped(engine, plain(truth)[:frames])
    assert chosen(mapper) == sorted({*range(0, frames, EVERY), *last})
    assert [frame.number for frame in done] == list(range(frames))
    assert [frame.is_keyframe for frame in done] == mapper.keyframes.tolist()
    assert mapper.summary["keyframes"] == len(chosen(mapper))
    assert mapper.summary["frames"] == frames
    assert engine.encoded == list(range(frames))


def test_frames_come_out_when_the_window_of_the_keyframes_around_them_is_done(truth: Walk) -> None:
    mapper = Mapper(LookingEngine(truth), window=4, overlap=2, **OVERLAP)
    for number in range(FRAMES):
        done = [frame.number for frame in mapper.add(truth.view(number))]
        first = {12: 0, 20: 13, 28: 21}.get(number)
        assert done == ([] if first is None else list(range(first, number + 1)))
        assert len(mapper.poses) == len(mapper.keyframes) == (0 if number < 12 else (number - 12) // 8 * 8 + 13)


@pytest.mark.parametrize("keyframes", ["overlap", "features"])
def test_a_camera_that_rests_gives_a_keyframe_now_and_then(truth: Walk, keyframes: str) -> None:
    mapper, _ = mapped(LookingEngine(truth, [0] * FRAMES), plain(truth), keyframes=keyframes, keyframe_threshold=None)
    assert chosen(mapper) == [*range(0, FRAMES, MOST_BETWEEN + 1), FRAMES - 1]


def test_features_that_change_give_keyframes(truth: Walk) -> None:
    looks = [0] * 3 + [50] * 4 + [100] * 23
    mapper, _ = mapped(LookingEngine(truth, looks), plain(truth), keyframes="features", keyframe_threshold=None)
    assert chosen(mapper) == [0, 3, 7, 15, 23, 29]


def test_more_patches_are_compared_as_fewer(truth: Walk) -> None:
    class Fine(LookingEngine):
        def _patches(self, number: int) -> Array:
            return np.repeat(np.repeat(super()._patches(number), 2, axis=1), 2, axis=2)[:, :-1]

    assert chosen(mapped(Fine(truth), plain(truth))[0]) == chosen(mapped(LookingEngine(truth), plain(truth))[0])


@pytest.mark.parametrize("known", ["", "kd"])
@pytest.mark.parametrize("join", ["align", "poses+depth"])
def test_frames_between_are_where_they_are(truth: Walk, join: str, known: str) -> None:
    engine = LookingEngine(truth, scales=lambda call: (1.0, 0.8, 1.3)[call % 3])
    mapper, done = mapped(engine, plain(truth, known), join=join)
    np.testing.assert_allclose(mapper.poses, truth.poses, atol=1e-5)
    for frame, depth in zip(done, truth.depth, strict=True):
        np.testing.assert_allclose(frame.pose, mapper.poses[frame.number], atol=1e-12)
        np.testing.assert_allclose(frame.depth[frame.mask], depth[frame.mask], rtol=1e-4)
        np.testing.assert_allclose(frame.intrinsics, truth.intrinsics, rtol=1e-4)
        assert frame.mask.mean() > 0.5
        assert frame.submap == 0


def test_the_keyframes_around_are_told_with_pose_and_depth_and_the_frames_between_are_not(truth: Walk) -> None:
    engine = LookingEngine(truth)
    mapped(engine, plain(truth))
    small = [call for call in engine.calls if sorted(engine.numbers(call))[1] % EVERY]
    assert [sorted(engine.numbers(call)) for call in small] == [
        list(range(first, first + EVERY + 1)) for first in range(0, 28, EVERY)
    ]
    for call in small:
        for number, view in zip(engine.numbers(call), call.views, strict=True):
            is_keyframe = number % EVERY == 0
            assert view.known == (is_keyframe, is_keyframe, is_keyframe)
            if view.pose is not None:
                np.testing.assert_allclose(view.pose[1][0], truth.poses[number][:3, 3], atol=1e-6)
        assert len(call.views) <= TOGETHER + 2


@pytest.mark.parametrize("at", [7, 8, *(pytest.param(at, marks=pytest.mark.slow) for at in (1, 9, 11, 14, 29))])
def test_a_cut_between_keyframes_begins_a_submap_there(truth: Walk, at: int) -> None:
    elsewhere = np.array([[-1, 0, 0, 30], [0, 1, 0, 0], [0, 0, -1, -40], [0, 0, 0, 1.0]])
    poses = truth.poses.copy()
    poses[at:] = elsewhere @ poses[at:]
    cut = replace(truth, poses=poses)
    # Its images have so much in common that no frame there becomes a keyframe by itself.
    looks = [number // 2 + (4 if number >= at else 0) for number in range(FRAMES)]
    for keyframes in ({"keyframe_threshold": 0.5}, {}):
        engine = LookingEngine(cut, looks)
        mapper, done = mapped(engine, plain(cut), **keyframes)
        assert [frame.number for frame in done] == list(range(FRAMES))
        assert [(found.number, found.reason) for found in mapper.breaks] == [(at, "no overlap")]
        assert mapper.submaps.tolist() == [0] * at + [1] * (FRAMES - at)
        assert {at - 1, at} <= set(chosen(mapper))
        np.testing.assert_allclose(mapper.poses[:at], poses[:at], atol=1e-5)
        after, true_after = (np.linalg.inv(part[at]) @ part[at:] for part in (mapper.poses, poses))
        np.testing.assert_allclose(after, true_after, atol=1e-5)
        assert engine.encoded == list(range(FRAMES))


@pytest.mark.parametrize("at", [2, 9, 13])
def test_black_frames_end_a_submap_and_what_waits_is_mapped(truth: Walk, at: int) -> None:
    views = plain(truth)
    views[at]["img"] = np.full_like(views[at]["img"], -2)
    views[at]["img"][..., 0, 0] = at / 100  # which frame it is
    mapper, done = mapped(LookingEngine(truth), views)
    assert [frame.number for frame in done] == list(range(FRAMES))
    assert mapper.submaps.tolist() == [0] * at + [-1] + [1] * (FRAMES - at - 1)
    assert not mapper.keyframes[at]
    assert not done[at].is_keyframe
    assert {at - 1, at + 1} <= set(chosen(mapper))
    np.testing.assert_allclose(mapper.poses[:at], truth.poses[:at], atol=1e-5)


@pytest.mark.parametrize(
    "posed", [[2, 29], *(pytest.param(at, marks=pytest.mark.slow) for at in (range(FRAMES), [0], [5], [17, 18, 19]))]
)
def test_a_map_is_in_the_world_of_the_poses_that_come_with_frames(truth: Walk, tmp_path: Path, posed: Any) -> None:
    views = plain(truth)
    for number in posed:
        views[number]["camera_poses"] = (WORLD @ truth.poses[number])[None]
    mapper, _ = mapped(LookingEngine(truth), views, folder=tmp_path / "map")
    np.testing.assert_allclose(mapper.poses, WORLD @ truth.poses, atol=1e-4)
    assert 0 < len(chosen(mapper)) < FRAMES
    files = view_files(tmp_path / "map")  # frames between move with their window
    assert len(files) == FRAMES
    for path, pose in zip(files, mapper.poses, strict=True):
        np.testing.assert_allclose(load_view(path)["camera_poses"][0], pose, atol=1e-3)
    with np.load(tmp_path / "map" / "map.npz") as stored:
        assert np.array_equal(stored["keyframes"], mapper.keyframes)


def test_given_poses_hold_frames_between_keyframes(truth: Walk) -> None:
    def off(call: int, frame: int, heads: dict[str, Array]) -> None:
        heads["cam_trans"] = heads["cam_trans"] * 1.1

    views = plain(truth, "p")
    for view in views:
        pose = view["camera_poses"].copy()
        pose[:, :3, 3] *= 2.5
        view |= {"camera_poses": pose, "is_metric_scale": np.array([False])}
    mapper, done = mapped(LookingEngine(truth, err=off), views)
    assert 0 < len(chosen(mapper)) < FRAMES
    expected = truth.poses.copy()
    expected[:, :3, 3] *= 2.5
    np.testing.assert_allclose(mapper.poses, expected, atol=1e-5)
    np.testing.assert_allclose(done[10].depth[done[10].mask], 2.5 / 1.1 * truth.depth[10][done[10].mask], rtol=1e-4)
    assert mapper.summary["metric"] is False


@pytest.mark.parametrize("failing", [0, 1, 3])
def test_a_call_that_fails_leaves_the_map_as_it_was(truth: Walk, failing: int) -> None:
    fails = [True]

    def fail(call: int, frame: int, heads: dict[str, Array]) -> None:
        if call == failing and fails[0]:
            fails[0] = False
            raise ProfileError("no memory now")

    mapper = Mapper(LookingEngine(truth, err=fail), window=4, overlap=2, mask_edges=False, **OVERLAP)
    for number in range(12):
        mapper.add(truth.view(number))
    with pytest.raises(ProfileError):
        mapper.add(truth.view(12))
    assert len(mapper.poses) == len(mapper.keyframes) == 0
    assert [frame.number for frame in mapper.add(truth.view(12))] == list(range(13))
    np.testing.assert_allclose(mapper.poses, truth.poses[:13], atol=1e-5)


@pytest.mark.parametrize("keyframes", ["overlap", "features"])
@pytest.mark.slow
def test_the_same_frames_give_the_same_bits(small: Engine, keyframes: str) -> None:
    views = random_views(7, "k", 28, 28)
    runs = [mapped(small, [views[0]] * 3 + views, keyframes=keyframes, keyframe_threshold=0.99) for _ in range(2)]
    assert np.isfinite(runs[0][0].poses).all()
    assert not runs[0][0].keyframes.all()
    assert runs[0][0].poses.tobytes() == runs[1][0].poses.tobytes()
    for one, other in zip(*(done for _, done in runs), strict=True):
        assert one.depth.tobytes() == other.depth.tobytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keyframes": "some"}, "keyframes is 'some'; choose one of all, overlap, features"),
        ({"keyframes": None}, "keyframes is None"),
        ({"keyframes": "all"}, "keyframe_threshold is 0.65, but keyframes is 'all'"),
        ({"keyframe_threshold": 0}, "keyframe_threshold is 0; give a number above 0, at most 1"),
        ({"keyframe_threshold": 1.5}, "keyframe_threshold is 1.5"),
        ({"keyframe_threshold": float("nan")}, "keyframe_threshold is nan"),
        ({"keyframe_threshold": True}, "keyframe_threshold is True"),
        ({"keyframe_threshold": "0.5"}, "keyframe_threshold is '0.5'"),
    ],
)
def test_options_that_cannot_be_are_refused(truth: Walk, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        mapped(PerfectEngine(truth), [], **options)


def test_a_bundle_of_few_views_has_no_room_for_frames_between(truth: Walk) -> None:
    with pytest.raises(InputError, match="up to 2 views; build it for at least 3, or leave keyframes at 'all'"):
        mapped(PerfectEngine(truth, most=2), [], window=2, overlap=1)
    mapped(PerfectEngine(truth, most=2), [], window=2, overlap=1, keyframes="all", keyframe_threshold=None)
    engine = LookingEngine(truth, most=3)
    mapper, _ = mapped(engine, plain(truth), window=3, overlap=1)
    np.testing.assert_allclose(mapper.poses, truth.poses, atol=1e-5)
    assert max(len(call.views) for call in engine.calls) == 3
