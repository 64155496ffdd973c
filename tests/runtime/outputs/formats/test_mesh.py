"""Triangles between neighbouring pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapengine.runtime.outputs.formats.mesh import view_mesh

SIZE = (12, 16)
ALL = np.ones(SIZE, bool)


def points_at(depth: NDArray[np.float32], focal: float = 20.0) -> NDArray[np.float32]:
    rows, columns = np.indices(depth.shape)
    rays = np.stack([(columns - 7.5) / focal, (rows - 5.5) / focal, np.ones(depth.shape)], axis=-1)
    return np.asarray(rays * depth[..., None], np.float32)


def mesh(depth: NDArray[np.float32], keep: NDArray[np.bool_] = ALL) -> tuple[NDArray[Any], NDArray[Any]]:
    """The triangles as flat pixels (F, 3), and the pixels that have one."""
    pixels, faces = view_mesh(points_at(depth), depth, keep)
    assert np.array_equal(np.unique(faces), np.arange(len(pixels)))
    return pixels[faces], pixels


def test_a_plane_has_two_triangles_per_square() -> None:
    depth = np.full(SIZE, 2, np.float32)
    faces, pixels = mesh(depth)
    assert len(faces) == 2 * 11 * 15
    assert len(pixels) == depth.size
    corners = points_at(depth).reshape(-1, 3)[faces]
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=-1) / 2
    np.testing.assert_allclose(areas.sum(), 11 * 15 * (2 / 20) ** 2, rtol=1e-5)  # each square once


def test_nothing_spans_a_hole() -> None:
    depth = np.full(SIZE, 2, np.float32)
    keep = ALL.copy()
    keep[5, 8] = False
    faces, pixels = mesh(depth, keep)
    assert len(faces) == 2 * (11 * 15 - 4)
    assert 5 * 16 + 8 not in pixels
    rows, columns = np.divmod(faces, 16)
    assert (np.ptp(rows, axis=1) == 1).all()
    assert (np.ptp(columns, axis=1) == 1).all()
    keep[:] = False
    keep[:, ::2] = True  # no two columns touch
    assert len(mesh(depth, keep)[0]) == 0


def test_an_object_is_not_connected_with_what_lies_behind_it() -> None:
    depth = np.full(SIZE, 3, np.float32)
    depth[3:8, 4:11] = 2
    faces, pixels = mesh(depth)
    assert np.ptp(depth.reshape(-1)[faces], axis=1).max() == 0
    assert len(pixels) == depth.size  # both sides end at the very edge
    assert len(faces) == 2 * (11 * 15 - 2 * (5 + 1) - 2 * (7 + 1) + 4)


def test_a_steep_floor_holds_together() -> None:
    # Neighbours differ by up to 10 % of their depth, and the surface never turns.
    depth = np.repeat((40 / np.arange(32, 8, -2, dtype=np.float32))[:, None], 16, axis=1)
    assert (depth[1:] / depth[:-1]).max() > 1.1
    assert len(mesh(depth)[0]) == 2 * 11 * 15


def test_what_lies_behind_the_camera_and_lines_of_pixels_make_no_triangle() -> None:
    depth = np.full(SIZE, 2, np.float32)
    depth[:, 8:] = -2
    assert mesh(depth)[1].max(initial=0) < depth.size
    assert (depth.reshape(-1)[mesh(depth)[1]] > 0).all()
    for shape in ((1, 16), (12, 1), (1, 1)):
        line = np.ones(shape, np.float32)
        assert len(view_mesh(np.ones((*shape, 3), np.float32), line, line > 0)[1]) == 0


def test_the_shorter_diagonal_cuts() -> None:
    depth = np.full((2, 2), 2, np.float32)
    points = points_at(depth)
    points[0, 0, 0] -= 1  # the upper left corner is far from the lower right one
    pixels, faces = view_mesh(points, depth, depth > 0)
    assert pixels.tolist() == [0, 1, 2, 3]
    assert not any({0, 3} <= set(face) for face in faces.tolist())


def test_where_rays_cross_no_triangle_turns_its_back_on_the_camera() -> None:
    depth = np.full(SIZE, 2, np.float32)
    points = points_at(depth)
    points[4, 6:8] = points[4, 7:5:-1]
    camera = np.array([3, -2, 1], np.float32)
    pixels, faces = view_mesh(points + camera, depth, ALL, camera)
    assert 2 * 11 * 15 - 8 <= len(faces) < 2 * 11 * 15
    corners = points.reshape(-1, 3)[pixels][faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert (np.sum(normals * corners.mean(axis=1), axis=-1) < 0).all()
