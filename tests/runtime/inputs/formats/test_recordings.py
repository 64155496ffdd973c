"""RGB-D recordings, COLMAP projects and transforms.json: what is known of their views arrives as it was."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mapengine.runtime.errors import ImageReadError, InputError
from mapengine.runtime.inputs.formats.view_files import ReadOptions
from mapengine.runtime.inputs.lenses import Lens
from mapengine.runtime.inputs.preprocess import preprocess_views
from mapengine.runtime.inputs.raw_view import RawView
from mapengine.runtime.inputs.sources import open_views, read_views

from .recordings import COUNT, SIZE, VIEWS, mask_of, write_colmap, write_transforms, write_tum


def check_geometry(views: list[RawView], *, depth: float | None) -> None:
    """Intrinsics and poses are those of the scene; depth is within ``depth`` metres, or not there."""
    assert len(views) == COUNT
    for view, wanted in zip(views, VIEWS, strict=True):
        np.testing.assert_array_equal(np.asarray(view.image), wanted.image)
        np.testing.assert_allclose(view.intrinsics, wanted.intrinsics, atol=1e-4)
        np.testing.assert_allclose(view.pose, wanted.pose, atol=1e-6)
        if depth is None:
            assert view.depth is None
        else:
            np.testing.assert_allclose(view.depth, wanted.depth_z, atol=depth)


def test_tum(tmp_path: Path) -> None:
    folder = write_tum(tmp_path / "tum")
    with pytest.warns(UserWarning, match=r"left out 1 images without depth and pose within 0.02 s \(rgb/late.png\)"):
        views = read_views(folder)
    check_geometry(views, depth=1.1e-4)
    assert [view.name for view in views] == ["rgb/0.png", "rgb/1.png", "rgb/2.png"]


@pytest.mark.filterwarnings("ignore:.*left out")
def test_tum_needs_a_camera_or_an_option(tmp_path: Path) -> None:
    folder = write_tum(tmp_path / "tum", camera=None)
    with pytest.raises(InputError, match=r"tum: has no .*intrinsics.txt.*--intrinsics"):
        read_views(folder)
    check_geometry(read_views(folder, VIEWS[0].intrinsics), depth=1.1e-4)
    views = read_views(folder, options=ReadOptions(ignore=("intrinsics", "depth")))
    assert [(view.intrinsics, view.depth) for view in views] == [(None, None)] * COUNT
    assert [view.pose is not None for view in views] == [True] * COUNT
    (folder / "depth.txt").write_text("100 0.png\n101 missing.png\nnoon 0.png\n")
    with pytest.raises(InputError, match=r"depth.txt: line 3 is not a timestamp"):
        read_views(folder, VIEWS[0].intrinsics)


@pytest.mark.filterwarnings("ignore:.*left out")
def test_views_of_a_sequence_are_chosen_by_number_rate_and_count(tmp_path: Path) -> None:
    folder = write_tum(tmp_path / "tum")

    def names(**options: object) -> list[str]:
        return [view.name[4] for view in open_views(folder, options=ReadOptions(**options))]  # type: ignore[arg-type]

    assert names(every=2) == ["0", "2"]
    assert names(fps=15) == ["0", "2"]
    assert names(fps=30) == names(fps=1000) == ["0", "1", "2"]
    assert names(max_views=2) == ["0", "2"]
    assert names(max_views=1) == ["0"]


def test_transforms(tmp_path: Path) -> None:
    views = read_views(write_transforms(tmp_path))
    check_geometry(views, depth=5.1e-4)
    assert [view.metric for view in views] == [None] * COUNT
    for view in views:
        np.testing.assert_array_equal(view.mask, mask_of(VIEWS[0].depth_z) > 0)
    resized = views[0].resized((56, 42))
    assert resized.depth is not None
    assert resized.depth[:, :27].any()
    assert not resized.depth[:, 29:].any()


def test_transforms_of_instant_ngp(tmp_path: Path) -> None:
    """An angle in the place of focal lengths, no ending of images, and no scale where there is no depth."""
    folder = write_transforms(tmp_path)
    document = json.loads((folder / "transforms.json").read_text())
    angle = 2 * np.arctan(SIZE[0] / 2 / float(VIEWS[0].intrinsics[0, 0]))
    frames = [
        {"file_path": frame["file_path"].removesuffix(".png"), "transform_matrix": frame["transform_matrix"][:3]}
        for frame in document["frames"]
    ]
    centre = {key: document[key] for key in ("cx", "cy")}
    (folder / "transforms.json").write_text(json.dumps({"camera_angle_x": angle, **centre, "frames": frames}))
    views = read_views(folder / "transforms.json")
    check_geometry(views, depth=None)
    assert [view.metric for view in views] == [False] * COUNT


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"frames": []}, 'has no "frames"'),
        ({"frames": [{}]}, "frame 0: has no file_path"),
        ({"frames": [{"file_path": "none.png"}]}, "frame 0: file_path: there is no file"),
        ({"fl_x": "wide"}, "fl_x is 'wide'"),
        ({"fl_x": -3, "fl_y": -3}, "the focal length -3"),
        ({"camera_model": "EQUIRECTANGULAR"}, "camera_model EQUIRECTANGULAR, which is not read"),
        ({"k1": 1000.0}, "leaves a pinhole image of"),
        ({"k1": -5.0}, "folds the image's border over"),
    ],
)
def test_bad_transforms(tmp_path: Path, change: dict[str, object], words: str) -> None:
    folder = write_transforms(tmp_path)
    document = json.loads((folder / "transforms.json").read_text())
    (folder / "transforms.json").write_text(json.dumps({**document, **change}))
    with pytest.raises(InputError, match=words):
        read_views(folder)


@pytest.mark.parametrize("text", [False, True], ids=["binary", "text"])
@pytest.mark.parametrize("model", ["PINHOLE", "SIMPLE_PINHOLE"])
def test_colmap(tmp_path: Path, model: str, text: bool) -> None:
    project = write_colmap(tmp_path, model, text=text)
    Image.fromarray(VIEWS[0].image).save(tmp_path / "images" / "unused.png")
    for folder in (project.folder, project.folder / "sparse" / "0", project.folder / "sparse"):
        with pytest.warns(UserWarning, match=r"left out 1 image \(unused.png\) that the COLMAP model has no pose"):
            views = read_views(folder)
        check_geometry(views, depth=None)
        assert [view.metric for view in views] == [False] * COUNT
        assert [view.name for view in views] == ["sub/frame2.png", "sub/frame10.png", "sub/frame11.png"]


@pytest.mark.parametrize("text", [False, True], ids=["binary", "text"])
def test_the_points_of_a_model_are_sparse_depth(tmp_path: Path, text: bool) -> None:
    project = write_colmap(tmp_path, text=text)
    views = read_views(project.folder, options=ReadOptions(depth_from="points"))
    for view, pixels, depths in zip(views, project.pixels, project.depths, strict=True):
        assert view.depth is not None
        places = {(round(x - 0.5), round(y - 0.5)): z for (x, y), z in zip(pixels, depths, strict=True)}
        assert np.count_nonzero(view.depth) == len(places)
        for (x, y), z in places.items():
            assert view.depth[y, x] == pytest.approx(z, rel=1e-5)
        # Resizing keeps them: a small map holds as many as have a pixel of their own.
        small = view.resized((28, 28)).depth
        assert small is not None
        assert np.count_nonzero(small) > 0.6 * len(places)


@pytest.mark.parametrize(
    ("model", "extra"),
    [
        ("SIMPLE_RADIAL", (-0.08,)),
        ("RADIAL", (-0.1, 0.02)),
        ("RADIAL", (0.06, -0.01)),
        ("OPENCV", (-0.1, 0.02, 0.002, -0.001)),
        ("FULL_OPENCV", (-0.1, 0.02, 0.002, -0.001, 0.001, 0.01, 0.0, 0.0)),
    ],
)
def test_distorted_images_become_those_of_a_pinhole(tmp_path: Path, model: str, extra: tuple[float, ...]) -> None:
    """What COLMAP's lens images at a pixel lies where the new pinhole camera has it, crop and all."""
    import pycolmap

    project = write_colmap(tmp_path, model, extra)
    (view, *_) = read_views(project.folder)
    camera = next(iter(pycolmap.Reconstruction(project.folder / "sparse" / "0").cameras.values()))
    height, width = np.asarray(view.image).shape[:2]
    assert view.intrinsics is not None
    k = view.intrinsics.astype(float)
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    rays = np.stack([(x - k[0, 2]) / k[0, 0], (y - k[1, 2]) / k[1, 1], np.ones_like(x)], axis=-1).reshape(-1, 3)
    source = np.asarray(camera.img_from_cam(rays)) - 0.5
    assert source.min() > -0.05  # nothing outside the image is made up
    assert (source.max(axis=0) < np.array(SIZE) - 0.95).all()
    nearest = VIEWS[0].image[np.rint(source[:, 1]).astype(int), np.rint(source[:, 0]).astype(int)]
    whole = np.abs(source - np.rint(source)).max(axis=1) < 0.02
    off = np.abs(np.asarray(view.image).reshape(-1, 3).astype(int) - nearest)[whole]
    assert whole.sum() > 3
    assert off.max() <= 8  # 2 % of a pixel away, on a textured scene
    assert view.size == open_views(project.folder)[0].size


@pytest.mark.slow
def test_a_fisheye_stays_one(tmp_path: Path) -> None:
    import pycolmap

    project = write_colmap(tmp_path, "OPENCV_FISHEYE", (0.02, -0.004, 0.001, 0.0))
    views = read_views(project.folder)
    np.testing.assert_array_equal(np.asarray(views[0].image), VIEWS[0].image)
    resized = views[0].resized((56, 42))
    assert resized.intrinsics is None
    assert resized.rays is not None
    np.testing.assert_allclose(np.linalg.norm(resized.rays, axis=-1), 1, atol=1e-5)
    camera = next(iter(pycolmap.Reconstruction(project.folder / "sparse" / "0").cameras.values()))
    x, y = np.meshgrid(np.arange(56), np.arange(42))
    scale = SIZE[0] / 56
    pixels = np.asarray(camera.img_from_cam(resized.rays.reshape(-1, 3).astype(float)))
    np.testing.assert_allclose(pixels, np.stack([(x + 0.5) * scale, (y + 0.5) * scale], -1).reshape(-1, 2), atol=0.02)
    assert preprocess_views(views)[0]["ray_directions"].shape[-1] == 3


@pytest.mark.parametrize("model", ["FOV", "THIN_PRISM_FISHEYE", "EUCM"])
def test_other_lenses_are_refused_by_name(tmp_path: Path, model: str) -> None:
    extra = {"FOV": (0.9,), "EUCM": (0.5, 1.0)}.get(model, (0.0,) * 8)
    project = write_colmap(tmp_path, model, extra)
    with pytest.raises(InputError, match=rf"camera 1 is of the model {model}.*image_undistorter"):
        read_views(project.folder)


def test_a_smaller_copy_of_the_images_has_a_smaller_camera(tmp_path: Path) -> None:
    project = write_colmap(tmp_path)
    for file in (tmp_path / "images" / "sub").iterdir():
        Image.open(file).resize((40, 30)).save(file)
    (view, *_) = read_views(project.folder)
    wanted = VIEWS[0].intrinsics
    assert view.intrinsics is not None
    np.testing.assert_allclose(view.intrinsics[:2, :2], wanted[:2, :2] / 2, rtol=1e-6)
    np.testing.assert_allclose(view.intrinsics[:2, 2], (wanted[:2, 2] + 0.5) / 2 - 0.5, rtol=1e-6)
    Image.new("RGB", (40, 40)).save(tmp_path / "images" / "sub" / "frame2.png")
    with pytest.raises(InputError, match=r"view 0: intrinsics are of an image of 80x60, but sub/frame2.png has 40x40"):
        read_views(project.folder)


@pytest.mark.parametrize("name", ["cameras", "images"])
@pytest.mark.parametrize("text", [False, True], ids=["binary", "text"])
def test_damaged_models(tmp_path: Path, name: str, text: bool) -> None:
    project = write_colmap(tmp_path, text=text)
    path = project.folder / "sparse" / "0" / f"{name}.{'txt' if text else 'bin'}"
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"\xff" * 40, content.replace(b"1", b"x")):
        path.write_bytes(damaged)
        with contextlib.suppress(InputError):  # a part of a text file may be a smaller model
            read_views(project.folder)


def test_a_model_without_its_images(tmp_path: Path) -> None:
    project = write_colmap(tmp_path)
    (tmp_path / "images" / "sub" / "frame10.png").unlink()
    with pytest.raises(ImageReadError, match=r"names the image sub/frame10.png, which is not in .*images; add it"):
        read_views(project.folder)


def test_a_lens_and_its_inverse() -> None:
    lens = Lens("OPENCV", (-0.2, 0.05), tangential=(0.002, -0.001))
    x, y = np.meshgrid(np.linspace(-0.5, 0.5, 9), np.linspace(-0.4, 0.4, 9))
    there = lens.distort(*lens.undistort_points(x, y))
    np.testing.assert_allclose(there, (x, y), atol=1e-8)
