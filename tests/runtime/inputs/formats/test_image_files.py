"""Images one by one, by pattern and from folders; what is left out is said; masks, and what is suspicious."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mapengine.runtime.errors import ImageReadError, InputError
from mapengine.runtime.inputs.files.depth import read_depth
from mapengine.runtime.inputs.formats.table import in_natural_order
from mapengine.runtime.inputs.formats.values import camera_matrix, pose_matrix
from mapengine.runtime.inputs.formats.view_files import ReadOptions
from mapengine.runtime.inputs.images import read_image
from mapengine.runtime.inputs.preprocess import preprocess_inputs, preprocess_views
from mapengine.runtime.inputs.sources import open_views, read_views
from mapengine.runtime.inputs.stored_view import enlarged_depth

from ..view_files import DEPTH, IMAGE, POSE, K


def save(path: Path, pixels: Any = IMAGE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def names(source: Any, **options: Any) -> list[str]:
    return [view.name for view in open_views(source, options=ReadOptions(**options))]


def test_folders_in_natural_order_and_what_is_left_out(tmp_path: Path) -> None:
    for name in ("frame10.png", "frame2.png", "Frame3.jpg", "a.webp", "b.bmp", "sub/x1.png", "sub/deep/x2.png"):
        save(tmp_path / name)
    save(tmp_path / "depth.png", np.zeros((4, 4), np.uint16))
    for name in ("._frame2.png", ".DS_Store", "notes.txt", "film.mp4"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.warns(UserWarning, match="left out") as said:
        assert names(tmp_path) == ["a.webp", "b.bmp", "frame2.png", "Frame3.jpg", "frame10.png"]
    (message,) = [str(warning.message) for warning in said]
    for words in (
        "2 hidden files (._frame2.png, .DS_Store)",
        "1 16-bit depth map (depth.png)",
        "1 video, to be given by its name (film.mp4)",
        "1 file that is no image (notes.txt)",
        "1 sub-folder, which --recursive reads (sub)",
    ):
        assert words in message
    with pytest.warns(UserWarning, match="left out"):
        assert names(tmp_path, recursive=True)[-2:] == ["sub/deep/x2.png", "sub/x1.png"]


def test_a_folder_of_depth_maps_is_called_one(tmp_path: Path) -> None:
    save(tmp_path / "depth" / "0.png", np.zeros((4, 4), np.uint16))
    with pytest.raises(InputError, match=r"holds only 16-bit images of one channel \(0.png\), which are depth maps"):
        open_views(tmp_path / "depth")
    with pytest.raises(ImageReadError, match=r"view 0: image: .*0.png.* depth map and no photograph"):
        read_views([tmp_path / "depth" / "0.png"])


def test_patterns_several_folders_and_equal_names(tmp_path: Path) -> None:
    for name in ("one/a10.png", "one/a9.png", "two/a9.png"):
        save(tmp_path / name)
    assert names(str(tmp_path / "one" / "*.png")) == ["a9.png", "a10.png"]
    assert names(str(tmp_path / "**" / "a9.png")) == ["one/a9.png", "two/a9.png"]
    assert names([tmp_path / "one", tmp_path / "two"]) == ["one/a9.png", "one/a10.png", "two/a9.png"]
    assert names([tmp_path / "two" / "a9.png", tmp_path / "one" / "a9.png"]) == ["two/a9.png", "one/a9.png"]
    with pytest.raises(ImageReadError, match="nothing fits it as a pattern"):
        open_views(str(tmp_path / "*.tif"))
    shell = [tmp_path / "one" / name for name in ("a10.png", "a9.png")]
    assert in_natural_order(shell) == shell[::-1]
    assert in_natural_order(shell[::-1]) == shell[::-1]
    assert names(shell) == ["a10.png", "a9.png"]  # a list of a program stays as it is


def test_photographs_of_phones(tmp_path: Path) -> None:
    """HEIC and AVIF are read like any other."""
    pillow_heif = pytest.importorskip("pillow_heif")
    smooth = np.tile(np.linspace(0, 255, 64, dtype=np.uint8)[:, None, None], (1, 64, 3))
    pillow_heif.from_pillow(Image.fromarray(smooth)).save(tmp_path / "a.heic")
    Image.fromarray(smooth).save(tmp_path / "b.avif")
    views = read_views(tmp_path)
    assert [view.name for view in views] == ["a.heic", "b.avif"]
    for view in views:
        assert np.abs(np.asarray(view.image).astype(int) - smooth).max() < 12


@pytest.mark.parametrize(
    ("name", "words"), [("a.exr", "read as a depth map and not"), ("a.mp4", "is a video, not an image")]
)
def test_files_that_are_no_images_are_called_what_they_are(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).write_bytes(b"\x76\x2f\x31\x01 and so on")
    with pytest.raises(ImageReadError, match=words):
        read_image(tmp_path / name)


@pytest.mark.parametrize(
    "value", [K, K.tolist(), [50, 50, 27.5, 20.5], np.pad(K, ((0, 1), (0, 1))) + np.diag([0, 0, 0, 1])]
)
def test_intrinsics_in_every_form(folder: Path, value: Any) -> None:
    np.testing.assert_array_equal(camera_matrix(value, "k"), K)
    numbers = " ".join(str(x) for x in np.asarray(value).ravel())
    for text in (numbers, f"# fx fy cx cy\n[{numbers.replace(' ', ', ')}]\n"):
        (folder / "line.txt").write_text(text)
        np.testing.assert_array_equal(camera_matrix(folder / "line.txt", "k"), K)
        views = open_views([IMAGE] * 4, intrinsics=value)
        assert all((view.files.intrinsics == K).all() for view in views if view.files.intrinsics is not None)


def test_four_cameras_of_four_numbers_are_no_matrix() -> None:
    cameras = [[50, 50, 27.5, 20.5]] * 3 + [[60, 60, 27.5, 20.5]]
    focal = [
        view.files.intrinsics[0, 0] for view in open_views([IMAGE] * 4, cameras) if view.files.intrinsics is not None
    ]
    assert focal == [50, 50, 50, 60]


def test_poses_of_three_rows(folder: Path) -> None:
    np.testing.assert_array_equal(pose_matrix(POSE[:3], "pose"), POSE)
    np.savetxt(folder / "short.txt", POSE[:3])
    np.testing.assert_array_equal(pose_matrix(folder / "short.txt", "pose"), POSE)
    views = open_views([IMAGE] * 2, poses=[POSE[:3], folder / "short.txt"])
    assert [view.files.pose is not None for view in views] == [True, True]


@pytest.mark.parametrize("kind", ["png", "npy", "npz", "tif", "exr"])
def test_depth_files_of_every_kind(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"depth.{kind}"
    if kind == "png":
        save(path, np.rint(DEPTH * 1000).astype(np.uint16))
    elif kind == "npy":
        np.save(path, DEPTH)
    elif kind == "npz":
        np.savez(path, depth=DEPTH)
    elif kind == "tif":
        save(path, DEPTH)
    else:
        exr = pytest.importorskip("OpenEXR")
        exr.File({"type": exr.scanlineimage}, {"Z": DEPTH}).write(str(path))
    np.testing.assert_allclose(read_depth(path), DEPTH, atol=6e-4)


def test_a_smaller_depth_map_takes_the_nearest_valid_value() -> None:
    depth = np.array([[1, 2, 0], [3, 0, 0]], np.float32)
    large = enlarged_depth(depth, (12, 8))
    assert set(np.unique(large)) == {0, 1, 2, 3}  # nothing is blended
    assert large[0, 0] == 1
    assert large[7, 0] == 3
    assert large[0, 11] == 0  # nothing was measured around it
    assert large[4, 5] in (1, 2, 3)  # its own is not known, those beside it are
    (view,) = read_views([IMAGE], K, depths=[DEPTH[::2, ::2]])
    assert view.depth is not None
    assert view.depth.shape == IMAGE.shape[:2]
    assert np.abs(view.depth - DEPTH).max() < 0.12
    with pytest.raises(InputError, match=r"view 0: depth has shape \(21, 20\)"):
        read_views([IMAGE], K, depths=[DEPTH[::2, :20]])


def mask() -> np.ndarray:
    result = np.zeros(IMAGE.shape[:2], np.uint8)
    result[:, :20] = 255
    return result


@pytest.mark.parametrize("kind", ["alpha", "folder", "double ending", "list", "array", "one"])
def test_masks(tmp_path: Path, kind: str) -> None:
    path = save(tmp_path / "a.png")
    masks: Any = None
    if kind == "alpha":
        save(path, np.dstack([IMAGE, mask()]))
    elif kind == "folder":
        masks = save(tmp_path / "masks" / "a.jpg", mask()).parent
    elif kind == "double ending":
        masks = save(tmp_path / "masks" / "a.png.png", mask()).parent
    elif kind == "list":
        masks = [save(tmp_path / "m.png", mask())]
    else:
        masks = [mask() > 0] if kind == "array" else [mask() // 255]
    (view,) = read_views([path], K, depths=[DEPTH], masks=masks)
    assert view.mask is not None
    assert np.abs(view.mask.astype(int) - (mask() > 0)).mean() < 0.02
    resized = view.resized((28, 28))
    assert resized.mask is not None
    assert resized.depth is not None
    assert resized.mask.any()
    assert not resized.depth[~resized.mask].any()


def test_masks_that_cannot_be(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png")
    (tmp_path / "masks").mkdir()
    with pytest.raises(InputError, match=r"holds no mask for any view; name masks as their images, such as a.png"):
        open_views([path], masks=tmp_path / "masks")
    with pytest.raises(InputError, match=r"view 0: mask has shape \(5, 9\), the image"):
        read_views([path], masks=[np.ones((5, 9), bool)])
    with pytest.warns(UserWarning, match=r"view 0 \(a.png\): its mask leaves nothing of it"):
        preprocess_views(open_views([path], masks=[np.zeros(IMAGE.shape[:2], bool)]), (56, 42))


def test_what_the_network_gets_is_chosen() -> None:
    def known(**options: Any) -> tuple[bool, bool, bool]:
        (view,) = open_views([IMAGE], K, [POSE], [DEPTH], options=ReadOptions(**options))
        files = view.files
        return files.intrinsics is not None, files.depth is not None, files.pose is not None

    assert known() == (True, True, True)
    assert known(ignore=("depth",)) == (True, False, True)
    assert known(ignore=("poses", "depth", "intrinsics")) == (False, False, False)
    assert known(give=("poses",)) == (False, False, True)
    assert known(give=("depth",)) == (True, True, False)  # depth needs the camera; infer ignores it
    for wrong in ({"give": ("pose",)}, {"ignore": "depth"}, {"every": 0}, {"fps": -1}, {"max_views": 0}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))} is"):
            ReadOptions(**wrong)


SUSPICIOUS: dict[str, tuple[dict[str, Any], str]] = {
    "intrinsics": (
        {"images": [np.zeros((480, 640, 3), np.uint8)] * 2, "intrinsics": [146, 146, 80, 60]},
        r"view 0 and 1 more: the principal point \(80, 60\) is far .*of an image of 161x121; scale them by 3.98",
    ),
    "poses": (
        {"images": [IMAGE] * 2, "intrinsics": K, "depths": [DEPTH, None], "poses": [np.eye(4), POSE + 0]},
        r"view 1: its camera is 3742 m from the nearest other one.*millimetres, divide their positions by 1000",
    ),
    "depth": ({"images": [IMAGE], "intrinsics": K, "depths": [DEPTH * 400]}, r"view 0: the median depth is 1\d* m"),
    "crop": ({"images": [np.zeros((3000, 10, 3), np.uint8)]}, r"view 0: only 0.7% of the image of 10x3000 is left"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(SUSPICIOUS))
def test_what_is_suspicious_is_said_once(kind: str) -> None:
    given, words = SUSPICIOUS[kind]
    if kind == "poses":
        far = POSE.astype(float)
        far[:3, 3] *= 1000
        given = {**given, "poses": [np.eye(4), far]}
    with pytest.warns(UserWarning, match=words) as said:
        preprocess_views(open_views(**given))
    assert len(said) == 1


@pytest.mark.filterwarnings("error")
def test_ordinary_views_are_not_suspicious(folder: Path) -> None:
    views = open_views([folder / "a.png", IMAGE], K, [POSE, POSE], [folder / "a.depth.png", DEPTH])
    preprocess_views(views, (56, 42))
    far = [moved(4.0 * x) for x in range(60)]  # a long way, each view near the last
    preprocess_views(open_views([IMAGE] * 60, K, far, [DEPTH] * 60), (28, 28))


def moved(x: float) -> np.ndarray:
    pose = np.eye(4)
    pose[0, 3] = x
    return pose


def test_poses_in_millimetres_are_noticed_when_they_are_near() -> None:
    near = [moved(50.0 * x) for x in range(3)]  # 5 cm apart
    with pytest.warns(UserWarning, match="view 2: its camera is 50 m from the nearest other one"):
        preprocess_views(open_views([IMAGE] * 3, K, near, [DEPTH] * 3), (56, 42))


def test_sparse_depth_is_thinned_by_resizing_unless_valid_values_are_kept() -> None:
    rng = np.random.default_rng(0)
    depth = np.zeros((720, 960), np.float32)
    chosen = rng.choice(depth.size, 1250, replace=False)
    depth.flat[chosen] = rng.uniform(1, 3, 1250)
    given = {"images": [np.zeros((720, 960, 3), np.uint8)], "intrinsics": [700, 700, 479.5, 359.5], "depths": [depth]}
    with pytest.warns(UserWarning, match=r"resizing leaves \d+ of 1250 pixels .*--depth-resize valid"):
        (thinned,) = preprocess_views(open_views(**given), (252, 196))
    (kept,) = preprocess_views(open_views(**given, options=ReadOptions(depth_resize="valid")), (252, 196))
    few, many = np.count_nonzero(thinned["depth_z"]), np.count_nonzero(kept["depth_z"])
    assert few < 150
    assert many > 1100
    # Where the nearest pixel has depth it is the one that is kept, and every value is one that was measured.
    same = thinned["depth_z"] > 0
    np.testing.assert_array_equal(kept["depth_z"][same], thinned["depth_z"][same])
    assert set(kept["depth_z"][kept["depth_z"] > 0].tolist()) <= set(depth.flat[chosen].tolist())


def fisheye_rays(field: float) -> np.ndarray:
    """Rays of an equidistant lens of 100x80 pixels with a field of view of so many degrees over its width."""
    x, y = np.meshgrid(np.arange(100) - 49.5, np.arange(80) - 39.5)
    radius = np.hypot(x, y)
    angle = radius * np.radians(field) / 100
    sine = np.sin(angle) / radius
    return np.stack([x * sine, y * sine, np.cos(angle)], axis=-1).astype(np.float32)


@pytest.mark.parametrize("field", [60, 120, 200])
def test_rays_of_a_fisheye_stay_rays(field: float) -> None:
    rays = fisheye_rays(field)
    (view,) = preprocess_inputs(
        [{"img": np.zeros((80, 100, 3), np.uint8), "ray_directions": rays}], resize_mode="fixed_size", size=(70, 56)
    )
    assert "intrinsics" not in view
    found = view["ray_directions"][0]
    x, y = (np.arange(70) + 0.5) / 0.7 - 0.5 - 49.5, (np.arange(56) + 0.5) / 0.7 - 0.5 - 39.5
    angle = np.hypot(*np.meshgrid(x, y)) * np.radians(field) / 100
    np.testing.assert_allclose(np.arctan2(np.hypot(found[..., 0], found[..., 1]), found[..., 2]), angle, atol=2e-3)


def test_a_mask_goes_through_preprocess_inputs() -> None:
    (view,) = preprocess_inputs(
        [{"img": IMAGE, "intrinsics": K, "depth_z": DEPTH, "mask": mask() > 0}], resize_mode="fixed_size", size=(28, 28)
    )
    assert view["mask"].shape == (1, 28, 28)
    assert 0 < view["mask"].mean() < 1
    assert not view["depth_z"][~view["mask"]].any()
    with pytest.raises(InputError, match="view 0: mask has shape"):
        preprocess_inputs([{"img": IMAGE, "mask": np.ones((3, 3))}])
