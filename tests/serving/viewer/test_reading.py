"""What `mapengine view` reads."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mapengine.runtime import Scene, save_views
from mapengine.runtime.errors import InputError
from mapengine.runtime.outputs.frame import Alignment
from mapengine.serving.viewer.reading import read_scene

from ..app.conftest import HEIGHT, WIDTH, wall


@pytest.fixture
def scene() -> Scene:
    images = [np.full((HEIGHT, WIDTH, 3), color, np.uint8) for color in ((200, 40, 60), (10, 90, 250))]
    scene = wall(images, ["a.jpg", 'b "2".jpg'])
    scene.poses[1, 0, 3] = 0.5
    scene.points[1, ..., 0][scene.mask[1]] += 0.5
    return scene


def clouds(scene: Scene) -> tuple[Any, Any]:
    return scene.points[scene.mask], scene.colors[scene.mask]


@pytest.mark.parametrize("name", ["scene.npz", "scene.ply", "scene.glb", "SCENE.PLY"])
def test_files_of_ours_are_read(scene: Scene, tmp_path: Path, name: str) -> None:
    read = read_scene(scene.save(tmp_path / name))
    assert read.made_by == "preset:wall, fp32 (bundle bricks)"
    for found, wanted in zip(clouds(read), clouds(scene), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    if not name.endswith("glb"):
        assert read.names == ["a.jpg", 'b "2".jpg']


def test_the_surfaces_of_a_glb_are_its_vertices(scene: Scene, tmp_path: Path) -> None:
    read = read_scene(scene.save(tmp_path / "scene.glb", mesh=True))
    assert read.names == scene.names
    assert int(read.mask.sum()) == int(scene.mask.sum())  # a wall has no edges, and cameras are no points
    np.testing.assert_allclose(read.points[read.mask][:, 2], 2, atol=1e-6)


def test_a_world_of_large_coordinates_keeps_its_digits(scene: Scene, tmp_path: Path) -> None:
    alignment = Alignment(np.eye(3), np.array([4_500_000.0, 5_400_000.0, 300.0]), 1.0, 2, True, 0.0, 0.0)
    far = replace(scene, alignment=alignment)
    far.points = far.points + alignment.translation
    far.poses = far.poses.astype(np.float64)
    far.poses[:, :3, 3] += alignment.translation
    for name in ("scene.ply", "scene.glb"):
        read = read_scene(far.save(tmp_path / name))
        points = read.points[read.mask]
        wanted = scene.points[scene.mask]
        np.testing.assert_allclose(points - points[0], wanted - wanted[0], atol=1e-4)


def predictions(scene: Scene) -> list[dict[str, Any]]:
    return [
        {
            "pts3d": scene.points[i : i + 1],
            "img_no_norm": scene.colors[i : i + 1] / np.float32(255),
            "depth_z": scene.depth[i : i + 1, ..., None],
            "conf": scene.confidence[i : i + 1],
            "mask": scene.mask[i : i + 1, ..., None],
            "intrinsics": scene.intrinsics[i : i + 1],
            "camera_poses": scene.poses[i : i + 1],
        }
        for i in range(len(scene.names))
    ]


def test_a_folder_of_views_is_one_scene(scene: Scene, tmp_path: Path) -> None:
    save_views(tmp_path / "views", predictions(scene), scene.names, made_by=scene.made_by)
    read = read_scene(tmp_path / "views")
    assert (read.names, read.made_by) == (scene.names, scene.made_by)
    for name in ("points", "colors", "depth", "confidence", "mask", "intrinsics", "poses"):
        np.testing.assert_array_equal(getattr(read, name), getattr(scene, name))


def test_a_folder_of_very_many_views_is_read_in_part(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_views(tmp_path / "views", predictions(scene), scene.names)
    monkeypatch.setattr("mapengine.serving.viewer.reading.MOST_PIXELS", scene.mask.size // 3)
    with pytest.warns(UserWarning, match="one in 2 rows and columns is shown"):
        read = read_scene(tmp_path / "views")
    assert read.mask.shape == (2, HEIGHT // 2, WIDTH // 2)
    np.testing.assert_array_equal(read.points, scene.points[:, ::2, ::2])
    center = read.intrinsics[0] @ (read.points[0, 5, 7] / 2)
    np.testing.assert_allclose(center[:2], (7, 5), atol=1e-4)


def test_views_of_two_runs_are_refused(scene: Scene, tmp_path: Path) -> None:
    save_views(tmp_path / "views", predictions(scene), scene.names)
    small = replace(scene, **{
        name: getattr(scene, name)[:, ::2] for name in ("points", "colors", "depth", "confidence", "mask")
    })  # fmt: skip
    save_views(tmp_path / "other", predictions(small))
    (tmp_path / "other" / "view-0001.npz").rename(tmp_path / "views" / "view-0002.npz")
    with pytest.raises(InputError, match="another size or frame than view-0000"):
        read_scene(tmp_path / "views")


TRIANGLE = [(0, 0, 0, 255, 0, 0), (1, 0, 0, 0, 255, 0), (0, 2, 0, 0, 0, 255)]


def ply_header(form: str, *lines: str) -> bytes:
    return "\n".join(["ply", f"format {form} 1.0", *lines, "end_header\n"]).encode()


PROPERTIES = (
    "element vertex 3", "property float x", "property float y", "property float z", "property uchar red",
    "property uchar green", "property uchar blue", "element face 1", "property list uchar int vertex_indices",
)  # fmt: skip


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_ply_files_of_others_are_read(tmp_path: Path, form: str) -> None:
    path = tmp_path / "mesh.ply"
    if form == "ascii":
        body = "".join(" ".join(map(str, row)) + "\n" for row in TRIANGLE).encode() + b"3 0 1 2\n"
    else:
        order = "<" if "little" in form else ">"
        body = b"".join(struct.pack(f"{order}3f3B", *row) for row in TRIANGLE) + struct.pack(f"{order}B3i", 3, 0, 1, 2)
    path.write_bytes(ply_header(form, "comment of another", *PROPERTIES) + body)
    read = read_scene(path)
    points, colors = clouds(read)
    np.testing.assert_allclose(points, [row[:3] for row in TRIANGLE])
    np.testing.assert_array_equal(colors, [row[3:] for row in TRIANGLE])
    assert (read.names, read.made_by) == (["all points"], "")


def test_the_centres_of_gaussian_splats_are_points(tmp_path: Path) -> None:
    names = ("x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity")
    header = ply_header("binary_little_endian", "element vertex 1", *(f"property float {name}" for name in names))
    (tmp_path / "splats.ply").write_bytes(header + struct.pack("<7f", 1, 2, 3, 0, 1.7724538509, -9, 0.3))
    points, colors = clouds(read_scene(tmp_path / "splats.ply"))
    np.testing.assert_allclose(points, [(1, 2, 3)])
    np.testing.assert_array_equal(colors, [(128, 255, 0)])


def glb(document: dict[str, Any], content: bytes) -> bytes:
    text = json.dumps({"asset": {"version": "2.0"}, **document}).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(content), b"BIN\0") + content
    return b"glTF" + struct.pack("<2I", 2, 12 + len(chunks)) + chunks


def test_a_glb_of_others_is_read_through_its_nodes(tmp_path: Path) -> None:
    """Two nodes, one in the other: turned a quarter about z, moved, and twice as large; colours are bytes."""
    content = struct.pack("<3f", 1, 0, 0) + bytes([255, 0, 55, 255])
    document = {
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [
            {"children": [1], "translation": [0, 0, 5], "rotation": [0, 0, 0.5**0.5, 0.5**0.5]},
            {"mesh": 0, "scale": [2, 2, 2]},
        ],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "COLOR_0": 1}, "mode": 0}]}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 1, "type": "VEC3"},
            {"bufferView": 1, "componentType": 5121, "count": 1, "type": "VEC4", "normalized": True},
        ],
        "bufferViews": [{"buffer": 0, "byteLength": 12}, {"buffer": 0, "byteOffset": 12, "byteLength": 4}],
        "buffers": [{"byteLength": 16}],
    }
    (tmp_path / "other.glb").write_bytes(glb(document, content))
    points, colors = clouds(read_scene(tmp_path / "other.glb"))
    np.testing.assert_allclose(points, [(0, -2, -5)], atol=1e-6)  # OpenCV's axes
    np.testing.assert_array_equal(colors, [(255, 0, 128)])  # light, as sRGB
    del document["accessors"][0]["bufferView"]
    (tmp_path / "packed.glb").write_bytes(glb(document, content))
    with pytest.raises(InputError, match="compressed"):
        read_scene(tmp_path / "packed.glb")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bad.npz", b"PK rubbish"),
        ("bad.ply", b"ply\nrubbish\n"),
        ("bad.ply", ply_header("ascii", *PROPERTIES) + b"0 0 0 1 2 3\n"),
        ("bad.ply", ply_header("ascii", *PROPERTIES) + 3 * b"0 0 zero 1 2 3\n"),
        ("bad.ply", ply_header("ascii", *PROPERTIES[:2])),
        ("bad.ply", ply_header("binary_little_endian", *PROPERTIES) + bytes(40)),
        ("bad.ply", ply_header("binary_little_endian", "element vertex 1", "property quad x") + bytes(40)),
        ("bad.ply", ply_header("binary_little_endian", *PROPERTIES[-2:], *PROPERTIES[:4]) + bytes(90)),
        ("bad.ply", ply_header("binary_little_endian", "element vertex 0", *PROPERTIES[1:4])),
        ("bad.ply", ply_header("ascii", "element vertex 1", *PROPERTIES[1:4]) + b"nan nan nan\n"),
        ("bad.ply", ply_header("odd", *PROPERTIES)),
        ("bad.glb", b"glTF"),
        ("bad.glb", b"glTF" + struct.pack("<4I", 2, 40, 9, 0) + b"not JSON."),
        ("bad.glb", glb({}, b"")),
        ("bad.glb", glb({"scenes": [{"nodes": [3]}]}, b"")),
        ("bad.glb", glb({"scenes": [{"nodes": [0]}], "nodes": [{"children": [0]}]}, b"")),
        ("bad.glb", glb({"asset": 3, "scenes": 7}, b"")),
        ("text.txt", b"words"),
        ("no suffix", b"words"),
        ("gone.npz", None),
        ("gone.ply", None),
        ("gone.glb", None),
        (".", None),
    ],
)
def test_what_is_no_scene_is_said_in_a_sentence(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as refused:
        read_scene(tmp_path / name)
    assert "\n" not in str(refused.value)
    assert (tmp_path / name).name in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("none.ply", ply_header("ascii", "element vertex 0", *PROPERTIES[1:4]), "has no points; give another file"),
        ("words.ply", ply_header("ascii", "element vertex 1", *PROPERTIES[1:4]) + b"a b c\n", "are not 3 numbers each"),
        ("cut.glb", glb({}, bytes(80))[:60], "it ends after 60 of "),
        ("gone", None, "there is no such file or folder; check the path"),
    ],
)
def test_the_sentence_says_what_is_wrong(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says):
        read_scene(tmp_path / name)
