"""``CameraInfo``: intrinsics, binning, regions, distortion; and that of the results."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mapengine.runtime import InputError
from mapengine.runtime.inputs.lenses import Lens
from mapengine_ros.cameras import Camera, camera_info_fields, read_camera

from .plain_messages import camera_info


def camera(**changes: Any) -> Camera:
    found = read_camera(camera_info(64, 48, 50.0, **changes), rectified=False)
    assert found is not None
    return found


def test_a_pinhole_camera_is_k() -> None:
    found = camera()
    np.testing.assert_array_equal(found.intrinsics, [[50, 0, 31.5], [0, 50, 23.5], [0, 0, 1]])
    assert (found.size, found.lens) == ((64, 48), None)
    pixels = np.zeros((48, 64, 3), np.uint8)
    view = found.view(pixels, np.ones((48, 64), np.float32))
    assert view["img"] is pixels
    assert set(view) == {"img", "intrinsics", "depth_z"}


def test_of_rectified_images_p_counts() -> None:
    info = camera_info(64, 48, 50.0, d=[0.3, 0, 0, 0, 0], p=[40, 0, 30, -4, 0, 40, 20, 0, 0, 0, 1, 0])
    found = read_camera(info, rectified=True)
    assert found is not None
    np.testing.assert_array_equal(found.intrinsics, [[40, 0, 30], [0, 40, 20], [0, 0, 1]])
    assert found.lens is None


def test_an_uncalibrated_camera_is_none() -> None:
    assert read_camera(camera_info(64, 48, 0.0), rectified=False) is None


def test_regions_and_binning_move_the_camera_as_they_move_the_image() -> None:
    region = SimpleNamespace(x_offset=16, y_offset=8, width=32, height=24, do_rectify=False)
    found = camera(roi=region, binning_x=2, binning_y=2)
    assert found.size == (16, 12)
    # A point that pixel (20, 10) of the whole image sees is seen by the middle of a square of 2 x 2 of its pixels.
    direction = np.linalg.inv(camera().intrinsics) @ (20.5, 10.5, 1)
    np.testing.assert_allclose((found.intrinsics @ direction)[:2], [(20 - 16) / 2, (10 - 8) / 2])


@pytest.mark.parametrize(
    ("model", "d", "lens"),
    [
        ("plumb_bob", [-0.2, 0.05, 0.001, -0.002, 0.01], Lens("", (-0.2, 0.05, 0.01), (0, 0, 0), (0.001, -0.002))),
        ("plumb_bob", [-0.2, 0.05, 0.001, -0.002], Lens("", (-0.2, 0.05, 0.0), (0, 0, 0), (0.001, -0.002))),
        (
            "rational_polynomial",
            [-0.2, 0.05, 0.001, -0.002, 0.01, 0.02, 0.03, 0.004],
            Lens("", (-0.2, 0.05, 0.01), (0.02, 0.03, 0.004), (0.001, -0.002)),
        ),
    ],
)
def test_distorted_images_become_pinhole_images(model: str, d: list[float], lens: Lens) -> None:
    found = camera(distortion_model=model, d=d)
    # An image whose colours are the directions that its pixels look in, through the lens.
    v, u = np.indices((48, 64)).astype(np.float64)
    x, y = lens.undistort_points((u - 31.5) / 50, (v - 23.5) / 50)
    pixels = np.stack([128 + 150 * x, 128 + 150 * y, 0 * x], axis=-1).clip(0, 255).astype(np.uint8)
    view = found.view(pixels, np.full((48, 64), 2, np.float32))
    k = view["intrinsics"]
    rows, columns = np.indices(view["img"].shape[:2])
    wanted = np.stack([128 + 150 * (columns - k[0, 2]) / k[0, 0], 128 + 150 * (rows - k[1, 2]) / k[1, 1]], axis=-1)
    assert np.abs(view["img"][..., :2] - wanted).max() < 2
    assert view["depth_z"].shape == view["img"].shape[:2]
    assert (view["depth_z"] == 2).all()


def test_a_fisheye_keeps_its_image_and_gives_rays() -> None:
    found = camera(distortion_model="equidistant", d=[0.01, 0.0, 0.0, 0.0])
    pixels = np.zeros((48, 64, 3), np.uint8)
    view = found.view(pixels)
    assert view["img"] is pixels
    assert set(view) == {"img", "ray_directions"}
    np.testing.assert_allclose(np.linalg.norm(view["ray_directions"], axis=-1), 1, rtol=1e-5)
    # 20 pixels beside the middle: an angle of 0.4, but for the coefficient.
    ray = view["ray_directions"][23, 51]
    assert np.arctan2(np.hypot(ray[0], ray[1]), ray[2]) == pytest.approx(0.39, abs=0.01)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"distortion_model": "thin_prism", "d": [0.1]}, "distortion model 'thin_prism', and read are plumb_bob"),
        ({"d": [0.1] * 9}, "D has 9 numbers, plumb_bob has up to 5"),
        ({"d": [float("nan")] * 5}, "all finite"),
        ({"k": [-50, 0, 31, 0, 50, 23, 0, 0, 1]}, "CameraInfo: K has the focal length -50"),
        ({"k": [50, 0, 31, 0, 50, 23, 0, 1, 1]}, "CameraInfo: K is not of the form"),
        ({"width": 0}, "CameraInfo is of an image of 0x48 pixels"),
    ],
)
def test_a_wrong_camera_info_gets_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        camera(**changes)


def test_a_camera_info_of_another_size_is_refused() -> None:
    with pytest.raises(InputError, match="CameraInfo is of an image of 64x48 pixels, but the image has 32x24"):
        camera().view(np.zeros((24, 32, 3), np.uint8))


def test_a_distortion_without_an_inverse_is_refused() -> None:
    with pytest.raises(InputError, match="folds the image's border over"):
        camera(d=[-3.0, 0, 0, 0, 0]).view(np.zeros((48, 64, 3), np.uint8))


def test_the_camera_info_of_a_result_is_read_back() -> None:
    matrix = np.array([[80, 0, 70.5], [0, 81, 54], [0, 0, 1]])
    fields = camera_info_fields(matrix, 140, 112)
    whole = camera_info(1, 1, **fields)
    for rectified in (False, True):
        found = read_camera(whole, rectified)
        assert found is not None
        np.testing.assert_array_equal(found.intrinsics, matrix)
        assert found.size == (140, 112)
