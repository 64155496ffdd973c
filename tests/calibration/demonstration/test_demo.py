"""A reconstruction beside the truth: the comparison, the two scenes, and the picture."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mapengine.calibration.demonstration.comparison import Comparison, DemoScene, compare, demo_scene
from mapengine.calibration.demonstration.picture import SHOWN, draw_demo, figures
from mapengine.calibration.demonstration.top_view import PREDICTED, TRUE, draw_top_view
from mapengine.calibration.evaluation import HELD_OUT_SEED, Truth
from mapengine.runtime.errors import InputError, ParityError
from mapengine.runtime.outputs.drawing import INVALID

from ..evaluation.oracle import Oracle, rigid

SIZE = (70, 56)
WITH_SKY = HELD_OUT_SEED
DOWN = np.array([0.0, 1.0, 0.0])


@pytest.fixture(scope="module")
def rendered() -> DemoScene:
    return demo_scene(SIZE, 3, WITH_SKY)


def answer(rendered: DemoScene, **errors: Any) -> Comparison:
    views = len(rendered.scene.images)
    return compare(Oracle(rendered.scene, **errors).forward(views), rendered.scene)


@pytest.mark.slow
def test_pictures_are_a_multiple_of_what_the_network_sees(rendered: DemoScene) -> None:
    scene = rendered.scene
    assert rendered.pictures.shape == (3, 8 * SIZE[1], 8 * SIZE[0], 3)
    assert scene.images.shape == (3, SIZE[1], SIZE[0], 3)
    for picture, image in zip(rendered.pictures, scene.images, strict=True):
        smaller = np.asarray(Image.fromarray(picture).resize(SIZE, Image.Resampling.BOX)).astype(int)
        assert np.abs(smaller - image).mean() < 4
    large = demo_scene((560, 448), 1)
    assert large.pictures is not None
    assert large.pictures.shape == large.scene.images.shape


@pytest.mark.parametrize("frame", [None, rigid(1, 25.0, 0.4, -0.2, 1.5)])
def test_a_perfect_answer_is_the_truth_in_any_frame(rendered: DemoScene, frame: Any) -> None:
    found = answer(rendered, frame=frame)
    truth = Truth.of(rendered.scene)
    assert found.factor == pytest.approx(1, abs=1e-5)
    assert found.view_abs_rel == pytest.approx((0, 0, 0), abs=1e-5)
    assert found.errors.max() < 1e-5
    np.testing.assert_array_equal(found.surface, truth.valid)
    np.testing.assert_allclose(found.poses, truth.poses, atol=1e-5)
    np.testing.assert_allclose(found.reconstruction.poses, found.true_scene.poses, atol=1e-5)
    both = found.reconstruction.mask & found.true_scene.mask
    assert both.sum() > 0.5 * found.true_scene.mask.sum()
    np.testing.assert_allclose(found.reconstruction.points[both], found.true_scene.points[both], atol=1e-4)


def test_a_wrong_scale_is_taken_out_of_depth_but_not_of_the_scene(rendered: DemoScene) -> None:
    found = answer(rendered, scale=1.25)
    assert found.factor == pytest.approx(0.8, abs=1e-5)
    assert found.errors.max() < 1e-5
    assert found.score.values["metric_scale_abs_rel"] == pytest.approx(0.25, abs=1e-4)
    np.testing.assert_allclose(found.poses, found.truth.poses, atol=1e-5)
    both = found.reconstruction.mask & found.true_scene.mask
    np.testing.assert_allclose(
        found.reconstruction.points[both], 1.25 * found.true_scene.points[both], rtol=1e-4, atol=1e-4
    )


def test_the_true_scene_is_what_was_rendered(rendered: DemoScene) -> None:
    true = answer(rendered).true_scene
    np.testing.assert_array_equal(true.colors, rendered.scene.images)
    np.testing.assert_array_equal(true.mask, rendered.scene.mask)
    np.testing.assert_array_equal(true.depth, rendered.scene.depth_z)
    np.testing.assert_array_equal(true.intrinsics, rendered.scene.intrinsics)
    np.testing.assert_allclose(true.poses[0], np.eye(4), atol=1e-6)
    first = true.points[0][true.mask[0]]
    np.testing.assert_allclose(first[:, 2], true.depth[0][true.mask[0]], rtol=1e-5)


@pytest.mark.slow
def test_both_scenes_are_saved(rendered: DemoScene, tmp_path: Path) -> None:
    answer(rendered).save(tmp_path, "a title")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.glb", "demo.html", "truth.glb"]
    assert "<title>a title</title>" in (tmp_path / "demo.html").read_text(encoding="utf-8")
    assert min(path.stat().st_size for path in tmp_path.iterdir()) > 10_000


@pytest.mark.slow
def test_a_view_without_depth_has_no_figure(rendered: DemoScene) -> None:
    depth = rendered.scene.depth_z.copy()
    depth[1] = 0
    scene = replace(rendered.scene, depth_z=depth)
    found = compare(Oracle(scene).forward(3), scene)
    assert found.view_abs_rel[1] is None
    assert found.view_abs_rel[0] == pytest.approx(0, abs=1e-5)
    draw_demo(found, list(rendered.pictures), DOWN, "title", "facts")


def test_answers_that_cannot_be_compared(rendered: DemoScene) -> None:
    predictions = Oracle(rendered.scene).forward(3)
    with pytest.raises(InputError, match="2 predictions for 3 views"):
        compare(predictions[:2], rendered.scene)
    predictions[1]["depth_z"][0, 5, 5] = np.nan
    with pytest.raises(ParityError, match="depth_z of view 1 is not finite"):
        compare(predictions, rendered.scene)


@pytest.mark.slow
def test_figures_are_those_of_the_evaluation(rendered: DemoScene) -> None:
    shown = dict(figures(answer(rendered, scale=1.1)))
    assert len(shown) == len(SHOWN)
    assert shown["metric scale AbsRel"] == "0.100"
    assert dict(figures(answer(rendered, turned=3.0)))["rotation, degrees"] == "3.00"
    one = demo_scene(SIZE, 1, WITH_SKY)
    assert "rotation, degrees" not in dict(figures(answer(one)))


def words_of(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that is drawn from now on."""
    texts: list[str] = []
    real = ImageDraw.ImageDraw.text

    def text(self: Any, at: Any, words: str, *arguments: Any, **options: Any) -> None:
        texts.append(words)
        real(self, at, words, *arguments, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return texts


@pytest.mark.slow
def test_the_picture_says_what_it_shows(rendered: DemoScene, monkeypatch: pytest.MonkeyPatch) -> None:
    found = answer(rendered, scale=1.25)
    texts = words_of(monkeypatch)
    draw_demo(found, list(rendered.pictures), DOWN, "the title", "the facts", "careful")
    assert {"the title", "the facts", "careful", "Image", "True depth", "Predicted depth", "Depth error"} <= set(texts)
    assert {"view 0", "view 2", "AbsRel 0.000", "no surface", "true", "predicted", "metric scale AbsRel"} <= set(texts)
    assert any("times 0.8," in text for text in texts)
    depth = found.truth.depth_z[found.truth.valid]
    metres = [float(text.removesuffix(" m")) for text in texts if re.fullmatch(r"[\d.]+ m", text)]
    assert len([tick for tick in metres if depth.min() <= tick <= depth.max()]) >= 2
    assert sum(text.endswith(" %") for text in texts) >= 2
    texts.clear()
    draw_demo(found, list(rendered.pictures), DOWN, "the title", "the facts")
    assert "careful" not in texts


@pytest.mark.slow
def test_missing_depth_is_dark_grey_and_equal_depths_look_equal(rendered: DemoScene) -> None:
    found = answer(rendered)
    picture = np.asarray(draw_demo(found, list(rendered.pictures), DOWN, "t", "f"))
    sky = found.truth.valid[0] == 0
    assert 0.05 < sky.mean() < 0.95
    grey = (picture == INVALID).all(axis=-1)
    # Tiles are four times as large as the views; the first row begins where dark grey does.
    rows = np.nonzero(grey)[0]
    tile = np.kron(sky, np.ones((4, 4), bool))
    step = tile.shape[1] + 10
    top = rows.min() - np.flatnonzero(sky.any(axis=1))[0] * 4
    for column in (1, 2, 3):
        left = 24 + column * step
        np.testing.assert_array_equal(grey[top : top + tile.shape[0], left : left + tile.shape[1]], tile)
    true, predicted = (picture[top : top + tile.shape[0], 24 + c * step :][:, : tile.shape[1]] for c in (1, 2))
    assert np.abs(true.astype(int) - predicted).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("size", [(14 * 3, 14 * 2), (28, 112), (140, 28)])
@pytest.mark.parametrize("views", [1, 8])
def test_any_shape_and_number_of_views_fits(size: tuple[int, int], views: int) -> None:
    rendered = demo_scene(size, views)
    picture = draw_demo(answer(rendered), list(rendered.pictures), DOWN, "t" * 500, "f", "w")
    assert 900 < picture.width < 1700


def drawn(picture: Image.Image, colour: tuple[int, int, int]) -> int:
    """Pixels that are nearly of a colour."""
    return int((np.abs(np.asarray(picture).astype(int) - colour).sum(axis=-1) < 60).sum())


@pytest.mark.slow
def test_the_plan_shows_cameras_where_they_are(rendered: DemoScene) -> None:
    right = answer(rendered)
    poses = right.poses.copy()
    poses[1, 0, 3] += 1.0
    wrong = replace(right, poses=poses)
    for surfaces in (False, True):
        views_from_above = [draw_top_view(found, DOWN, (280, 220), 15, surfaces) for found in (right, wrong)]
        assert {view.size for view in views_from_above} == {(280, 220)}
        # What is predicted rightly lies below the truth, which is drawn over it.
        assert drawn(views_from_above[0], PREDICTED) + 20 < drawn(views_from_above[1], PREDICTED)
        assert drawn(views_from_above[0], TRUE) > 20


def test_a_plan_of_a_camera_that_looks_down(rendered: DemoScene) -> None:
    draw_top_view(answer(rendered), np.array([0.0, 0.0, 1.0]), (200, 200), 15, True)
