from __future__ import annotations

import ast
import builtins
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mapengine.runtime.errors import ImageReadError, InputError
from mapengine.runtime.inputs import sources
from mapengine.runtime.inputs.preprocess import preprocess_views
from mapengine.runtime.inputs.sources import read_views

from .view_files import DEPTH, IMAGE, POSE, K


def test_images_in_every_form(folder: Path) -> None:
    float_image = IMAGE.astype(np.float32)
    pillow = Image.fromarray(IMAGE)
    views = read_views([folder / "a.png", str(folder / "b.png"), IMAGE, pillow, float_image, (IMAGE + 0.5) / 255.5])
    assert [view.name for view in views] == ["a.png", "b.png", "view 2", "view 3", "view 4", "view 5"]
    for view in views[:5]:
        np.testing.assert_array_equal(np.asarray(view.image), IMAGE)
    np.testing.assert_allclose(np.asarray(views[5].image, dtype=int), IMAGE, atol=1)
    for single in (folder / "a.png", str(folder / "a.png"), IMAGE, pillow):
        assert len(read_views(single)) == 1
    assert len(read_views(np.stack([IMAGE] * 3))) == 3
    assert len(read_views(path for path in [folder / "a.png"])) == 1
    assert len(preprocess_views(views)) == 6


def test_folder_is_sorted_and_holds_images_only(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.warns(UserWarning, match=r"left out 2 16-bit depth maps .a\.depth\.png.*; 2 files that are no images"):
        assert [view.name for view in read_views(folder)] == ["a.png", "b.png"]
    empty = tmp_path_factory.mktemp("empty")
    (empty / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="holds no images"):
        read_views(empty)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no images"),
        (3, "images is a int"),
        ({"img": IMAGE}, "images is a dict"),
        ([IMAGE, None], "view 1: image"),
        ([IMAGE, IMAGE[..., 0]], r"view 1: image has shape \(42, 56\)"),
        ([IMAGE[:0]], r"view 0: image has shape \(0, 56, 3\)"),
        ([IMAGE.astype(np.uint16)], "view 0: image holds uint16"),
        ([IMAGE.astype(float) - 1000], "view 0: image has values from -1000"),
        ([np.full((4, 4, 3), np.nan)], "view 0: image holds NaN"),
    ],
)
def test_bad_images(images: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_views(images)


def test_unreadable_images_are_named(folder: Path) -> None:
    (folder / "cut.jpg").write_bytes((folder / "a.png").read_bytes()[:200])
    for name in ("none.png", "cut.jpg", "K.txt"):
        with pytest.raises(ImageReadError, match=f"view 1: image: .*{name}"):
            read_views([folder / "a.png", folder / name])


def test_intrinsics_for_all_or_each(folder: Path) -> None:
    for shared in (K, K.tolist(), K.astype(np.float64), [50, 50, 27.5, 20.5], folder / "K.txt"):
        views = read_views([IMAGE] * 3, intrinsics=shared)
        for view in views:
            assert view.intrinsics is not None
            np.testing.assert_array_equal(view.intrinsics, K)
            assert view.intrinsics.dtype == np.float32
    views = read_views([IMAGE] * 3, intrinsics=[None, K, folder / "K.txt"])
    assert [view.intrinsics is not None for view in views] == [False, True, True]
    views = read_views([IMAGE] * 4, intrinsics=np.stack([K] * 4))
    assert all(view.intrinsics is not None for view in views)


def test_poses_depths_and_metric(folder: Path) -> None:
    views = read_views(
        [IMAGE] * 3,
        intrinsics=K,
        poses=[POSE, None, folder / "pose.txt"],
        depths=[DEPTH, folder / "a.depth.png", None],
        metric=[True, None, False],
    )
    assert [view.pose is not None for view in views] == [True, False, True]
    assert [view.depth is not None for view in views] == [True, True, False]
    assert [view.metric for view in views] == [True, None, False]
    assert [any(view.known) for view in views] == [True, True, True]
    assert views[0].depth is not None
    assert views[0].depth.dtype == np.float32
    assert [view.metric for view in read_views([IMAGE] * 2, metric=False)] == [False, False]
    assert not any(read_views([IMAGE], metric=False)[0].known)
    single = read_views(IMAGE, intrinsics=K, poses=POSE, depths=DEPTH)
    np.testing.assert_array_equal(single[0].depth, DEPTH)
    views = read_views([IMAGE] * 2, intrinsics=K, depths=[folder / "a.depth.png"] * 2, depth_scale=0.002)
    np.testing.assert_allclose(views[1].depth, 2 * DEPTH, atol=1.1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"intrinsics": [K]}, "intrinsics has 1 entries for 2 images"),
        ({"poses": [POSE] * 3}, "poses has 3 entries for 2 images"),
        ({"poses": POSE}, "poses has 4 entries for 2 images"),
        ({"poses": "pose.txt"}, "poses is a str"),
        ({"depths": [None]}, "depths has 1 entries"),
        ({"intrinsics": K, "depths": "depth.png"}, "depths is a str"),
        ({"metric": [True]}, "metric has 1 entries"),
        ({"metric": "yes"}, "metric is a str"),
        ({"metric": [True, 1]}, "view 1: metric is 1"),
        ({"intrinsics": 50}, "intrinsics is a int"),
        ({"intrinsics": [K, K[:2]]}, r"view 1: intrinsics has shape \(2, 3\)"),
        ({"intrinsics": [K, np.diag([0, 50, 1])]}, "view 1: intrinsics has the focal length 0"),
        ({"intrinsics": [K * np.nan, K]}, "view 0: intrinsics holds NaN"),
        (
            {"intrinsics": [K, [100, 100, 319.5, 239.5]]},
            "view 1: intrinsics has its principal point .* of 56x42; scale",
        ),
        ({"poses": [POSE, POSE[:2]]}, r"view 1: pose has shape \(2, 4\)"),
        ({"depths": [None, DEPTH]}, "view 1: has a depth map but no intrinsics; give"),
        ({"intrinsics": K, "depths": [None, DEPTH.T]}, r"view 1: depth has shape \(56, 42\), the image \(42, 56\)"),
        ({"intrinsics": K, "depths": [None, (DEPTH * 1000).astype(np.uint16)]}, "view 1: depth holds uint16"),
        ({"intrinsics": K, "depths": [None, "none.png"]}, "view 1: depth: none.png: there is no such file"),
    ],
)
def test_bad_geometry_names_view_and_key(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_views([IMAGE] * 2, **options)


def test_exif_rotation_is_applied_and_geometry_must_follow(folder: Path) -> None:
    path = folder / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn clockwise by 90 degrees
    Image.fromarray(IMAGE).save(path, exif=exif)
    upright = K[[1, 0, 2]][:, [1, 0, 2]]
    for source in (path, Image.open(path)):
        views = read_views([source], intrinsics=upright, depths=[np.rot90(DEPTH, -1)])
        np.testing.assert_array_equal(np.asarray(views[0].image), np.rot90(IMAGE, -1))
        with pytest.raises(InputError, match=r"view 0: intrinsics fits the image as it is stored .* EXIF orientation"):
            read_views([source], intrinsics=K)
        with pytest.raises(InputError, match=r"view 0: depth has shape .* turn the depth map too"):
            read_views([source], intrinsics=upright, depths=[DEPTH])


def test_every_file_is_opened_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real, descriptor = builtins.open, os.open

    def counting(file: Any, *args: Any, **kwargs: Any) -> Any:
        if Path(file).parent == folder:  # and none of the system's
            opened.append(Path(file).name)
        return real(file, *args, **kwargs)

    def counting_descriptors(file: Any, *args: Any) -> int:
        if Path(file).parent == folder:
            opened.append(Path(file).name)
        return descriptor(file, *args)

    monkeypatch.setattr(builtins, "open", counting)
    monkeypatch.setattr(os, "open", counting_descriptors)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(IMAGE).save(folder / "c.jpg", exif=exif)
    Image.fromarray(IMAGE).save(folder / "d.tif")
    opened.clear()
    images = [folder / name for name in ("a.png", "b.png", "c.jpg", "d.tif")]
    turned = K[[1, 0, 2]][:, [1, 0, 2]]
    depths = [folder / "a.depth.png", None, None, None]
    read_views(images, [folder / "K.txt", K, turned, K], [folder / "pose.txt", None, None, None], depths)
    assert sorted(opened) == ["K.txt", "a.depth.png", "a.png", "b.png", "c.jpg", "d.tif", "pose.txt"]


def test_reading_needs_no_backend() -> None:
    folder = Path(sources.__file__).parent
    named = {
        (path.name, node.module)
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and "backends" in (node.module or "")
    }
    assert len(list(folder.glob("*.py"))) > 5
    assert named == set()
