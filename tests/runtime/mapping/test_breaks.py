"""What cannot be joined begins a submap, which is said, and leaves the rest of the map as it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mapengine.calibration.data.samples import sample_scene
from mapengine.calibration.scenes.draws import Draws
from mapengine.calibration.scenes.render import Exposure, render_view
from mapengine.runtime import Mapper
from mapengine.runtime.inputs.normalization import normalize_image
from mapengine.runtime.mapping.breaks import is_blank
from mapengine.runtime.mapping.frames import MappedFrame
from mapengine.runtime.mapping.turns import gray_image, turned_correlation

from .perfect import PerfectEngine, Walk, walk

Array = NDArray[Any]
FRAMES = 20
SIZE = (140, 112)


@pytest.fixture(scope="module")
def truth() -> Walk:
    return walk(FRAMES)


def mapped(engine: PerfectEngine, views: list[dict[str, Any]], **options: Any) -> tuple[Mapper, list[MappedFrame]]:
    mapper = Mapper(engine, window=6, overlap=2, mask_edges=False, **options)  # type: ignore[arg-type]
    done = [frame for view in views for frame in mapper.add(view)]
    return mapper, done + mapper.finish()


def reasons(mapper: Mapper) -> list[tuple[int, int, str]]:
    return [(found.number, found.submap, found.reason) for found in mapper.breaks]


def in_own_frame(poses: Array) -> Array:
    return np.linalg.inv(poses[0]) @ poses


def black(truth: Walk, number: int, noise: float) -> dict[str, Any]:
    view = truth.view(number)
    view["img"] = np.random.default_rng(number).normal(-2, noise, view["img"].shape).astype(np.float32)
    return view


@pytest.mark.parametrize("at", [4, 6, 8])
def test_black_frames_are_in_no_submap_and_end_one(truth: Walk, at: int) -> None:
    views = [black(truth, n, 0.03) if n in (at, at + 1) else truth.view(n) for n in range(FRAMES)]
    mapper, done = mapped(PerfectEngine(truth), views)
    assert [frame.number for frame in done] == list(range(FRAMES))
    assert reasons(mapper) == [(at + 2, 1, "blank")]
    assert "nothing can be seen" in str(mapper.breaks[0])
    assert mapper.submaps.tolist() == [0] * at + [-1] * 2 + [1] * (FRAMES - at - 2)
    assert np.isnan(mapper.poses[at : at + 2]).all()
    assert not done[at].mask.any()
    np.testing.assert_allclose(mapper.poses[:at], truth.poses[:at], atol=1e-6)
    after = mapper.poses[at + 2 :]
    np.testing.assert_allclose(in_own_frame(after), in_own_frame(truth.poses[at + 2 :]), atol=1e-6)
    np.testing.assert_allclose(after[0], mapper.poses[at - 1], atol=1e-9)  # the best guess


def test_a_sequence_may_begin_and_end_with_black_frames(truth: Walk) -> None:
    views = [black(truth, n, 0.0) if n in (0, 1, 9) else truth.view(n) for n in range(10)]
    mapper, _ = mapped(PerfectEngine(truth), views)
    assert reasons(mapper) == []
    assert mapper.submaps.tolist() == [-1] * 2 + [0] * 7 + [-1]
    dark = Mapper(PerfectEngine(truth), window=6, overlap=2)  # type: ignore[arg-type]
    assert [frame.submap for frame in dark.add(black(truth, 0, 0.0))] == [-1]
    assert dark.finish() == []


@pytest.mark.parametrize("at", [1, 5, 6, 8, 10, 19])
@pytest.mark.parametrize("join", ["align", "poses+depth"])
def test_a_cut_begins_a_submap_and_bends_nothing(truth: Walk, at: int, join: str) -> None:
    elsewhere = np.array([[-1, 0, 0, 30], [0, 1, 0, 0], [0, 0, -1, -40], [0, 0, 0, 1.0]])
    poses = truth.poses.copy()
    poses[at:] = elsewhere @ poses[at:]
    cut = replace(truth, poses=poses)

    def wrong(call: int, frame: int, heads: dict[str, Array]) -> None:
        numbers = engine.numbers(engine.calls[call])
        if min(numbers) < at <= max(numbers):  # what a network says beside another place is not to be used
            heads["depth_along_ray"] *= 1 + 0.02 * frame

    engine = PerfectEngine(cut, err=wrong)
    mapper, done = mapped(engine, [cut.view(n) for n in range(FRAMES)], join=join)
    assert [frame.number for frame in done] == list(range(FRAMES))
    assert reasons(mapper) == [(at, 1, "no overlap")]
    assert mapper.submaps.tolist() == [0] * at + [1] * (FRAMES - at)
    np.testing.assert_allclose(mapper.poses[:at], poses[:at], atol=1e-6)
    np.testing.assert_allclose(in_own_frame(mapper.poses[at:]), in_own_frame(poses[at:]), atol=1e-6)
    np.testing.assert_allclose(done[at].depth[done[at].mask], truth.depth[at][done[at].mask], rtol=1e-5)
    assert engine.encoded == list(range(FRAMES))


@pytest.mark.parametrize("alike", [True, False])
def test_frames_whose_images_are_alike_are_not_apart_though_the_network_says_so(truth: Walk, alike: bool) -> None:
    at = 3

    def wrong(call: int, frame: int, heads: dict[str, Array]) -> None:
        if frame >= at:
            heads["depth_along_ray"] *= 2  # its depth and that of the frames before have no surface in common

    views = [truth.view(n) for n in range(6)]
    for view in views[at:]:
        view["img"][..., 1:, :] *= 1 if alike else -1
    mapper, _ = mapped(PerfectEngine(truth, err=wrong), views)
    assert reasons(mapper) == ([] if alike else [(at, 1, "no overlap")])


def test_shared_frames_that_disagree_begin_a_submap(truth: Walk) -> None:
    def other(call: int, frame: int, heads: dict[str, Array]) -> None:
        if call == 2:
            heads["depth_along_ray"] *= np.random.default_rng(frame).uniform(0.3, 3, heads["depth_along_ray"].shape)
            heads["cam_trans"] = heads["cam_trans"] * 1.0

    mapper, _ = mapped(PerfectEngine(truth, err=other), [truth.view(n) for n in range(FRAMES)])
    assert (10, 1, "disagreement") in reasons(mapper)
    np.testing.assert_allclose(mapper.poses[:10], truth.poses[:10], atol=1e-6)


def test_submaps_are_brought_into_the_world_of_their_own_poses(truth: Walk) -> None:
    world = np.array([[0, 0, 1, 5], [0, 1, 0, 6], [-1, 0, 0, 7], [0, 0, 0, 1.0]])
    views = [truth.view(n) for n in range(FRAMES)]
    views[9] = black(truth, 9, 0.0)
    views[3]["camera_poses"] = (world @ truth.poses[3])[None]
    views[18]["camera_poses"] = (world @ truth.poses[18])[None]
    mapper, _ = mapped(PerfectEngine(truth), views)
    rest = [n for n in range(FRAMES) if n != 9]
    assert reasons(mapper) == [(10, 1, "blank")]
    np.testing.assert_allclose(mapper.poses[rest], (world @ truth.poses)[rest], atol=1e-5)


def turning(frames: int, from_frame: int, step: float = 4.0, forward: float = 0.06) -> tuple[Array, Walk]:
    """Images and truth of a walk that turns in place from a frame on."""
    scene = sample_scene(1, *SIZE)
    exposure = Exposure.random(Draws("turning"), 1.1)
    poses, images, depths = [], [], []
    for number in range(frames):
        angle = np.radians(step * max(0, number - from_frame))
        local = np.eye(4)
        local[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
        local[0, 3] = forward * min(number, from_frame)
        pose = (scene.poses[0] @ local).astype(np.float32)
        image, depth = render_view(
            scene.world, pose, scene.intrinsics[0], *SIZE, exposure, Draws("turning sensor", number)
        )
        images.append(image)
        depths.append(depth.astype(np.float64))
        poses.append(local)
    return np.stack(images), Walk(np.stack(depths), np.stack(poses), scene.intrinsics[0].astype(np.float64))


@pytest.mark.slow
def test_a_turn_in_place_begins_a_submap_once() -> None:
    images, truth = turning(24, 9)
    engine = PerfectEngine(truth)
    views = [{"img": normalize_image(image, "dinov2"), "data_norm_type": ["dinov2"]} for image in images]
    for number, view in enumerate(views):
        view["img"][..., 0, 0] = number / 100  # type: ignore[index]
    mapper, _ = mapped(engine, views)
    assert reasons(mapper) == [(14, 1, "rotation")]  # the first window that only turns
    np.testing.assert_allclose(mapper.poses, truth.poses, atol=1e-4)  # what is joined all the same
    poses = [{**view, "camera_poses": pose[None]} for view, pose in zip(views, truth.poses, strict=True)]
    assert reasons(mapped(PerfectEngine(truth), poses)[0]) == []  # given poses say how far a camera went


@pytest.mark.slow
def test_a_turn_from_the_first_frame_on_begins_no_second_submap() -> None:
    images, truth = turning(14, 0)
    views = [{"img": normalize_image(image, "dinov2"), "data_norm_type": ["dinov2"]} for image in images]
    for number, view in enumerate(views):
        view["img"][..., 0, 0] = number / 100  # type: ignore[index]
    mapper, done = mapped(PerfectEngine(truth), views)
    assert reasons(mapper) == []  # nothing is before it whose size it could change
    assert {frame.submap for frame in done} == {0}
    np.testing.assert_allclose(mapper.poses, truth.poses, atol=1e-4)


@pytest.mark.slow
def test_a_parallax_is_no_rotation() -> None:
    images, truth = turning(16, 8)
    grays = [gray_image(normalize_image(image, "dinov2")[0]) for image in images]
    about = truth.poses[15, :3, :3].T @ truth.poses[8, :3, :3] @ truth.poses[2, :3, :3]
    assert turned_correlation(grays[8], grays[15], truth.intrinsics, about) > 0.96
    assert turned_correlation(grays[0], grays[8], truth.intrinsics, np.eye(3)) < 0.9


@pytest.mark.parametrize(
    ("size", "noise", "blank"), [((112, 140), 0.05, True), ((112, 140), 0.5, False), ((3, 5), 0.0, True)]
)
def test_noise_is_no_contrast(size: tuple[int, int], noise: float, blank: bool) -> None:
    image = np.random.default_rng(0).normal(0, noise, (3, *size)).astype(np.float32)
    if not blank:
        image += np.linspace(-1, 1, size[1], dtype=np.float32)
    assert is_blank(image) == blank
