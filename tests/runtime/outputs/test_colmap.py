from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
from PIL import Image, ImageOps

from mapengine.runtime import Engine
from mapengine.runtime.errors import ImageReadError, InputError, OutputError
from mapengine.runtime.inputs.formats.view_files import ViewFiles
from mapengine.runtime.inputs.lenses import Lens
from mapengine.runtime.inputs.sources import open_views
from mapengine.runtime.inputs.stored_view import StoredView
from mapengine.runtime.outputs.colmap import COLMAP_MAX_POINTS
from mapengine.runtime.outputs.scene import Scene
from mapengine.runtime.outputs.scene_arrays import SHAPES

Predictions = list[dict[str, Any]]


@pytest.fixture
def scene(predictions: Predictions) -> Scene:
    return Scene.from_predictions(predictions, names=["left photo.png", "größe.png"])


def read(folder: Path, suffix: str) -> pycolmap.Reconstruction:
    """The model from its text or its binary files alone."""
    only = folder / f"only_{suffix}"
    shutil.rmtree(only, ignore_errors=True)
    only.mkdir()
    for name in ("cameras", "images", "points3D"):
        shutil.copy(folder / "sparse" / "0" / f"{name}.{suffix}", only)
    return pycolmap.Reconstruction(only)


@pytest.mark.parametrize("suffix", ["txt", "bin"])
def test_pycolmap_reads_the_scene(scene: Scene, tmp_path: Path, suffix: str) -> None:
    scene.save(tmp_path)
    model = read(tmp_path, suffix)
    assert (model.num_cameras(), model.num_reg_images()) == (2, 2)
    assert 0.3 * scene.mask.sum() < model.num_points3D() <= scene.mask.sum()
    for view in range(2):
        image = model.images[view + 1]
        camera = model.cameras[image.camera_id]
        k = scene.intrinsics[view].astype(np.float64)
        assert (camera.model.name, camera.width, camera.height) == ("PINHOLE", 56, 42)
        np.testing.assert_allclose(camera.params, [k[0, 0], k[1, 1], k[0, 2] + 0.5, k[1, 2] + 0.5], rtol=1e-9)
        world_to_camera = np.linalg.inv(scene.poses[view].astype(np.float64))
        np.testing.assert_allclose(image.cam_from_world().matrix(), world_to_camera[:3], atol=1e-6)
        picture = np.asarray(Image.open(tmp_path / "images" / image.name))
        np.testing.assert_array_equal(picture, scene.colors[view])


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["txt", "bin"])
@pytest.mark.parametrize("noise", [0, 0.01])
def test_tracks_triangulate_to_their_points(
    room_predictions: Callable[..., Predictions], tmp_path: Path, suffix: str, noise: float
) -> None:
    scene = Scene.from_predictions(room_predictions(4))
    rng = np.random.default_rng(0)
    for view in range(4):  # as of a network, whose views do not agree
        factor, centre = np.float32(1 + noise * rng.normal()), scene.poses[view, :3, 3]
        scene.depth[view] *= factor
        scene.points[view] = (scene.points[view] - centre) * factor + centre
    scene.save(tmp_path, max_points=500)
    model = read(tmp_path, suffix)
    assert 400 < model.num_points3D() <= 500
    triangulated = 0
    for point in model.points3D.values():
        images = [model.images[element.image_id] for element in point.track.elements]
        assert len({image.image_id for image in images}) == len(images)
        seen = [
            image.points2D[element.point2D_idx] for image, element in zip(images, point.track.elements, strict=True)
        ]
        assert all(model.points3D[observation.point3D_id].xyz == pytest.approx(point.xyz) for observation in seen)
        for image, observation in zip(images, seen, strict=True):
            np.testing.assert_allclose(image.project_point(point.xyz), observation.xy, atol=1e-3)
        assert 0 <= point.error < 1e-3
        if len(images) < 2:
            continue
        found = pycolmap.estimate_triangulation(
            np.array([observation.xy for observation in seen]),
            [image.cam_from_world() for image in images],
            [model.cameras[image.camera_id] for image in images],
        )
        if found is None:  # its rays are parallel
            continue
        triangulated += 1
        for image, observation in zip(images, seen, strict=True):
            assert np.linalg.norm(image.project_point(found["xyz"]) - observation.xy) < 1
    assert triangulated > 200
    assert model.compute_mean_reprojection_error() < 1e-3


def test_views_that_see_the_same_are_neighbours(scene: Scene, tmp_path: Path) -> None:
    """Dense matching takes the views that share points."""
    scene.save(tmp_path)
    model = read(tmp_path, "bin")
    shared = sum(len(point.track.elements) == 2 for point in model.points3D.values())
    assert shared > 0.4 * model.num_points3D()


def test_points_behind_their_camera_are_left_out(scene: Scene, tmp_path: Path) -> None:
    center, forward = scene.poses[0, :3, 3], scene.poses[0, :3, 2]
    behind = center - 50 * forward
    scene.points[0, 10, 20:30] = behind
    scene.save(tmp_path)
    places = np.array([point.xyz for point in read(tmp_path, "bin").points3D.values()])
    assert np.linalg.norm(places - behind, axis=-1).min() > 10


def test_voxels_merge_points(scene: Scene, tmp_path: Path) -> None:
    counts = {}
    for voxel in (0.05, 0.2, 1.0):
        scene.save(tmp_path, voxel=voxel)
        places = np.array([point.xyz for point in read(tmp_path, "bin").points3D.values()])
        counts[voxel] = len(places)
        near = np.linalg.norm(places[:, None] - places[None], axis=-1) + 10 * np.eye(len(places))
        assert np.median(near.min(axis=0)) > 0.3 * voxel
    assert counts[0.05] > 2 * counts[0.2] > 4 * counts[1.0] > 0
    with pytest.raises(InputError, match=r"voxel is 1e-07, which is too small for a scene of .* choose at least"):
        scene.save(tmp_path, voxel=1e-7)
    for wrong in (0, -1, np.nan, np.inf, True, "1"):
        with pytest.raises(InputError, match=r"voxel is .*; choose a length above 0"):
            scene.save(tmp_path, voxel=wrong)


@pytest.mark.parametrize("suffix", ["txt", "bin"])
def test_empty_scene(scene: Scene, tmp_path: Path, suffix: str) -> None:
    scene.mask[:] = False
    scene.save(tmp_path)
    model = read(tmp_path, suffix)
    assert (model.num_reg_images(), model.num_points3D()) == (2, 0)


@pytest.mark.slow
def test_at_most_the_documented_number_of_points(room_predictions: Callable[..., Predictions], tmp_path: Path) -> None:
    scene = Scene.from_predictions(room_predictions(1, 406, 308))
    scene.save(tmp_path / "a", voxel=0.002)
    assert 0.9 * COLMAP_MAX_POINTS < read(tmp_path / "a", "bin").num_points3D() <= COLMAP_MAX_POINTS


def test_the_same_scene_gives_the_same_files(scene: Scene, tmp_path: Path) -> None:
    scene.save(tmp_path / "a", max_points=50)
    scene.save(tmp_path / "b", max_points=50)
    for name in ("cameras", "images", "points3D"):
        for suffix in ("txt", "bin"):
            file = Path("sparse", "0", f"{name}.{suffix}")
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_an_older_model_is_replaced_and_nothing_else(scene: Scene, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    scene.save(folder)
    (folder / "images" / "mine.jpg").write_bytes(b"mine")
    (folder / "sparse" / "0" / "project.ini").write_bytes(b"mine")
    one = Scene(**{name: getattr(scene, name)[:1] for name in (*SHAPES, "names")}, metric_scale=1.0)
    one.save(folder)
    assert (folder / "images" / "mine.jpg").read_bytes() == b"mine"
    assert (folder / "sparse" / "0" / "project.ini").read_bytes() == b"mine"
    assert len(list((folder / "images").iterdir())) == 2  # that of the second view is gone
    assert pycolmap.Reconstruction(folder / "sparse" / "0").num_reg_images() == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_somebody_elses_model_is_left_alone(scene: Scene, tmp_path: Path) -> None:
    """Nothing of it, nor of one of ours that was improved since, is replaced."""
    theirs = tmp_path / "theirs"
    for name in ("sparse/0/cameras.bin", "sparse/0/project.ini", "images/a.png"):
        (theirs / name).parent.mkdir(parents=True, exist_ok=True)
        (theirs / name).write_bytes(b"a week of work")
    with pytest.raises(OutputError, match="no COLMAP model that mapengine wrote"):
        scene.save(theirs)
    assert {path.read_bytes() for path in theirs.rglob("*") if path.is_file()} == {b"a week of work"}
    for format in ("colmap", "transforms", "maps"):  # nor is another folder filled, such as one of notes
        other = tmp_path / format
        other.mkdir()
        (other / "notes.txt").write_bytes(b"mine")
        with pytest.raises(OutputError, match=r"is not empty and no .* that mapengine wrote; choose another"):
            scene.save(other, format=format)
        assert [path.name for path in other.rglob("*")] == ["notes.txt"]
    ours = scene.save(tmp_path / "ours")
    (ours / "sparse" / "0" / "cameras.bin").write_bytes(b"bundle adjustment")
    with pytest.raises(OutputError, match=r"cameras\.bin: was changed since mapengine wrote it"):
        scene.save(ours)
    assert (ours / "sparse" / "0" / "cameras.bin").read_bytes() == b"bundle adjustment"


def test_camera_without_focal_length_is_refused(scene: Scene, tmp_path: Path) -> None:
    scene.intrinsics[1, 0, 0] = np.nan
    with pytest.raises(InputError, match="view 1: intrinsics or pose are not finite"):
        scene.save(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


# ---- names and original images --------------------------------------------------------------------------------------


def test_original_names_stay_and_a_map_says_which_changed(
    room_predictions: Callable[..., Predictions], tmp_path: Path
) -> None:
    names = ["hall/größe 1.jpg", "hall/写真.JPG", "a.png", "a.png", "clip.mp4#000012"]
    scene = Scene.from_predictions(room_predictions(5), names=names)
    scene.save(tmp_path)
    wanted = ["hall/größe_1.jpg", "hall/写真.JPG", "a.png", "a_2.png", "clip.mp4#000012.png"]
    for suffix in ("txt", "bin"):
        model = read(tmp_path, suffix)
        assert [model.images[number].name for number in range(1, 6)] == wanted
    for name in wanted:
        with Image.open(tmp_path / "images" / name) as image:
            assert image.size == (56, 42)
            assert image.format == ("JPEG" if name.lower().endswith("jpg") else "PNG")
    changed = json.loads((tmp_path / "names.json").read_text())["images"]
    assert changed == [{"image": wanted[index], "name": names[index]} for index in (0, 3, 4)]
    own = [view.name for view in open_views(tmp_path)]
    assert sorted(own) == sorted(wanted)
    scene.names = ["a.png", "b.png", "c.png", "d.png", "e.png"]
    scene.save(tmp_path)
    assert not (tmp_path / "names.json").exists()


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Three photographs: one that is plain, one that EXIF turns, and one that COLMAP does not read."""
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[274] = 6
    files = [tmp_path / "in" / name for name in ("plain.jpg", "sub/turned.jpg", "c.webp")]
    files[1].parent.mkdir(parents=True)
    for file, size, more in zip(files, ((160, 120), (120, 160), (200, 150)), ({}, {"exif": exif}, {}), strict=True):
        coarse = rng.integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(file, quality=95, **more)
    return files


def test_images_and_cameras_at_their_original_size(small: Engine, photos: list[Path], tmp_path: Path) -> None:
    scene = small.reconstruct(photos, size=(56, 42))
    scene.save(tmp_path / "out", colmap_size="original")
    model = read(tmp_path / "out", "bin")
    names = ["plain.jpg", "turned.jpg", "c.webp.png"]
    assert [model.images[number].name for number in (1, 2, 3)] == names
    assert (tmp_path / "out" / "images" / "plain.jpg").read_bytes() == photos[0].read_bytes()
    (changed,) = json.loads((tmp_path / "out" / "names.json").read_text())["images"]
    assert changed == {"image": "c.webp.png", "name": "c.webp", "file": str(photos[2])}
    assert scene.original_pixels is not None
    for view, (name, size) in enumerate(zip(names, ((160, 120), (160, 120), (200, 150)), strict=True)):
        image, camera = model.images[view + 1], model.cameras[view + 1]
        with Image.open(tmp_path / "out" / "images" / name) as picture:
            assert picture.size == (camera.width, camera.height) == size
            assert picture.getexif().get(274, 1) == 1
            shown = ImageOps.exif_transpose(Image.open(photos[view])).convert("RGB")
            assert np.abs(np.asarray(picture.convert("RGB"), int) - np.asarray(shown, int)).mean() < 3
        matrix = scene.original_pixels[view] @ scene.intrinsics[view]
        wanted = [matrix[0, 0], matrix[1, 1], matrix[0, 2] + 0.5, matrix[1, 2] + 0.5]
        np.testing.assert_allclose(camera.params, wanted, rtol=1e-9)
        for observation in image.points2D[:50]:
            place = image.project_point(model.points3D[observation.point3D_id].xyz)
            np.testing.assert_allclose(place, observation.xy, atol=1e-2)


def test_an_undistorted_image_is_what_its_camera_is_of(small: Engine, tmp_path: Path) -> None:
    camera = np.array([[150, 0, 80], [0, 150, 60], [0, 0, 1]], np.float32)
    picture = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    files = ViewFiles(tmp_path / "a.png", intrinsics=camera, lens=Lens("OPENCV", (-0.2, 0.03)))
    view = StoredView(files, "view 0", "a.png")
    scene = small.reconstruct_views([view], size=(56, 42))
    scene.save(tmp_path / "out", colmap_size="original")
    model = read(tmp_path / "out", "txt")
    raw = view.read()
    with Image.open(tmp_path / "out" / "images" / "a.png") as written:
        np.testing.assert_array_equal(np.asarray(written), np.asarray(raw.image))
    resized = raw.resized((56, 42))
    assert resized.intrinsics is not None
    assert raw.intrinsics is not None
    # The network's own intrinsics are random here: what matters is that the written ones follow them.
    to_image = raw.intrinsics.astype(np.float64) @ np.linalg.inv(resized.intrinsics.astype(np.float64))
    matrix = to_image @ scene.intrinsics[0]
    wanted = [matrix[0, 0], matrix[1, 1], matrix[0, 2] + 0.5, matrix[1, 2] + 0.5]
    np.testing.assert_allclose(model.cameras[1].params, wanted, rtol=1e-4)
    assert (model.cameras[1].width, model.cameras[1].height) == raw.size


def test_frames_of_a_video_are_written_at_their_size(small: Engine, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "film.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for grey in (50, 200):
            frame = av.VideoFrame.from_ndarray(np.full((120, 160, 3), grey, np.uint8), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    scene = small.reconstruct(tmp_path / "film.mp4", size=(56, 42))
    scene.save(tmp_path / "out", colmap_size="original")
    for index, grey in enumerate((50, 200)):
        with Image.open(tmp_path / "out" / "images" / f"film.mp4#00000{index}.png") as picture:
            assert picture.size == (160, 120)
            assert abs(np.asarray(picture).mean() - grey) < 5
    copied = pickle.loads(pickle.dumps(scene))
    np.testing.assert_array_equal(copied.points, scene.points)
    with pytest.raises(InputError, match="its original image is not at hand"):
        copied.save(tmp_path / "copy", colmap_size="original")


def test_originals_that_are_not_at_hand(small: Engine, photos: list[Path], tmp_path: Path) -> None:
    scene = small.reconstruct([photos[0], np.asarray(Image.open(photos[0]))], size=(56, 42))
    with pytest.raises(InputError, match=r"view 1 \(view 1\): its original image is not at hand"):
        scene.save(tmp_path / "out", colmap_size="original")
    one = small.reconstruct(photos[0], size=(56, 42))
    one.save(tmp_path / "scene.npz")
    with pytest.raises(InputError, match=r"view 0 \(plain.jpg\): its original image is not at hand"):
        Scene.load(tmp_path / "scene.npz").save(tmp_path / "out", colmap_size="original")
    Image.new("RGB", (20, 20)).save(photos[0])
    with pytest.raises(InputError, match="has 20x20 pixels now, and had 160x120; reconstruct it again"):
        one.save(tmp_path / "out", colmap_size="original")
    photos[0].unlink()
    with pytest.raises(ImageReadError, match=r"plain\.jpg"):
        one.save(tmp_path / "out", colmap_size="original")
    with pytest.raises(InputError, match="colmap_size is 'large'; choose network or original"):
        one.save(tmp_path / "out", colmap_size="large")
    assert not (tmp_path / "out").exists()
