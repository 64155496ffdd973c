"""The sample scene, alone and as a folder of files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mapengine.calibration.data.samples import SAMPLE_SEED, SAMPLE_SIZE, sample_scene, sample_views, write_samples
from mapengine.calibration.evaluation import HELD_OUT_SEED
from mapengine.calibration.scenes import MAX_VIEWS, render_scene
from mapengine.runtime.errors import InputError, OutputError
from mapengine.runtime.inputs.formats.view_lists import load_view_list
from mapengine.runtime.inputs.sources import read_views

SMALL = (70, 56)
WITH_SKY = HELD_OUT_SEED  # an outdoor scene


def test_the_sample_scene_is_a_good_one() -> None:
    assert SAMPLE_SEED >= HELD_OUT_SEED
    scene = sample_scene(MAX_VIEWS, *SMALL)
    assert len(scene.images) == MAX_VIEWS
    assert scene.mask.all()
    assert scene.overlap[0].min() > 0.4
    near, far = np.percentile(scene.depth_z, (5, 95))
    assert far > 3 * near
    assert scene.images.reshape(MAX_VIEWS, -1).std(axis=1).min() > 20


@pytest.mark.slow
def test_samples_have_the_shape_that_small_networks_are_trained_at() -> None:
    scene = sample_scene(2)
    assert scene.images.shape == (2, SAMPLE_SIZE[1], SAMPLE_SIZE[0], 3)
    np.testing.assert_array_equal(scene.poses, sample_scene(2, 140, 112).poses)


@pytest.mark.slow
def test_views_one_by_one_are_those_of_the_scene_and_come_again() -> None:
    scene = render_scene(SAMPLE_SEED, MAX_VIEWS, *SMALL)
    views = sample_views(11, *SMALL)
    assert len(views) == 11
    for index, view in enumerate(views):
        assert view.image.dtype == np.uint8
        assert view.depth_z.dtype == view.intrinsics.dtype == view.pose.dtype == np.float32
        np.testing.assert_array_equal(view.image, scene.images[index % MAX_VIEWS])
        np.testing.assert_array_equal(view.depth_z, scene.depth_z[index % MAX_VIEWS])
        np.testing.assert_array_equal(view.intrinsics, scene.intrinsics[index % MAX_VIEWS])
        np.testing.assert_array_equal(view.pose, scene.poses[index % MAX_VIEWS])
    for few, many in zip(sample_views(3, *SMALL), views[:3], strict=True):
        np.testing.assert_array_equal(few.image, many.image)
    assert not np.array_equal(sample_views(1, *SMALL, seed=WITH_SKY)[0].image, views[0].image)


@pytest.mark.parametrize(("count", "size", "words"), [(0, SMALL, "at least 1, not 0"), (1, (8, 56), "8x56")])
def test_refuses_what_cannot_be_rendered(count: int, size: tuple[int, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        sample_views(count, *size)


@pytest.mark.parametrize("seed", [SAMPLE_SEED, WITH_SKY])
def test_written_samples_are_read_back(tmp_path: Path, seed: int) -> None:
    images = write_samples(tmp_path / "samples", 2, *SMALL, seed=seed)
    scene = sample_scene(2, *SMALL, seed=seed)
    assert scene.mask.all() == (seed == SAMPLE_SEED)
    assert [path.name for path in images] == ["sample_0.png", "sample_1.png"]
    with Image.open(tmp_path / "samples" / "depth" / "sample_0.png") as stored:
        assert np.asarray(stored).dtype == np.uint16
    loaded = read_views(load_view_list(tmp_path / "samples" / "views.json"))
    assert [view.name for view in loaded] == ["sample_0.png", "sample_1.png"]
    for index, (view, path) in enumerate(zip(loaded, images, strict=True)):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), scene.images[index])
        np.testing.assert_array_equal(np.asarray(view.image), scene.images[index])
        assert view.depth is not None
        assert view.intrinsics is not None
        assert isinstance(view.pose, np.ndarray)
        np.testing.assert_array_equal(view.depth > 0, scene.mask[index])
        np.testing.assert_allclose(view.depth, scene.depth_z[index], atol=5.1e-4)
        np.testing.assert_allclose(view.intrinsics, scene.intrinsics[index], atol=1e-5)
        np.testing.assert_allclose(view.pose, scene.poses[index], atol=1e-7)


def test_refused_samples_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    with pytest.raises(OutputError, match="not a folder"):
        write_samples(tmp_path / "x", 1, *SMALL)
    assert (tmp_path / "x").read_text() == "mine"
    with pytest.raises(InputError, match="1 to 8 views, not 9"):
        write_samples(tmp_path / "new" / "y", 9, *SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
