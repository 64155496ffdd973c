from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapengine.runtime.errors import ImageReadError, InputError
from mapengine.runtime.inputs.formats import values
from mapengine.runtime.inputs.formats.view_files import ViewFiles
from mapengine.runtime.inputs.formats.view_lists import load_view_list
from mapengine.runtime.inputs.preprocess import preprocess_views
from mapengine.runtime.inputs.sources import read_views

from .view_files import DEPTH, POSE, K


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

    loaded = read_views(views)
    assert [view.name for view in loaded] == ["a.png", "b.png", "a.png", "b.png"]
    known = [(view.intrinsics, view.pose, view.depth) for view in loaded]
    assert [[value is not None for value in values] for values in known] == [
        [True, True, True],
        [True, False, True],
        [True, True, False],
        [False, False, False],
    ]
    assert loaded[0].depth is not None
    assert loaded[1].depth is not None
    np.testing.assert_allclose(loaded[0].depth, DEPTH, atol=5.1e-4)
    np.testing.assert_allclose(loaded[1].depth, 2 * DEPTH, atol=1.1e-3)
    assert [view.metric for view in loaded] == [True, None, False, None]
    prepared = preprocess_views(loaded)
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
        ([{**GOOD, "xyz": 1}], "known are image, intrinsics, depth, depth_scale, pose, metric, mask"),
        (
            [{**GOOD, "intrinsics": [1, 2, 3]}],
            r"view 0: intrinsics has shape \(3,\); it must be 3x3 numbers, 4x4 numbers or \[fx, fy",
        ),
        ([{**GOOD, "intrinsics": [[1, 2], [3]]}], "view 0: intrinsics is not a rectangular array"),
        ([{**GOOD, "intrinsics": ["a", "b", "c", "d"]}], "view 0: intrinsics"),
        ([{**GOOD, "intrinsics": {"fx": 1}}], "view 0: intrinsics"),
        ([{**GOOD, "intrinsics": [float("nan"), 50, 28, 21]}], "the token NaN is not JSON"),
        ([{**GOOD, "intrinsics": [1e300, 50, 28, 21]}], "view 0: intrinsics holds NaN or infinite"),
        ([{**GOOD, "intrinsics": [-50, 50, 28, 21]}], "view 0: intrinsics has the focal length -50"),
        ([{**GOOD, "intrinsics": "missing.txt"}], "view 0: intrinsics: there is no file"),
        ([{**GOOD, "intrinsics": "pose.txt"}], r"has shape \(4, 4\); it must be 3x3 numbers"),
        ([{**GOOD, "intrinsics": "a.png"}], "is not a text file of 3x3 numbers"),
        ([{**GOOD, "pose": K.tolist()}], r"view 0: pose has shape \(3, 3\); it must be 4x4 numbers"),
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


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(value=JSON)
def test_any_json_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = write_list(tmp_path_factory.getbasetemp(), value)
    with pytest.raises(InputError):  # no image is there, so nothing can be right
        load_view_list(path)


def test_a_matrix_is_checked_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    for name in ("camera_intrinsics", "camera_pose"):
        real = getattr(values, name)

        def counting(*given: Any, real: Any = real, name: str = name) -> Any:
            checked.append(name)
            return real(*given)

        monkeypatch.setattr(values, name, counting)
    path = write_list(folder, [{"image": "a.png", "intrinsics": K.tolist(), "pose": POSE.tolist()}, {"image": "b.png"}])
    assert len(read_views(path)) == 2
    assert sorted(checked) == ["camera_intrinsics", "camera_pose"]
