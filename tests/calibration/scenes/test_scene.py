"""Rendered scenes: exact, deterministic, overlapping, within their ranges."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from mapengine.calibration.scenes import KINDS, MAX_VIEWS, RenderedScene, render_scene
from mapengine.calibration.scenes.cameras import measure_overlap
from mapengine.calibration.scenes.world import cast
from mapengine.runtime.errors import InputError

from .depth_agreement import View, count_disagreements, project

SEEDS = range(40, 46)


@pytest.fixture(scope="module")
def scenes() -> list[RenderedScene]:
    return [render_scene(seed, 4, kind=KINDS[seed % 3]) for seed in SEEDS]


def pairs(scene: RenderedScene) -> list[tuple[int, int]]:
    views = range(len(scene.images))
    return [(a, b) for a in views for b in views if a != b]


def view(scene: RenderedScene, number: int) -> View:
    return View(scene.depth_z[number], scene.poses[number], scene.intrinsics[number])


@pytest.mark.slow
def test_points_are_met_by_the_rays_of_every_other_view(scenes: list[RenderedScene]) -> None:
    """What a ray of another view hits first is the point itself, or something nearer that hides it."""
    seen = missed = 0
    for scene in scenes:
        for a, b in pairs(scene):
            column, row, z = project(view(scene, a), view(scene, b))
            camera = scene.intrinsics[b]
            x, y = (column - camera[0, 2]) / camera[0, 0], (row - camera[1, 2]) / camera[1, 1]
            rotation = scene.poses[b][:3, :3]
            direction = tuple(rotation[k, 0] * x + rotation[k, 1] * y + rotation[k, 2] for k in range(3))
            distance = cast(scene.world, tuple(scene.poses[b][:3, 3]), direction).distance
            seen += np.count_nonzero(np.abs(distance - z) <= 1e-3 * z)
            missed += np.count_nonzero(distance > z * (1 + 1e-3))  # outlines, where a ray slips past an edge
    assert seen > 200_000
    assert missed < 2e-4 * seen


def test_depth_maps_agree_between_views(scenes: list[RenderedScene]) -> None:
    counts = [count_disagreements(view(scene, a), view(scene, b)) for scene in scenes for a, b in pairs(scene)]
    compared, wrong = (sum(part) for part in zip(*counts, strict=True))
    assert compared > 100_000
    # What is left is hidden by less than 2 %: things that stand close to a wall.
    assert wrong < 0.01 * compared


def test_scenes_are_the_same_bits_everywhere() -> None:
    for kind, expected in zip(KINDS, ("d38bc0c30a2fd638", "c89cc16c0fbbb6f5", "95ea6317af010017"), strict=True):
        scene = render_scene(5, 2, 70, 56, kind=kind)
        arrays = (scene.images, scene.depth_z, scene.intrinsics, scene.poses)
        digest = hashlib.sha256(b"".join(np.ascontiguousarray(x).tobytes() for x in arrays))
        assert digest.hexdigest()[:16] == expected, kind


def test_more_views_do_not_change_the_first_ones() -> None:
    few, many = render_scene(3, 2, 70, 56), render_scene(3, MAX_VIEWS, 70, 56)
    assert len(many.images) == MAX_VIEWS
    np.testing.assert_array_equal(few.images, many.images[:2])
    np.testing.assert_array_equal(few.depth_z, many.depth_z[:2])


def test_what_is_rendered_is_within_its_ranges(scenes: list[RenderedScene]) -> None:
    for scene in scenes:
        depth = scene.depth_z[scene.mask]
        assert depth.min() >= 0.3
        assert depth.max() <= 20
        assert scene.mask.mean(axis=(1, 2)).min() > 0.4
        width = scene.images.shape[2]
        fields = 2 * np.degrees(np.arctan(width / 2 / scene.intrinsics[:, 0, 0]))
        assert fields.min() >= 50 - 1e-3
        assert fields.max() <= 100 + 1e-3
        np.testing.assert_array_equal(scene.intrinsics[:, 0, 0], scene.intrinsics[:, 1, 1])
        rotations = scene.poses[:, :3, :3].astype(np.float64)
        assert rotations @ rotations.transpose(0, 2, 1) == pytest.approx(
            np.broadcast_to(np.eye(3), (4, 3, 3)), abs=1e-5
        )
        assert scene.images.std(axis=(1, 2, 3)).min() > 8


def test_overlap_is_measured(scenes: list[RenderedScene]) -> None:
    for scene in scenes:
        overlap = scene.overlap
        assert np.diag(overlap) == pytest.approx(1, abs=0.01)
        assert overlap[0].min() > 0.15  # chosen by a coarse look at 0.3
        assert overlap[:, 0].min() > 0.15
    assert min(scene.overlap[0, 1:].min() for scene in scenes) < 0.8


def test_views_back_to_back_do_not_overlap(scenes: list[RenderedScene]) -> None:
    scene = scenes[0]
    turned = scene.poses[0].copy()
    turned[:3, [0, 2]] *= -1
    first = view(scene, 0)
    assert measure_overlap(*first, scene.depth_z[0], turned, scene.intrinsics[0]) == 0
    assert measure_overlap(np.zeros_like(scene.depth_z[0]), *first[1:], *first) == 0


@pytest.mark.slow
def test_kinds_are_all_drawn() -> None:
    assert {render_scene(seed, 1, 28, 28).kind for seed in range(20)} == set(KINDS)


@pytest.mark.slow
def test_sky_has_no_depth() -> None:
    scene = render_scene(6, 4, kind="outdoor")
    assert not scene.mask.all()
    sky = scene.images[~scene.mask].mean(axis=0)
    assert sky[2] > sky[0] - 5  # never redder than blue


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"views": 0}, "1 to 8 views"),
        ({"views": 9}, "1 to 8 views"),
        ({"width": 20}, "28 to 4096"),
        ({"height": 5000}, "28 to 4096"),
        ({"kind": "moon"}, "no kind 'moon'"),
    ],
)
def test_refusals(arguments: dict[str, object], what: str) -> None:
    with pytest.raises(InputError, match=what):
        render_scene(0, **arguments)  # type: ignore[arg-type]
