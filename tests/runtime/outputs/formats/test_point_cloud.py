"""PLY and binary glTF, read by another program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from mapengine.runtime import Scene
from mapengine.runtime.errors import OutputError
from mapengine.runtime.outputs.formats import gltf


def test_ply(scene: Scene, tmp_path: Path) -> None:
    scene.save(tmp_path / "scene.ply")
    cloud = trimesh.load(tmp_path / "scene.ply")
    points, colors = scene.point_cloud()
    np.testing.assert_array_equal(np.asarray(cloud.vertices, dtype=np.float32), points)
    np.testing.assert_array_equal(np.asarray(cloud.colors)[:, :3], colors)
    scene.save(tmp_path / "scene.ply", max_points=100)
    assert len(trimesh.load(tmp_path / "scene.ply").vertices) == 100


def test_a_ply_says_which_points_are_of_which_view(scene: Scene, tmp_path: Path) -> None:
    scene.names = ["größe\n.jpg", "b.jpg"]
    scene.mask[0] = False
    scene.mask[0, 5, 10:13] = True
    header = scene.save(tmp_path / "scene.ply").read_bytes().partition(b"end_header")[0].decode("ascii").splitlines()
    count = int(scene.mask[1].sum())
    assert [line for line in header if "comment view" in line] == [
        'comment view "gr\\u00f6\\u00dfe\\n.jpg": vertices 0 to 2',
        f'comment view "b.jpg": vertices 3 to {count + 2}',
    ]
    assert len(trimesh.load(tmp_path / "scene.ply").vertices) == count + 3


def test_ply_without_points(empty: Scene, tmp_path: Path) -> None:
    content = empty.save(tmp_path / "scene.ply").read_bytes()
    assert b"element vertex 0\n" in content
    assert content.endswith(b"end_header\n")


@pytest.mark.parametrize("name", ["x.ply", "x.glb"])
def test_points_that_somebody_made_infinite_are_left_out(scene: Scene, tmp_path: Path, name: str) -> None:
    scene.points[0, 20, 30, 1] = np.inf
    scene.points[1, 21, 30] = np.nan
    loaded = trimesh.load(scene.save(tmp_path / name))
    cloud = loaded if name.endswith("ply") else loaded.geometry["points"]
    assert len(cloud.vertices) == scene.mask.sum() - 2


def document_and_data(path: Path) -> tuple[dict[str, Any], bytes]:
    """The JSON and the binary part of a binary glTF, by the lengths that it states."""
    content = path.read_bytes()
    assert content[:4] == b"glTF"
    version, length, text = np.frombuffer(content[4:16], "<u4")
    assert (version, length, content[16:20]) == (2, len(content), b"JSON")
    start = 20 + int(text)
    assert start % 4 == 0
    data = content[start + 8 :]
    assert not data or (int.from_bytes(content[start : start + 4], "little"), content[start + 4 : start + 8]) == (
        len(data),
        b"BIN\0",
    )
    return json.loads(content[20:start]), data


def attribute(path: Path, mesh: int, name: str) -> np.ndarray[Any, Any]:
    """Values of an attribute (or of the indices) of a mesh, as the file stores them."""
    document, data = document_and_data(path)
    primitive = document["meshes"][mesh]["primitives"][0]
    accessor = document["accessors"][primitive["indices"] if name == "indices" else primitive["attributes"][name]]
    view = document["bufferViews"][accessor["bufferView"]]
    part = data[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
    return np.frombuffer(part, {5126: "<f4", 5125: "<u4"}[accessor["componentType"]]).reshape(accessor["count"], -1)


def test_glb_points_and_cameras_in_gltf_axes(scene: Scene, tmp_path: Path) -> None:
    scene.save(tmp_path / "scene.glb")
    loaded = trimesh.load(tmp_path / "scene.glb")
    assert set(loaded.geometry) == {"points", "camera_0", "camera_1"}
    assert {"camera a.jpg", "camera b.jpg"} <= set(loaded.graph.nodes)
    points, colors = scene.point_cloud()
    np.testing.assert_allclose(loaded.geometry["points"].vertices, points * [1, -1, -1], atol=1e-6)
    linear = np.rint(gltf.linear_colors(colors) * 255)
    np.testing.assert_array_equal(np.asarray(loaded.geometry["points"].colors)[:, :3], linear)
    size = 0.12 * float(np.median(scene.depth[scene.mask]))
    for view in range(2):
        vertices = np.asarray(loaded.geometry[f"camera_{view}"].vertices) * [1, -1, -1]
        local = (vertices - scene.poses[view, :3, 3]) @ scene.poses[view, :3, :3]
        # The frustum spans from the camera centre to the image plane at its depth, the tip up (negative y).
        assert local[:, 2].min() == pytest.approx(0, abs=0.02 * size)
        assert local[:, 2].max() == pytest.approx(size, rel=0.02)
        focal, centre = scene.intrinsics[view, 0, [0, 2]]
        assert local[:, 0].max() == pytest.approx(size * (55.5 - centre) / focal, rel=0.05)
        assert local[:, 0].min() == pytest.approx(-size * (centre + 0.5) / focal, rel=0.05)
        assert -local[:, 1].min() > 1.2 * local[:, 1].max()


def test_glb_colors_are_linear_light(scene: Scene, tmp_path: Path) -> None:
    scene.colors[:] = np.arange(56, dtype=np.uint8)[None, None, :, None] * 4 + np.arange(3, dtype=np.uint8)
    path = scene.save(tmp_path / "scene.glb")
    stored = attribute(path, 0, "COLOR_0")
    encoded = scene.point_cloud()[1]
    # What a viewer does on its way back to the screen.
    shown = np.where(stored <= 0.0031308, 12.92 * stored, 1.055 * stored ** (1 / 2.4) - 0.055)
    np.testing.assert_array_equal(np.rint(255 * shown), encoded)
    assert stored[encoded == 128] == pytest.approx(0.21586, abs=1e-5)


def test_the_accessors_say_what_they_hold(scene: Scene, tmp_path: Path) -> None:
    document, data = document_and_data(scene.save(tmp_path / "scene.glb", mesh=True))
    assert document["buffers"] == [{"byteLength": len(data)}]
    for index, mesh in enumerate(document["meshes"]):
        position = document["accessors"][mesh["primitives"][0]["attributes"]["POSITION"]]
        values = attribute(tmp_path / "scene.glb", index, "POSITION")
        assert (position["min"], position["max"]) == (values.min(axis=0).tolist(), values.max(axis=0).tolist())
        assert attribute(tmp_path / "scene.glb", index, "indices").max() == len(values) - 1
    assert document["extensionsUsed"] == ["KHR_materials_unlit"]


def test_glb_without_points_keeps_the_cameras(empty: Scene, tmp_path: Path) -> None:
    for mesh in (False, True):
        empty.save(tmp_path / "scene.glb", mesh=mesh)
        assert set(trimesh.load(tmp_path / "scene.glb").geometry) == {"camera_0", "camera_1"}
    empty.intrinsics[0, 0, 0] = np.nan
    empty.save(tmp_path / "scene.glb")
    assert set(trimesh.load(tmp_path / "scene.glb").geometry) == {"camera_1"}
    empty.poses[1, 0, 0] = np.inf
    document, data = document_and_data(empty.save(tmp_path / "scene.glb"))
    assert (document["asset"]["version"], document["scenes"], data) == ("2.0", [{}], b"")


def test_more_than_the_lengths_can_say_is_refused(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gltf, "_LARGEST", 10_000)
    with pytest.raises(OutputError, match=r"\.glb holds 4 GiB; give max_points"):
        scene.save(tmp_path / "scene.glb")
    assert not list(tmp_path.iterdir())


def test_a_mesh_per_view_looks_at_its_camera(scene: Scene, tmp_path: Path) -> None:
    path = scene.save(tmp_path / "scene.glb", mesh=True)
    loaded = trimesh.load(path)
    assert set(loaded.geometry) == {"view_0", "view_1", "camera_0", "camera_1"}
    assert {"a.jpg", "b.jpg"} <= set(loaded.graph.nodes)
    for view in range(2):
        vertices = attribute(path, view, "POSITION") * [1, -1, -1]
        faces = attribute(path, view, "indices").reshape(-1, 3)
        a, b, c = (vertices[faces[:, corner]] for corner in range(3))
        centre = scene.poses[view, :3, 3]
        # Counter-clockwise from the side of the camera: the normal points at it.
        assert (np.einsum("ij,ij->i", np.cross(b - a, c - a), centre - a) > 0).all()
        points = scene.points[view][scene.mask[view]]
        assert {tuple(vertex) for vertex in vertices.astype(np.float32)} <= {tuple(point) for point in points}


def test_confidence_chooses_the_vertices_of_a_mesh(scene: Scene, tmp_path: Path) -> None:
    scene.confidence[:] = 1
    scene.confidence[:, :, 30:] = 9
    path = scene.save(tmp_path / "scene.glb", mesh=True, confidence_percentile=100)
    vertices = attribute(path, 0, "POSITION") * [1, -1, -1]
    assert {tuple(vertex) for vertex in vertices.astype(np.float32)} <= {
        tuple(point) for point in scene.points[0][:, 30:][scene.mask[0][:, 30:]]
    }
