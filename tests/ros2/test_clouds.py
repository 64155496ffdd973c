"""Points, thinned, and the bytes of messages."""

from __future__ import annotations

import numpy as np

from mapengine_ros.clouds import POINT, Thinning, cloud_fields, image_fields, masked_depth, merged, points_of


def view(step: int = 1) -> np.ndarray:
    rows, columns = np.indices((4, 6)).astype(np.float32)
    points = np.stack([columns, rows, np.ones_like(rows)], axis=-1)
    colours = np.stack([columns / 5, rows / 3, np.zeros_like(rows)], axis=-1)
    mask = np.ones((4, 6), bool)
    mask[0, 0] = False
    pose = np.eye(4)
    pose[:3, 3] = 10, 20, 30
    return points_of(points, colours, 1 + columns, mask, pose, Thinning(step))


def test_points_are_placed_and_coloured() -> None:
    cloud = view()
    assert len(cloud) == 23
    last = cloud[-1]
    assert (last["x"], last["y"], last["z"], last["confidence"]) == (15, 23, 31, 6)
    assert last["rgb"] == 0xFFFF00


def test_a_step_takes_every_so_many_th_pixel() -> None:
    cloud = view(2)
    assert len(cloud) == 5  # of 2 x 3, without the first
    assert set(cloud["x"]) == {10, 12, 14}
    assert set(cloud["y"]) == {20, 22}


def test_of_a_cube_the_most_confident_point_stays() -> None:
    cloud = merged([view(), view()], Thinning(voxel=2.0))
    assert sorted(cloud["confidence"]) == [2, 2, 4, 4, 6, 6]
    assert len(merged([view(), view()], Thinning())) == 46
    assert len(merged([], Thinning(voxel=1.0))) == 0


def test_a_cloud_is_read_back_by_its_fields() -> None:
    cloud = view()
    fields = cloud_fields(cloud)
    assert fields["fields"] == [
        ("x", 0, 7, 1),
        ("y", 4, 7, 1),
        ("z", 8, 7, 1),
        ("rgb", 12, 7, 1),
        ("confidence", 16, 7, 1),
    ]
    assert (fields["width"], fields["height"], fields["point_step"], fields["row_step"]) == (23, 1, 20, 460)
    np.testing.assert_array_equal(np.frombuffer(fields["data"], POINT), cloud)


def test_depth_outside_the_mask_is_nan() -> None:
    depth = masked_depth(np.array([[1.0, 2.0, 0.0]]), np.array([[True, False, True]]))
    np.testing.assert_array_equal(depth, np.array([[1, np.nan, np.nan]], np.float32))
    fields = image_fields(depth)
    assert (fields["encoding"], fields["step"], fields["is_bigendian"]) == ("32FC1", 12, 0)
    np.testing.assert_array_equal(np.frombuffer(fields["data"], "<f4"), depth[0])
