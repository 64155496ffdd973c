from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mapengine.runtime.errors import InputError
from mapengine.runtime.inputs.normalization import normalize_image
from mapengine.runtime.inputs.resizing import resize_and_crop

DATA = Path(__file__).parents[2] / "data" / "preprocess"
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pinhole(focal: float, width: int, height: int, dtype: Any = np.float32) -> np.ndarray:
    return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]], dtype)


@pytest.mark.slow
def test_crop_table_equals_upstream() -> None:
    for row in json.loads((DATA / "crop_resize_table.json").read_text()):
        width, height, target = row["w"], row["h"], (row["tw"], row["th"])
        picture = Image.new("RGB", (width, height))
        places = np.arange(height * width).reshape(height, width)  # each pixel of this "depth" says where it is
        intrinsics = np.array(row["K"], row["K_dtype"])
        image, depth, result = resize_and_crop(picture, target, places, intrinsics)
        assert image.shape == (row["out_size"][1], row["out_size"][0], 3)
        assert depth is not None
        assert result is not None
        assert result.dtype == row["outK_dtype"]
        np.testing.assert_array_equal(result, np.array(row["outK"], row["outK_dtype"]))
        assert [depth[0, 0] % width, depth[0, 0] // width] == row["src_xy_topleft"]
        assert [depth[-1, -1] % width, depth[-1, -1] // width] == row["src_xy_bottomright"]
        _, uncalibrated, _ = resize_and_crop(picture, target, places)
        assert uncalibrated is not None
        assert [uncalibrated[0, 0] % width, uncalibrated[0, 0] // width] == row["noK_src_xy_topleft"]


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(st.integers(1, 90), st.integers(1, 90)), st.tuples(st.integers(1, 60), st.integers(1, 60)), st.integers()
)
def test_image_is_pillow_resize_then_crop(old: Any, target: Any, seed: int) -> None:
    image = noise(old[1], old[0], abs(seed))
    scale = max(target[0] / old[0], target[1] / old[1]) + 1e-8
    width, height = int(old[0] * scale), int(old[1] * scale)
    kernel = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    left, top = (width - target[0]) // 2, (height - target[1]) // 2
    expected = np.asarray(Image.fromarray(image).resize((width, height), kernel))
    result, depth, intrinsics = resize_and_crop(image, target)
    np.testing.assert_array_equal(result, expected[top : top + target[1], left : left + target[0]])
    assert depth is None
    assert intrinsics is None


def nearest(old: int, scaled: int) -> Any:
    """The columns that a depth map of ``old`` pixels keeps when its width becomes ``scaled``."""
    rows = -(-old // scaled)  # enough for the width to decide the scale
    depth = np.tile(np.arange(old, dtype=np.float32), (rows, 1))
    return resize_and_crop(np.zeros((rows, old, 3), np.uint8), (scaled, 1), depth)[1][0]


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(st.integers(1, 1000), st.integers(1, 1200))
def test_nearest_is_opencv(old: int, scaled: int) -> None:
    cv2 = pytest.importorskip("cv2")
    expected = cv2.resize(np.arange(old, dtype=np.float32)[None], (scaled, 1), interpolation=cv2.INTER_NEAREST)[0]
    np.testing.assert_array_equal(nearest(old, scaled), expected)


@pytest.mark.parametrize(
    ("old", "scaled", "first_lower"), [(1443, 507, 13), (25, 805, 161), (2625, 162, 54)], ids=["507", "805", "162"]
)
def test_nearest_takes_the_pixel_before_where_opencv_rounds_down(old: int, scaled: int, first_lower: int) -> None:
    indices = nearest(old, scaled)
    exact = np.arange(scaled) * old // scaled
    different = np.flatnonzero(indices != exact)
    assert different[0] == first_lower  # as found in OpenCV 5.0
    assert (exact - indices)[different].tolist() == [1] * len(different)
    assert (different * old % scaled == 0).all()


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(20, 700), st.integers(20, 700)),
    st.tuples(st.integers(14, 600), st.integers(14, 600)),
    st.floats(0.3, 3),
    st.sampled_from([np.float32, np.float64]),
)
def test_rays_stay_on_their_pixels(old: Any, target: Any, focal: float, dtype: Any) -> None:
    """A new pixel's ray, projected into the old image, hits where the image and the depth were taken from."""
    before = pinhole(focal * max(old), *old, dtype)
    places = np.arange(old[0] * old[1]).reshape(old[1], old[0])
    _, depth, after = resize_and_crop(Image.new("RGB", old), target, places, before)
    assert depth is not None
    assert after is not None
    assert after.dtype == dtype
    scale = max(target[0] / old[0], target[1] / old[1]) + 1e-8
    for axis, taken in ((0, depth[0] % old[0]), (1, depth[:, 0] // old[0])):
        pixel = np.arange(target[axis])
        ray = (pixel - float(after[axis, 2])) / float(after[axis, axis])
        hit = ray * float(before[axis, axis]) + float(before[axis, 2])

        scaled = int(old[axis] * scale)
        stretch = old[axis] / scaled  # old pixels per new one; 1 / scale but for the rounding to whole pixels
        margins = {(scaled - target[axis]) // 2, (scaled - target[axis] + 1) // 2}
        off = [hit - ((pixel + margin + 0.5) * stretch - 0.5) for margin in margins]
        assert min(np.abs(o).max() for o in off) <= 0.5 * stretch + 1e-2  # half a new pixel

        # Nearest takes the floor at the pixel's corner, and its centre lies half a new pixel further.
        assert np.abs(hit - taken).max() <= 0.5 + stretch + 1e-2


@settings(deadline=None, max_examples=20)
@given(st.tuples(st.integers(60, 400), st.integers(60, 400)), st.tuples(st.integers(42, 300), st.integers(42, 300)))
def test_image_content_stays_on_its_ray(old: Any, target: Any) -> None:
    """A bright spot is found under the ray it had before, within half a pixel."""
    width, height = old
    before = pinhole(float(max(old)), width, height, np.float64)
    new_pixel = min(width / target[0], height / target[1])
    spot = np.array([(width - 1) / 2 + 3.3 * new_pixel, (height - 1) / 2 - 2.6 * new_pixel])
    radius = 1.5 * max(1, new_pixel)
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    blob = np.exp(-((columns - spot[0]) ** 2 + (rows - spot[1]) ** 2) / (2 * radius**2))
    image = np.repeat((blob * 255).astype(np.uint8)[:, :, None], 3, 2)
    result, _, after = resize_and_crop(image, target, None, before)
    assert after is not None
    weight = result[:, :, 0].astype(float) ** 4  # the spot without its tails, which the crop may cut
    found = np.array([(weight.sum(0) @ np.arange(target[0])), (weight.sum(1) @ np.arange(target[1]))]) / weight.sum()
    expected = (spot - before[:2, 2]) / before[0, 0] * after[[0, 1], [0, 1]] + after[:2, 2]
    assert np.abs(found - expected).max() <= 0.5


def test_principal_point_far_outside_stays_inside_the_image() -> None:
    intrinsics = pinhole(500, 101, 77)
    intrinsics[:2, 2] = 3e7  # float32 holds no fractions here
    _, _, result = resize_and_crop(noise(77, 101), (56, 42), None, intrinsics)
    assert result is not None
    assert np.isfinite(result).all()


def test_normalize_is_the_formula() -> None:
    image = noise(9, 13)
    expected = (image.astype(np.float32) / np.float32(255) - MEAN) / STD
    np.testing.assert_array_equal(normalize_image(image)[0], expected.transpose(2, 0, 1))
    identity = normalize_image(image, "identity")
    assert identity.max() <= 1
    np.testing.assert_array_equal(identity[0], (image.astype(np.float32) / np.float32(255)).transpose(2, 0, 1))


def test_resize_refuses_what_it_cannot_use() -> None:
    with pytest.raises(InputError, match=r"depth has shape \(5, 6\), the image \(6, 5\)"):
        resize_and_crop(noise(6, 5), (14, 14), np.zeros((5, 6)))
    with pytest.raises(InputError, match="cannot resize 0x5 to 14x14"):
        resize_and_crop(Image.new("RGB", (0, 5)), (14, 14))
    with pytest.raises(InputError, match="cannot resize 5x6 to 14x0"):
        resize_and_crop(noise(6, 5), (14, 0))
    with pytest.raises(InputError, match=r"int64 of shape \(3, 3\)"):
        resize_and_crop(noise(6, 5), (14, 14), None, np.eye(3, dtype=np.int64))
    for image in (noise(6, 5).astype(np.float32), noise(6, 5)[0]):
        with pytest.raises(InputError, match=r"needed is uint8 \(H, W, 3\)"):
            resize_and_crop(image, (14, 14))
        with pytest.raises(InputError, match=r"needed is uint8 \(H, W, 3\)"):
            normalize_image(image)
