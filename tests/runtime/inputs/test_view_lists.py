from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mapengine.runtime.errors import ImageReadError, InputError
from mapengine.runtime.inputs.preprocess import preprocess_inputs
from mapengine.runtime.inputs.view_lists import ViewFiles, load_view_list, raw_views, view_list_inputs

K = np.array([[50, 0, 27.5], [0, 50, 20.5], [0, 0, 1]], dtype=np.float32)  # of an image of 56x42
POSE = np.array([[0, 0, 1, 1], [0, 1, 0, 2], [-1, 0, 0, 3], [0, 0, 0, 1]], dtype=np.float32)
DEPTH = np.linspace(1, 4, 42 * 56, dtype=np.float32).reshape(42, 56)
IMAGE = np.random.default_rng(0).integers(0, 256, (42, 56, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images with depth, and text files of intrinsics and pose."""
    for name in ("b", "a"):
        Image.fromarray(IMAGE).save(tmp_path / f"{name}.png")
        Image.fromarray(np.rint(DEPTH * 1000).astype(np.uint16)).save(tmp_path / f"{name}.depth.png")
    np.savetxt(tmp_path / "K.txt", K)
    np.savetxt(tmp_path / "pose.txt", POSE, delimiter=", ")
    return tmp_path


def write_list(folder: Path, value: Any) -> Path:
    path = folder / "views.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def test_view_list_in_every_form(folder: Path) -> None:
    path = write_list(
        folder,
        [
            {"image": "a.png", "intrinsics": K.tolist(), "pose": POSE.tolist(), "depth": "a.depth.png", "metric": True},
            {"image": "b.png", "intrinsics": [50, 50, 27.5, 20.5], "depth": "b.depth.png", "depth_scale": 0.002},
            {"image": str(folder / "a.png"), "intrinsics": "K.txt", "pose": "pose.txt", "metric": False},
            {"image": "b.png", "intrinsics": None, "pose": None, "depth": None, "metric": None, "depth_scale": None},
        ],
    )
    views = load_view_list(path)
    assert [view.image.name for view in views] == ["a.png", "b.png", "a.png", "b.png"]
    for view in views[:3]:
        assert view.intrinsics is not None
        np.testing.assert_array_equal(view.intrinsics, K)
        assert view.intrinsics.dtype == np.float32
    assert views[2].pose is not None
    np.testing.assert_array_equal(views[2].pose, POSE)
    assert views[3] == ViewFiles(image=folder / "b.png")

    loaded, names = view_list_inputs(views)
    assert names == ["a.png", "b.png", "a.png", "b.png"]
    assert [set(view) for view in loaded] == [
        {"img", "intrinsics", "camera_poses", "depth_z", "is_metric_scale"},
        {"img", "intrinsics", "depth_z"},
        {"img", "intrinsics", "camera_poses", "is_metric_scale"},
        {"img"},
    ]
    np.testing.assert_allclose(loaded[0]["depth_z"], DEPTH, atol=5.1e-4)
    np.testing.assert_allclose(loaded[1]["depth_z"], 2 * DEPTH, atol=1.1e-3)
    assert loaded[0]["is_metric_scale"].tolist() == [True]
    assert loaded[2]["is_metric_scale"].tolist() == [False]
    prepared = preprocess_inputs(loaded)
    assert prepared[0]["depth_z"].shape == (1, *prepared[0]["img"].shape[2:])


def test_view_list_as_object_and_with_a_byte_order_mark(folder: Path) -> None:
    path = write_list(folder, {"views": [{"image": "a.png"}]})
    assert load_view_list(path) == [ViewFiles(image=folder / "a.png")]
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_view_list(path) == [ViewFiles(image=folder / "a.png")]


GOOD = {"image": "a.png"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "no list of views"),
        ({}, "must be a list of views"),
        ({"views": []}, "no list of views"),
        ({"views": [GOOD], "version": 1}, "without other keys"),
        ("a.png", "no list of views"),
        ([GOOD, "b.png"], "view 1: must be an object, not a string"),
        ([GOOD, {}], "view 1: lacks the field 'image'"),
        ([{"image": None}], "view 0: image must be the path of a file, not null"),
        ([{"image": 3}], "view 0: image must be the path"),
        ([{"image": "a\0.png"}], "view 0: image must be the path"),
        ([{"image": "n" * 5000}], "view 0: image: there is no file"),
        (
            [GOOD, {**GOOD, "intrinsic": [1, 2, 3, 4]}],
            r"view 1: has the unknown field 'intrinsic' \(did you mean 'intrinsics'\?\)",
        ),
        ([{**GOOD, "xyz": 1}], "known are image, intrinsics, depth, depth_scale, pose, metric"),
        ([{**GOOD, "intrinsics": [1, 2, 3]}], r"view 0: intrinsics has shape \(3,\); give 3x3 numbers or \[fx, fy"),
        ([{**GOOD, "intrinsics": [[1, 2], [3]]}], "view 0: intrinsics is not a rectangular array"),
        ([{**GOOD, "intrinsics": ["a", "b", "c", "d"]}], "view 0: intrinsics"),
        ([{**GOOD, "intrinsics": {"fx": 1}}], "view 0: intrinsics"),
        ([{**GOOD, "intrinsics": [float("nan"), 50, 28, 21]}], "the token NaN is not JSON"),
        ([{**GOOD, "intrinsics": [1e300, 50, 28, 21]}], "view 0: intrinsics holds NaN or infinite"),
        ([{**GOOD, "intrinsics": [-50, 50, 28, 21]}], "view 0: intrinsics has the focal lengths -50 and 50"),
        ([{**GOOD, "intrinsics": "missing.txt"}], "view 0: intrinsics: there is no file"),
        ([{**GOOD, "intrinsics": "pose.txt"}], "holds 16 numbers; it must be 3x3 numbers"),
        ([{**GOOD, "intrinsics": "a.png"}], "is not a text file of 3x3 numbers"),
        ([{**GOOD, "pose": K.tolist()}], r"view 0: pose has shape \(3, 3\); give 4x4 numbers"),
        ([{**GOOD, "pose": True}], "view 0: pose"),
        ([{**GOOD, "depth": "a.depth.png"}], "view 0: has a depth map but no intrinsics"),
        ([{**GOOD, "intrinsics": "K.txt", "depth": "none.png"}], "view 0: depth: there is no file"),
        ([{**GOOD, "depth_scale": 0.001}], "view 0: has a depth_scale but no depth"),
        (
            [{**GOOD, "intrinsics": "K.txt", "depth": "a.depth.png", "depth_scale": "mm"}],
            "depth_scale must be a number",
        ),
        ([{**GOOD, "metric": 1}], "view 0: metric must be true or false"),
    ],
)
def test_bad_view_lists_name_view_and_key(folder: Path, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_view_list(write_list(folder, value))


def test_missing_images_are_image_errors(folder: Path) -> None:
    with pytest.raises(ImageReadError, match=r"view 1: image: there is no file .*none\.png; paths are relative"):
        load_view_list(write_list(folder, [GOOD, {"image": "none.png"}]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"[{]", "not valid JSON"),
        (b"\xff\xfe[", "not UTF-8"),
        (b'[{"image": "a.png", "image": "b.png"}]', "the key 'image' appears twice"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_files_that_are_no_json(folder: Path, content: bytes, message: str) -> None:
    (folder / "views.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_view_list(folder / "views.json")


def test_no_such_view_list(folder: Path) -> None:
    with pytest.raises(InputError, match="no such view list"):
        load_view_list(folder / "none.json")
    with pytest.raises(InputError, match="cannot be read"):
        load_view_list(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["views", "image", "intrinsics", "depth", "depth_scale", "pose", "metric", "x"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(value=JSON)
def test_any_json_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = write_list(tmp_path_factory.getbasetemp(), value)
    with pytest.raises(InputError):  # no image is there, so nothing can be right
        load_view_list(path)


def test_images_in_every_form(folder: Path) -> None:
    float_image = IMAGE.astype(np.float32)
    pillow = Image.fromarray(IMAGE)
    views, names = raw_views(
        [folder / "a.png", str(folder / "b.png"), IMAGE, pillow, float_image, (IMAGE + 0.5) / 255.5]
    )
    assert names == ["a.png", "b.png", "view 2", "view 3", "view 4", "view 5"]
    for view in views[:5]:
        np.testing.assert_array_equal(np.asarray(view["img"]), IMAGE)
    np.testing.assert_allclose(np.asarray(views[5]["img"], dtype=int), IMAGE, atol=1)
    for single in (folder / "a.png", str(folder / "a.png"), IMAGE, pillow):
        assert len(raw_views(single)[0]) == 1
    assert len(raw_views(np.stack([IMAGE] * 3))[0]) == 3
    assert len(raw_views(path for path in [folder / "a.png"])[0]) == 1
    assert len(preprocess_inputs(views)) == 6


def test_folder_is_sorted_and_holds_images_only(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert raw_views(folder)[1] == ["a.depth.png", "a.png", "b.depth.png", "b.png"]
    empty = tmp_path_factory.mktemp("empty")
    (empty / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="holds no images"):
        raw_views(empty)


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
        raw_views(images)


def test_unreadable_images_are_named(folder: Path) -> None:
    (folder / "cut.jpg").write_bytes((folder / "a.png").read_bytes()[:200])
    for name in ("none.png", "cut.jpg", "K.txt"):
        with pytest.raises(ImageReadError, match=f"view 1: image: .*{name}"):
            raw_views([folder / "a.png", folder / name])


def test_intrinsics_for_all_or_each(folder: Path) -> None:
    for shared in (K, K.tolist(), K.astype(np.float64), [50, 50, 27.5, 20.5], folder / "K.txt"):
        views, _ = raw_views([IMAGE] * 3, intrinsics=shared)
        for view in views:
            np.testing.assert_array_equal(view["intrinsics"], K)
            assert view["intrinsics"].dtype == np.float32
    views, _ = raw_views([IMAGE] * 3, intrinsics=[None, K, folder / "K.txt"])
    assert ["intrinsics" in view for view in views] == [False, True, True]
    views, _ = raw_views([IMAGE] * 4, intrinsics=np.stack([K] * 4))
    assert all("intrinsics" in view for view in views)


def test_poses_depths_and_metric(folder: Path) -> None:
    views, _ = raw_views(
        [IMAGE] * 3,
        intrinsics=K,
        poses=[POSE, None, folder / "pose.txt"],
        depths=[DEPTH, folder / "a.depth.png", None],
        metric=[True, None, False],
    )
    assert ["camera_poses" in view for view in views] == [True, False, True]
    assert ["depth_z" in view for view in views] == [True, True, False]
    assert [view.get("is_metric_scale", np.array([])).tolist() for view in views] == [[True], [], [False]]
    assert views[0]["depth_z"].dtype == np.float32
    assert views[0]["is_metric_scale"].dtype == bool
    assert all("is_metric_scale" in view for view in raw_views([IMAGE] * 2, metric=False)[0])
    single, _ = raw_views(IMAGE, intrinsics=K, poses=POSE, depths=DEPTH)
    np.testing.assert_array_equal(single[0]["depth_z"], DEPTH)
    views, _ = raw_views([IMAGE] * 2, intrinsics=K, depths=[folder / "a.depth.png"] * 2, depth_scale=0.002)
    np.testing.assert_allclose(views[1]["depth_z"], 2 * DEPTH, atol=1.1e-3)


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
        ({"intrinsics": [K, np.diag([0, 50, 1])]}, "view 1: intrinsics has the focal lengths 0 and 50"),
        ({"intrinsics": [K * np.nan, K]}, "view 0: intrinsics holds NaN"),
        (
            {"intrinsics": [K, [100, 100, 319.5, 239.5]]},
            "view 1: intrinsics have their principal point .* of 56x42; scale",
        ),
        ({"poses": [POSE, POSE[:3]]}, r"view 1: pose has shape \(3, 4\)"),
        ({"depths": [None, DEPTH]}, "view 1: has a depth map but no intrinsics; give"),
        ({"intrinsics": K, "depths": [None, DEPTH.T]}, r"view 1: depth has shape \(56, 42\), the image \(42, 56\)"),
        ({"intrinsics": K, "depths": [None, (DEPTH * 1000).astype(np.uint16)]}, "view 1: depth holds uint16"),
        ({"intrinsics": K, "depths": [None, "none.png"]}, "view 1: depth: none.png: there is no such file"),
    ],
)
def test_bad_geometry_names_view_and_key(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        raw_views([IMAGE] * 2, **options)


def test_exif_rotation_is_applied_and_geometry_must_follow(folder: Path) -> None:
    path = folder / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn clockwise by 90 degrees
    Image.fromarray(IMAGE).save(path, exif=exif)
    upright = K[[1, 0, 2]][:, [1, 0, 2]]
    for source in (path, Image.open(path)):
        views, _ = raw_views([source], intrinsics=upright, depths=[np.rot90(DEPTH, -1)])
        np.testing.assert_array_equal(np.asarray(views[0]["img"]), np.rot90(IMAGE, -1))
        with pytest.raises(InputError, match=r"view 0: intrinsics fit the image as it is stored .* EXIF orientation"):
            raw_views([source], intrinsics=K)
        with pytest.raises(InputError, match=r"view 0: depth has shape .* turn the depth map too"):
            raw_views([source], intrinsics=upright, depths=[DEPTH])
