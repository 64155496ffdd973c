"""Real photographs and RGB-D views, from the files to the saved scene.

The pictures are not part of the repository. ``MAPENGINE_DATA`` names a folder with ``sceaux`` (four photographs of the
openMVG sample set and ``K.txt``) and ``redkitchen`` (eight views of 7-Scenes: ``frame-*.color.jpg``, ``.depth.png`` in
millimetres with 0 and 65535 for none, ``.pose.txt`` camera-to-world, and ``camera-intrinsics.txt``).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
import trimesh
from PIL import Image

from mapengine.cli import main
from mapengine.runtime import Engine, Scene, load_images
from mapengine.runtime.inputs.formats.view_lists import load_view_list
from mapengine.runtime.inputs.preprocess import preprocess_views
from mapengine.runtime.inputs.sources import read_views

DATA = Path(os.environ.get("MAPENGINE_DATA") or Path(__file__).resolve().parents[1] / ".." / "shared" / "data")
SCEAUX, KITCHEN = DATA / "sceaux", DATA / "redkitchen"
SIZE = (140, 112)

pytestmark = pytest.mark.skipif(
    not (SCEAUX / "K.txt").is_file() or not (KITCHEN / "camera-intrinsics.txt").is_file(),
    reason="the real images are not here: MAPENGINE_DATA names no folder with sceaux and redkitchen",
)

PHOTOS = sorted(SCEAUX.glob("*.JPG"))
COLORS = sorted(KITCHEN.glob("*.color.jpg"))
DEPTHS = [path.with_name(path.name.replace("color.jpg", "depth.png")) for path in COLORS]
POSES = [path.with_name(path.name.replace("color.jpg", "pose.txt")) for path in COLORS]
CAMERA = KITCHEN / "camera-intrinsics.txt"


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def engine(request: pytest.FixtureRequest, tiny_bundle: Path) -> Engine:
    return Engine.load(tiny_bundle, request.param, verify=False)


def check(scene: Scene, views: int, size: tuple[int, int]) -> None:
    """Everything finite and of the right shape, and most pixels reconstructed."""
    assert scene.points.shape == (views, size[1], size[0], 3)
    for field in (scene.points, scene.depth, scene.confidence, scene.intrinsics, scene.poses):
        assert np.isfinite(field).all()
    assert (scene.depth[scene.mask] > 0).all()
    assert (scene.intrinsics[:, [0, 1], [0, 1]] > 0).all()
    rotation = scene.poses[:, :3, :3]
    np.testing.assert_allclose(rotation @ rotation.swapaxes(1, 2), np.tile(np.eye(3), (views, 1, 1)), atol=1e-5)
    assert scene.mask.mean() > 0.3
    assert len(np.unique(scene.colors)) > 100  # pictures, not blanks


def check_files(scene: Scene, folder: Path) -> None:
    """All formats, read again by other people's software."""
    count = int(scene.mask.sum())
    cloud = trimesh.load(scene.save(folder / "scene.ply"))
    assert isinstance(cloud, trimesh.PointCloud)
    np.testing.assert_allclose(cloud.vertices, scene.points[scene.mask], atol=1e-6)
    np.testing.assert_array_equal(cloud.colors[:, :3], scene.colors[scene.mask])
    glb = trimesh.load(scene.save(folder / "scene.glb"))
    assert sum(len(g.vertices) for g in glb.geometry.values() if isinstance(g, trimesh.PointCloud)) == count
    again = Scene.load(scene.save(folder / "scene.npz"))
    np.testing.assert_array_equal(again.points, scene.points)
    assert again.names == scene.names
    model = pycolmap.Reconstruction(scene.save(folder / "colmap", max_points=5000) / "sparse" / "0")
    assert len(model.images) == len(scene.names)
    assert min(1000, count / 2) < len(model.points3D) <= 5000
    assert model.compute_mean_track_length() >= 1
    for index, name in enumerate(scene.names):
        image = next(image for image in model.images.values() if Path(image.name).stem == Path(name).stem)
        camera_to_world = image.cam_from_world().inverse().matrix()
        np.testing.assert_allclose(camera_to_world, scene.poses[index, :3], atol=1e-4)


def test_every_photo_is_there() -> None:
    assert len(PHOTOS) == 4
    assert len(COLORS) == 8
    assert all(path.is_file() for path in [*DEPTHS, *POSES])


@pytest.mark.slow
def test_photos_at_the_size_of_the_table(engine: Engine, tmp_path: Path) -> None:
    scene = engine.reconstruct(PHOTOS)
    check(scene, 4, (518, 392))
    assert scene.names == [path.name for path in PHOTOS]
    check_files(scene, tmp_path)


@pytest.mark.slow
def test_photos_with_their_camera(engine: Engine, tmp_path: Path) -> None:
    plain, calibrated = (engine.reconstruct(PHOTOS, intrinsics=k, size=SIZE) for k in (None, SCEAUX / "K.txt"))
    for scene in (plain, calibrated):
        check(scene, 4, SIZE)
    assert not np.allclose(plain.points, calibrated.points)
    check_files(calibrated, tmp_path)


@pytest.mark.slow
def test_upstreams_way_gives_the_same_scene(engine: Engine) -> None:
    views = load_images([str(path) for path in PHOTOS], resize_mode="fixed_size", size=SIZE)
    predictions = engine.infer(views)
    scene = engine.reconstruct(PHOTOS, size=SIZE)
    np.testing.assert_array_equal(scene.points, np.concatenate([p["pts3d"] for p in predictions]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("photo", "file", "focal", "centre"),
    [("sceaux", "K.txt", 2905.88, (1416, 1064)), ("redkitchen", "camera-intrinsics.txt", 585, (320, 240))],
)
def test_intrinsics_follow_the_resized_image(photo: str, file: str, focal: float, centre: tuple[float, float]) -> None:
    path = (PHOTOS if photo == "sceaux" else COLORS)[0]
    with Image.open(path) as image:
        width, height = image.size
    (view,) = preprocess_views(read_views([path], DATA / photo / file))
    rows, columns = view["img"].shape[2:]
    assert (columns, rows) == (518, 392)
    scale = max(columns / width, rows / height)
    (fx, _, cx), (_, fy, cy), _ = view["intrinsics"][0]
    np.testing.assert_allclose([fx, fy], focal * scale, rtol=1e-5)
    # The middle of the picture stays the middle, up to the pixel that the crop rounds.
    middle = (np.array([cx, cy]) + 0.5 - np.array([columns, rows]) / 2) / scale
    np.testing.assert_allclose(middle, np.add(centre, 0.5) - np.array([width, height]) / 2, atol=1 / scale)


def reprojection_error(views: list[dict[str, Any]], inverse: bool = False) -> float:
    """Median relative difference of the depth that view 0 predicts in the other views from what they measured.

    With ``inverse`` the poses are taken to be world-to-camera, which they are not.
    """
    errors = []
    first = views[0]
    rows, columns = first["depth_z"].shape[1:]
    v, u = np.mgrid[:rows, :columns]
    keep = first["depth_z"][0] > 0
    pixels = np.stack([u[keep], v[keep], np.ones(keep.sum())])
    points = np.linalg.inv(first["intrinsics"][0].astype(float)) @ pixels * first["depth_z"][0][keep]
    for other in views[1:]:
        poses = [np.asarray(view["camera_poses"][0], float) for view in (first, other)]
        if inverse:
            poses = [np.linalg.inv(pose) for pose in poses]
        moved = np.linalg.inv(poses[1]) @ poses[0] @ np.vstack([points, np.ones(points.shape[1])])
        seen = moved[:3, moved[2] > 0.1]
        x, y, z = other["intrinsics"][0].astype(float) @ seen
        x, y = np.rint(x / z).astype(int), np.rint(y / z).astype(int)
        inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
        measured = other["depth_z"][0][y[inside], x[inside]]
        found = measured > 0
        errors.append(np.abs(z[inside][found] / measured[found] - 1))
    return float(np.median(np.concatenate(errors)))


@pytest.mark.slow
def test_depth_poses_and_intrinsics_belong_together_after_resizing() -> None:
    """The depth of one view, moved by the poses, is what the next view measured: scale, units and directions fit."""
    raw = read_views(COLORS[:3], CAMERA, POSES[:3], DEPTHS[:3])
    stored = np.asarray(Image.open(DEPTHS[0]))
    metres = raw[0].depth
    assert metres is not None
    missing = (stored == 0) | (stored == 65535)
    assert missing.any()
    assert not metres[missing].any()
    np.testing.assert_allclose(metres[~missing], stored[~missing] / 1000, rtol=1e-6)
    for size in ((518, 392), (140, 112), (252, 518)):
        views = preprocess_views(raw, size)
        assert reprojection_error(views) < 0.02
    assert reprojection_error(views, inverse=True) > 0.05


KNOWN: dict[str, dict[str, Any]] = {
    "images": {},
    "calibrated": {"intrinsics": CAMERA},
    "posed": {"poses": POSES},
    "calibrated and posed": {"intrinsics": CAMERA, "poses": POSES},
    "depth": {"intrinsics": CAMERA, "depths": DEPTHS},
    "all": {"intrinsics": CAMERA, "depths": DEPTHS, "poses": POSES},
    "mixed": {
        "intrinsics": [CAMERA if i in (0, 1, 3, 6) else None for i in range(8)],
        "depths": [path if i in (1, 3) else None for i, path in enumerate(DEPTHS)],
        "poses": [path if i in (0, 2, 3, 7) else None for i, path in enumerate(POSES)],
        "metric": [True, True, None, True, None, None, None, True],
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("known", list(KNOWN))
def test_rgbd_views(engine: Engine, tmp_path: Path, known: str) -> None:
    scene = engine.reconstruct(COLORS, size=SIZE, **KNOWN[known])
    check(scene, 8, SIZE)
    if known in ("images", "mixed"):
        check_files(scene, tmp_path)
    if known != "images":
        assert not np.allclose(scene.points, engine.reconstruct(COLORS, size=SIZE).points)


def view_list(folder: Path) -> Path:
    """A view list that mixes all inputs, in the forms that people write."""
    views = [
        {"image": COLORS[0], "intrinsics": CAMERA, "depth": DEPTHS[0], "pose": POSES[0]},
        {"image": COLORS[1], "intrinsics": [585, 585, 320, 240]},
        {"image": COLORS[2], "pose": np.loadtxt(POSES[2]).tolist()},
        {"image": COLORS[3]},
        {"image": COLORS[4], "intrinsics": CAMERA, "depth": DEPTHS[4], "depth_scale": 0.001, "metric": True},
    ]
    path = folder / "views.json"
    path.write_text(json.dumps(views, default=str), encoding="utf-8")
    return path


def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mapengine.cli", "run", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_command_line_with_a_view_list(tiny_bundle: Path, tmp_path: Path) -> None:
    path = view_list(tmp_path)
    outs = [tmp_path / name for name in ("scene.npz", "scene.glb", "colmap")]
    out_options = [word for out in outs for word in ("--out", out)]
    preview = tmp_path / "scene.png"
    result = run(tiny_bundle, path, *out_options, "--preview", preview, "--size", "140x112", "--backend", "onnxruntime")
    assert result.returncode == 0, result.stderr
    scene = Scene.load(outs[0])
    check(scene, 5, SIZE)
    engine = Engine.load(tiny_bundle, "onnxruntime", verify=False)
    expected = engine.reconstruct_views(read_views(load_view_list(path)), size=SIZE)
    np.testing.assert_allclose(scene.points, expected.points, atol=1e-5)
    assert len(pycolmap.Reconstruction(outs[2] / "sparse" / "0").images) == 5
    assert trimesh.load(outs[1]).geometry
    with Image.open(preview) as picture:
        assert min(picture.size) > 100


@pytest.mark.slow
def test_command_line_with_photos_and_a_folder(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scene.npz"

    def reconstructed(*images: object) -> Scene:
        with pytest.raises(SystemExit) as end:
            main(["run", *map(str, (tiny_bundle, *images, "--out", out, "--size", "140x112"))])
        assert end.value.code == 0, capsys.readouterr().err
        return Scene.load(out)

    calibrated = reconstructed(*PHOTOS, "--intrinsics", SCEAUX / "K.txt")
    check(calibrated, 4, SIZE)
    plain = reconstructed(SCEAUX)
    check(plain, 4, SIZE)
    assert plain.names == calibrated.names == [path.name for path in PHOTOS]
    assert not np.allclose(plain.points, calibrated.points)
