"""Patterns, options of reading, and what a recording's folder holds besides its views."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mapengine.runtime.errors import ImageReadError, InputError
from mapengine.runtime.inputs.formats.view_files import ReadOptions
from mapengine.runtime.inputs.sources import open_views, read_views

from .recordings import COUNT, SIZE, VIEWS, write_colmap, write_images, write_transforms, write_tum

K = [70.0, 70.0, 39.5, 29.5]


def names(source: Any, **options: Any) -> list[str]:
    return [view.name for view in open_views(source, options=ReadOptions(**options))]


def save(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE).save(path)
    return path


def write_seven_scenes(folder: Path) -> Path:
    write_images(folder, [f"{i}.color.png" for i in range(COUNT)])
    for index, view in enumerate(VIEWS):
        Image.fromarray(np.rint(view.depth_z * 1000).astype(np.uint16)).save(folder / f"{index}.depth.png")
        np.savetxt(folder / f"{index}.pose.txt", view.pose)
    return folder


def test_a_pattern_below_a_folder_with_brackets(tmp_path: Path) -> None:
    for name in ("10.png", "2.png"):
        save(tmp_path / "trip [2024]" / "a*" / name)
    assert names(str(tmp_path / "trip [2024]" / "a*" / "*.png")) == ["2.png", "10.png"]
    assert names(str(tmp_path / "trip*" / "**" / "1*.png")) == ["10.png"]


def test_digits_of_other_scripts_are_numbers(tmp_path: Path) -> None:
    for name in ("a١٠.png", "a٩.png", "a².png"):
        save(tmp_path / name)
    assert names(tmp_path) == ["a٩.png", "a١٠.png", "a².png"]


def test_what_is_given_for_something_else_is_no_image(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    save(tmp_path / "masks" / "a.png")
    (tmp_path / "K.txt").write_text("70 70 39.5 29.5")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for recursive in (False, True):
            given = {"intrinsics": tmp_path / "K.txt", "masks": tmp_path / "masks"}
            (view,) = open_views(tmp_path, **given, options=ReadOptions(recursive=recursive))
            assert view.name == "a.png"


@pytest.mark.parametrize(
    "wrong",
    [
        {"give": 3},
        {"give": [["depth"]]},
        {"ignore": None},
        {"ignore": 1},
        {"every": "2"},
        {"every": True},
        {"fps": True},
        {"fps": "2"},
        {"recursive": "no"},
        {"depth_from": ["points"]},
    ],
)
def test_options_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(wrong))} is "):
        ReadOptions(**wrong)


def test_options_may_be_numbers_of_numpy(tmp_path: Path) -> None:
    for index in range(4):
        save(tmp_path / f"{index}.png")
    assert names(tmp_path, every=np.int64(2), max_views=np.int32(1)) == ["0.png"]
    with pytest.raises(InputError, match=r"fps needs views with a time, as of a video, and 0.png has none"):
        names([tmp_path / "0.png", tmp_path / "1.png"], fps=np.float32(2))


def test_points_are_of_a_colmap_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"points of a COLMAP model, .* leave depth_from \(--depth-from\) out"):
        names(save(tmp_path / "a.png"), depth_from="points")
    assert names(tmp_path / "a.png", depth_from="points", ignore=("depth",)) == ["a.png"]
    project = write_colmap(tmp_path / "project").folder
    (project / "sparse/0/points3D.bin").unlink()
    with pytest.raises(InputError, match="has no points3D, which depth from points needs"):
        names(project, depth_from="points")


def left_out(source: Path) -> list[str]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        open_views(source, K if source.name == "7-Scenes" else None)
    return [str(warning.message) for warning in said]


@pytest.mark.parametrize("kind", ["7-Scenes", "TUM", "transforms", "view list"])
def test_images_that_a_recording_does_not_name_are_said_to_be_left_out(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / kind
    extra, words = folder / "extra.jpg", ""
    if kind == "7-Scenes":
        write_seven_scenes(folder)
        (folder / "1.color.png").unlink()
        words = r"left out 2 images \(1.depth.png, extra.jpg\) that are no .color or .depth.png of a view"
    elif kind == "TUM":
        write_tum(folder)
        extra, words = folder / "rgb" / "extra.jpg", r"left out 1 image \(extra.jpg\) that rgb.txt does not name"
    elif kind == "transforms":
        write_transforms(folder)
        shutil.copy(folder / "transforms.json", folder / "transforms_test.json")
        extra, words = folder / "images" / "extra.jpg", r"left out 1 image \(extra.jpg\) that transforms.json does not"
    else:
        save(folder / "a.png")
        (folder / "views.json").write_text(json.dumps([{"image": "a.png"}]))
        words = r"left out 1 image \(extra.jpg\) that views.json does not name"
    before = left_out(folder)
    save(extra)
    said = left_out(folder)
    assert len(said) == len(before) + (kind != "7-Scenes")
    assert sum(re.search(words, text) is not None for text in said) == 1, said
    if kind == "transforms":
        assert any("left out transforms_test.json; give one of them by name" in text for text in said)
        assert not left_out(folder / "transforms_test.json")  # which was chosen


def test_each_view_of_a_recording_may_bring_its_camera(tmp_path: Path) -> None:
    folder = write_seven_scenes(tmp_path)
    (first, *_) = read_views(folder, [K, *[[71.0, *K[1:]]] * (COUNT - 1)])
    assert first.intrinsics is not None
    assert first.intrinsics[0, 0] == 70
    with pytest.raises(InputError, match="view 1: has a depth map but no intrinsics"):
        read_views(folder, [K, *[None] * (COUNT - 1)])
    (only,) = open_views(folder, options=ReadOptions(intrinsics=K, max_views=1))
    assert only.files.intrinsics is not None


@pytest.mark.filterwarnings("ignore:.*left out")
def test_lists_of_tum_in_any_order_with_spaces_in_names(tmp_path: Path) -> None:
    wanted = read_views(write_tum(tmp_path / "a"))
    folder = write_tum(tmp_path / "b")
    (folder / "rgb").rename(folder / "r g#b")
    for name in ("rgb.txt", "depth.txt", "groundtruth.txt"):
        lines = (folder / name).read_text().replace("rgb/", "r g#b/").splitlines()
        (folder / name).write_bytes("\r\n".join([*lines[::-1], ""]).encode())
    views = read_views(folder)
    assert [view.name for view in views] == [view.name.replace("rgb/", "r g#b/") for view in wanted]
    for view, other in zip(views, wanted, strict=True):
        np.testing.assert_array_equal(view.pose, other.pose)
        np.testing.assert_array_equal(view.depth, other.depth)


def test_transforms_as_other_programs_write_them(tmp_path: Path) -> None:
    folder = write_transforms(tmp_path, depth_unit_scale_factor=0.0005)
    path = folder / "transforms.json"
    text = path.read_text()
    np.save(folder / "0.npy", np.full(SIZE[::-1], 5000.0))
    changed = text.replace("./images/frame_0.png", ".\\\\images\\\\frame_0").replace("depth/frame_0.png", "0.npy")
    path.write_text(changed, encoding="utf-8-sig")
    views = read_views(folder)
    assert views[0].name == "images/frame_0.png"
    assert views[0].depth is not None
    assert np.all(views[0].depth == 2.5)
    document = json.loads(text)
    for change, words in (
        ({"fl_x": 0}, "focal length 0"),
        ({"w": -80}, "w is -80; it must be the size of the image"),
        ({"h": 1e300}, "h is 1e[+]300"),
        ({"transform_matrix": "/etc/hostname"}, "transform_matrix is '/etc/hostname'; it must be 4x4"),
    ):
        frames = [{**frame, **change} for frame in document["frames"]]
        path.write_text(json.dumps({**document, "frames": frames}))
        with pytest.raises(InputError, match=words):
            read_views(folder)


def test_other_cures_for_other_files(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(b"no HEIC")
    with pytest.raises(ImageReadError, match=r"a.heic: .*convert it to PNG or JPEG"):
        read_views(tmp_path / "a.heic")
    (tmp_path / "z.tiff").write_bytes(b"no TIFF")
    with pytest.raises(ImageReadError, match=r"z.tiff: is not a depth map .*; convert it to 16-bit PNG or .npy"):
        read_views(save(tmp_path / "a.png"), K, depths=[tmp_path / "z.tiff"])
