"""Where a pixel of the network comes from in the original image: shown with marks in images, and by the intrinsics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from mapengine.runtime.inputs.formats.view_files import ViewFiles
from mapengine.runtime.inputs.lenses import Lens
from mapengine.runtime.inputs.raw_view import RawView
from mapengine.runtime.inputs.resizing import Fit
from mapengine.runtime.inputs.sources import read_views
from mapengine.runtime.inputs.stored_view import StoredView

_ORIENTATION = 274
SIDE = st.integers(20, 400)
TARGET = st.integers(1, 8).map(lambda patches: 14 * patches)


def ramps(width: int, height: int) -> np.ndarray[Any, Any]:
    """An image whose red and green say where each pixel is, from 0 to 250."""
    x, y = np.meshgrid(np.arange(width) * 250 / (width - 1), np.arange(height) * 250 / (height - 1))
    return np.rint(np.stack([x, y, np.zeros_like(x)], axis=-1)).astype(np.uint8)


def place_of(pixel: np.ndarray[Any, Any], size: tuple[int, int]) -> np.ndarray[Any, Any]:
    return pixel[:2].astype(float) / 250 * (np.array(size) - 1)


def mapped(matrix: np.ndarray[Any, Any] | None, x: float, y: float) -> np.ndarray[Any, Any]:
    assert matrix is not None
    result = matrix @ (x, y, 1)
    assert result[2] == 1
    return np.asarray(result[:2])


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.tuples(SIDE, SIDE), st.tuples(TARGET, TARGET), st.booleans())
@example((400, 20), (14, 112), True)
@example((333, 251), (112, 84), False)
def test_pixels_lead_to_where_their_content_was(size: Any, target: Any, calibrated: bool) -> None:
    camera = np.array([[300, 0, size[0] / 2], [0, 300, size[1] / 2], [0, 0, 1]], np.float32)
    view = RawView(ramps(*size), camera if calibrated else None).resized(target)
    image = np.asarray(view.image)
    scale = max(target[0] / size[0], target[1] / size[1])
    for share_x, share_y in ((0.5, 0.5), (0.2, 0.2), (0.8, 0.3), (0.3, 0.8), (0.8, 0.8)):
        column, row = int(share_x * target[0]), int(share_y * target[1])
        found = mapped(view.original_pixels, column, row)
        # Half a pixel of the network, and what eight bits of colour and the smoothing at the border can tell.
        tolerance = 0.5 / scale + 0.01 * np.array(size) + 0.5
        inside = (found > 3 / scale) & (found < np.array(size) - 1 - 3 / scale)
        off = np.abs(found - place_of(image[row, column], size))
        assert (off <= tolerance)[inside].all(), (found, off, tolerance)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), st.tuples(TARGET, TARGET))
def test_corners_and_centre_of_what_is_kept(size: Any, target: Any) -> None:
    if max(size) / min(size) > 40:
        return
    fit = Fit.of(size, target)
    centre = mapped(fit.original_pixels, (target[0] - 1) / 2, (target[1] - 1) / 2)
    assert np.abs(centre - (np.array(size) - 1) / 2).max() <= 1 / fit.scale  # the crop is whole pixels
    first, last = mapped(fit.original_pixels, -0.5, -0.5), mapped(fit.original_pixels, *(np.array(target) - 0.5))
    assert (first >= -0.5 - 1e-6).all()
    assert (last <= np.array(size) - 0.5 + 1e-6).all()
    # The tight side is kept whole, but for the fraction of a pixel by which it is scaled too far.
    assert ((last - first) >= np.array(size) - 1.01 / fit.scale)[fit.scaled == np.array(target)].all()


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    st.tuples(SIDE, SIDE),
    st.tuples(TARGET, TARGET),
    st.tuples(*[st.floats(50, 2000)] * 2, *[st.floats(0.2, 0.8)] * 2),
)
def test_intrinsics_follow(size: Any, target: Any, camera: Any) -> None:
    fx, fy, cx, cy = camera
    given_camera = np.array([[fx, 0, cx * size[0]], [0, fy, cy * size[1]], [0, 0, 1]])
    view = RawView(np.zeros((size[1], size[0], 3), np.uint8), given_camera).resized(target)
    assert view.original_pixels is not None
    np.testing.assert_allclose(view.original_pixels @ view.intrinsics, given_camera, rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_the_original_image_is_the_one_that_is_shown(tmp_path: Path, orientation: int) -> None:
    shown = ramps(200, 120)
    undo = {
        **{2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM},
        **{5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE},
        8: Image.Transpose.ROTATE_270,
    }
    stored = Image.fromarray(shown)
    stored = stored if orientation == 1 else stored.transpose(undo[orientation])
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    (view,) = read_views(tmp_path / "a.png")
    resized = view.resized((70, 42))
    for column, row in ((20, 10), (50, 30)):
        found = mapped(resized.original_pixels, column, row)
        assert np.abs(found - place_of(np.asarray(resized.image)[row, column], (200, 120))).max() < 3


def test_undistorted_pixels_are_those_of_a_pinhole_with_the_same_intrinsics() -> None:
    camera = np.array([[180, 0, 99], [0, 180, 61], [0, 0, 1]], np.float32)
    lens = Lens("OPENCV", (-0.15, 0.02), tangential=(0.002, -0.001))
    stored = StoredView(ViewFiles(ramps(200, 120), intrinsics=camera, lens=lens), "view 0", "a")
    view = stored.resized((70, 42))
    assert view.original_pixels is not None
    assert view.intrinsics is not None
    np.testing.assert_allclose(view.original_pixels @ view.intrinsics, camera, rtol=1e-5)
    for column, row in ((5, 5), (35, 20), (64, 36)):
        straight = mapped(view.original_pixels, column, row)
        x, y = lens.distort(*((straight - camera[:2, 2]) / 180))
        in_file = np.array([x, y]) * 180 + camera[:2, 2]
        assert np.abs(in_file - place_of(np.asarray(view.image)[row, column], (200, 120))).max() < 2.5


def test_a_fisheye_keeps_its_image() -> None:
    camera = np.array([[60, 0, 99.5], [0, 60, 59.5], [0, 0, 1]], np.float32)
    lens = Lens("OPENCV_FISHEYE", (0.01, 0, 0, 0), fisheye=True)
    view = StoredView(ViewFiles(ramps(200, 120), intrinsics=camera, lens=lens), "view 0", "a").resized((70, 42))
    assert view.rays is not None
    for column, row in ((5, 5), (60, 36)):
        found = mapped(view.original_pixels, column, row)
        assert np.abs(found - place_of(np.asarray(view.image)[row, column], (200, 120))).max() < 2.5
