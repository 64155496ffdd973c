"""Bad and odd input, one by one, through the public interface: a typed one-sentence error, or a correct result."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mapengine.runtime import (
    Engine,
    ImageReadError,
    InputError,
    MapEngineError,
    OutputError,
    ProfileError,
    Scene,
    load_images,
)
from mapengine.runtime.errors import (
    BundleNotFoundError,
    DataNormTypeError,
    ImageSizeError,
    ManifestError,
    ViewMismatchError,
)

from ...refusals import (
    DEPTH,
    EYE,
    IMAGE,
    PIXELS,
    SIZE,
    K,
    finite,
    refused,
    view,
)

# No image, empty folder, files that are no images


@pytest.mark.parametrize(
    ("views", "words"),
    [
        ([], "views is empty|at least one view"),
        ((), "views is empty"),
        (None, "views is a NoneType|list of dictionaries"),
        (view(), "views is a dict|a single view too"),
        ("a.jpg", "views is a str"),
        (IMAGE, "views is a ndarray"),
        ((view() for _ in range(2)), "views is a generator"),
        ([None], "view 0|NoneType|dictionary with img"),
        ([IMAGE], "view 0|ndarray|dictionary with img"),
        ([view(), {}], "view 1|img is missing|load_images"),
        ([{"img": IMAGE}], "view 0|data_norm_type is missing"),
        ([{**view(), "img": None}], "view 0|img is missing"),
    ],
)
def test_views_that_are_none(small: Engine, views: Any, words: str) -> None:
    refused(InputError, words, lambda: small.infer(views))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([], "no images|at least one"),
        (None, "NoneType|give paths"),
        (3, "int|give paths"),
        (b"a.jpg", "bytes|give paths"),
        ({"a.jpg"}, "set|give paths"),
        ({"a": "a.jpg"}, "dict|give paths"),
        ([None], "view 0|NoneType|path"),
        ([b"a.jpg"], "view 0|bytes|path"),
        ([PIXELS[..., 0]], "view 0|(30, 40)|colour arrays (H, W, 3)"),
        (PIXELS[..., 0], "(30, 40)|(H, W, 3)"),
        ([np.zeros((0, 4, 3), np.uint8)], "view 0|(0, 4, 3)"),
        (np.zeros((0, 4, 4, 3), np.uint8), "no images"),
        ([PIXELS, PIXELS.astype(object)], "view 1|object"),
        ([PIXELS.astype(complex)], "view 0|complex128"),
        ([PIXELS.astype(int)], "view 0|int64|uint8, or floats"),
        ([PIXELS > 9], "view 0|bool|uint8, or floats"),
        ([np.dstack([PIXELS, PIXELS[..., :1]])], "view 0|(30, 40, 4)|(H, W, 3)"),
        ([PIXELS / 255 * np.nan], "view 0|NaN"),
        ([PIXELS / 255 - 0.5], "view 0|-0.5|0..1 or 0..255"),
        ([PIXELS * 2.0], "view 0|0..1 or 0..255"),
        ([np.ma.masked_array(PIXELS, PIXELS > 9)], "view 0|masked array|fill it"),
    ],
)
def test_images_that_are_none(small: Engine, images: Any, words: str) -> None:
    refused(InputError, words, lambda: small.reconstruct(images, size=SIZE))


def test_folders_and_files_without_images(small: Engine, tmp_path: Path) -> None:
    empty, text = tmp_path / "empty", tmp_path / "notes.txt"
    empty.mkdir()
    text.write_text("no picture")
    for call in (small.reconstruct, load_images):
        refused(InputError, f"{empty}|holds no images|.jpg .jpeg .png|check the folder", lambda c=call: c(empty))
    (empty / "notes.txt").write_text("no picture")
    (empty / "album.jpg").mkdir()
    refused(InputError, f"{empty}|holds no images", lambda: small.reconstruct(empty))
    refused(ImageReadError, "view 0|notes.txt|not an image", lambda: small.reconstruct([text]))
    refused(InputError, "empty|holds no images", lambda: small.reconstruct([empty]))
    refused(ImageReadError, "view 1|b.png|no such file", lambda: small.reconstruct([PIXELS, tmp_path / "b.png"]))
    refused(ImageReadError, "nowhere|no such file", lambda: small.reconstruct(tmp_path / "nowhere"))
    refused(InputError, "nowhere|cannot be listed", lambda: load_images(tmp_path / "nowhere"))
    refused(InputError, "notes.txt|pass a list of files", lambda: load_images(text))
    refused(InputError, "NoneType", lambda: load_images(None))  # type: ignore[arg-type]
    refused(InputError, "list of images is empty", lambda: load_images([]))


@pytest.mark.parametrize("keep", [0, 1, 30, 0.5, -2])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_truncated_images(small: Engine, tmp_path: Path, suffix: str, keep: float) -> None:
    path, good = tmp_path / f"a{suffix}", tmp_path / f"good{suffix}"
    Image.fromarray(PIXELS).save(good)
    data = good.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    if suffix == ".png" and keep == -2:
        assert finite(small.reconstruct([path], size=SIZE))  # only the end mark's checksum is missing
        return
    refused(ImageReadError, f"view 0|a{suffix}", lambda: small.reconstruct([path]))
    refused(ImageReadError, f"a{suffix}", lambda: load_images([path], on_error="raise"))
    with pytest.warns(UserWarning, match=rf"left out .*a{suffix}"):
        assert len(load_images([path, good])) == 1
    with pytest.warns(UserWarning, match="left out"):
        refused(InputError, "none of the 1 images", lambda: load_images([path]))


# Odd images that are legitimate


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 1), (20000, 10), (10, 20000), (3, 2)], ids=str)
def test_odd_sizes(small: Engine, tmp_path: Path, size: tuple[int, int]) -> None:
    picture = Image.fromarray(np.tile(PIXELS[:10, :10], (2000, 2000, 1))[: size[1], : size[0]])
    picture.save(tmp_path / "a.png")
    width, height = picture.size
    scene = small.reconstruct([tmp_path / "a.png"])
    assert finite(scene)
    assert (scene.depth.shape[2] > scene.depth.shape[1]) == (width > height)
    assert max(scene.depth.shape) == 518
    assert finite(small.infer(load_images([tmp_path / "a.png"], resize_mode="fixed_size", size=SIZE)))
    camera = [max(width, height), max(width, height), (width - 1) / 2, (height - 1) / 2]
    assert finite(small.reconstruct([picture], [camera], depths=[np.ones((height, width), np.float32)], size=SIZE))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK", "I;16", "F", "I"])
def test_pixel_formats(small: Engine, tmp_path: Path, mode: str) -> None:
    grey = PIXELS[..., 0]
    if mode == "I;16":
        picture = Image.fromarray(grey.astype(np.uint16) * 256)
    elif mode in ("F", "I"):
        picture = Image.fromarray(grey.astype(np.float32 if mode == "F" else np.int32))
    else:
        picture = Image.fromarray(PIXELS).convert(mode)
    assert picture.mode == mode
    path = tmp_path / ("a.png" if mode not in ("CMYK", "F", "I") else "a.tiff")
    picture.save(path)
    expected = picture.convert("RGB") if mode not in ("I;16", "F", "I") else Image.fromarray(grey).convert("RGB")
    wanted = small.reconstruct([expected], size=SIZE)
    if mode == "I;16":
        refused(
            ImageReadError, "view 0|a.png|depth map and no photograph", lambda: small.reconstruct([path], size=SIZE)
        )
    else:
        found = small.reconstruct([path], size=SIZE)
        assert finite(found)
        np.testing.assert_array_equal(found.colors, wanted.colors)
    np.testing.assert_array_equal(small.reconstruct([picture], size=SIZE).colors, wanted.colors)


@pytest.mark.slow
def test_different_sizes_in_one_call(small: Engine) -> None:
    pictures = [PIXELS, PIXELS[:7], Image.fromarray(PIXELS.transpose(1, 0, 2)), PIXELS[:1, :1]]
    scene = small.reconstruct(pictures)
    assert finite(scene)
    assert len({view.shape for view in scene.points}) == 1
    other = {**view(), "img": IMAGE[..., 14:]}
    words = "view 1: img|view 0|share one size|preprocess_inputs"
    refused(ViewMismatchError, words, lambda: small.infer([view(), other]))
    double = {**view(), "img": np.concatenate([IMAGE, IMAGE])}
    refused(ViewMismatchError, "view 1: img|(2, 3, 42, 56)", lambda: small.infer([view(), double]))


@pytest.mark.slow
def test_float_images_in_both_ranges(small: Engine) -> None:
    expected = small.reconstruct([PIXELS], size=SIZE)
    for dtype in (np.float16, np.float32, np.float64, np.dtype(">f8")):
        levels = PIXELS.astype(dtype)
        for pixels in (levels, (PIXELS + 0.5).clip(0, 255).astype(np.float32) / 255):
            np.testing.assert_array_equal(small.reconstruct([pixels], size=SIZE).colors, expected.colors)
    overshoot = PIXELS / np.float32(255) * np.float32(1.2)
    assert small.reconstruct([overshoot], size=SIZE).colors.mean() > expected.colors.mean()
    black = np.zeros((30, 40, 3), np.float32)
    assert not small.reconstruct([black], size=SIZE).colors.any()


# Images that infer refuses or takes


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        (IMAGE[0], InputError, "view 0: img|(3, 42, 56)|lacks the batch axis"),
        (IMAGE.transpose(0, 2, 3, 1), InputError, "view 0: img|channels come last"),
        (IMAGE[:, :2], InputError, "view 0: img|(1, 2, 42, 56)"),
        (IMAGE[:0], InputError, "view 0: img|(0, 3, 42, 56)"),
        (np.float32(1), InputError, "view 0: img has shape ()"),
        (IMAGE.astype(object), InputError, "view 0: img|object"),
        (IMAGE.astype(complex), InputError, "view 0: img|complex128"),
        (IMAGE > 0, InputError, "view 0: img|bool|preprocess_inputs"),
        ((IMAGE * 9).astype(np.uint8), InputError, "view 0: img|uint8|preprocess_inputs"),
        ("a.jpg", InputError, "view 0: img|give an array of numbers"),
        ([[1], [2, 3]], InputError, "view 0: img|not a rectangular array"),
        (IMAGE * np.nan, InputError, "view 0: img|NaN"),
        (IMAGE * np.float32(1e37), InputError, "view 0: img|not normalised|preprocess_inputs"),
        (IMAGE.astype(np.float64) * 1e300, InputError, "view 0: img|NaN or infinite"),
        (np.abs(IMAGE) * 100, InputError, "view 0: img|not normalised"),
        (IMAGE[..., :41, :], ImageSizeError, "view 0: img|56x41|multiples of 14|resize"),
        (IMAGE[..., :0], ImageSizeError, "view 0: img|0x42"),
        (np.ma.masked_array(IMAGE, IMAGE > 1), InputError, "view 0: img|masked array"),
        (torch.from_numpy(IMAGE).to_sparse(), InputError, "view 0: img|tensor|dense"),
        (torch.empty((1, 3, 42, 56), device="meta"), InputError, "view 0: img|tensor|data"),
    ],
)
def test_images_that_infer_refuses(small: Engine, image: Any, error: type[MapEngineError], words: str) -> None:
    refused(error, words, lambda: small.infer([{**view(), "img": image}]))


@pytest.mark.slow
def test_memory_layouts_and_types_that_mean_the_same(small: Engine, tmp_path: Path) -> None:
    known = {"intrinsics": K, "depth_z": DEPTH, "camera_poses": EYE}
    expected = small.infer([view(**known)])
    frozen = IMAGE.copy()
    frozen.flags.writeable = False
    np.save(tmp_path / "image.npy", IMAGE)
    mapped = np.load(tmp_path / "image.npy", mmap_mode="r")
    strided = np.ascontiguousarray(IMAGE[:, ::-1, :, ::-1])[:, ::-1, :, ::-1]
    for image in (frozen, mapped, strided, np.asfortranarray(IMAGE), IMAGE.astype(">f4"), IMAGE.astype(np.longdouble)):
        (found,) = small.infer([{**view(**known), "img": image}])
        np.testing.assert_array_equal(found["pts3d"], expected[0]["pts3d"])
    for dtype in (">f4", np.float64, np.longdouble):
        odd = {key: value.astype(dtype) for key, value in known.items()}
        np.testing.assert_array_equal(small.infer([view(**odd)])[0]["pts3d"], expected[0]["pts3d"])
    lists = {"intrinsics": K.tolist(), "depth_z": DEPTH.tolist(), "camera_poses": EYE.tolist()}
    np.testing.assert_array_equal(small.infer((view(**lists),))[0]["pts3d"], expected[0]["pts3d"])
    tiny = small.infer([{**view(), "img": IMAGE * np.float32(1e-44)}])
    np.testing.assert_allclose(tiny[0]["pts3d"], small.infer([{**view(), "img": IMAGE * 0}])[0]["pts3d"])


# Keys, flags, options, profile


def test_unknown_keys(small: Engine) -> None:
    refused(InputError, "view 1|'pose'|nearest|'camera_poses'", lambda: small.infer([view(), view(pose=EYE)]))
    refused(InputError, "view 0|'depth'|'depth_z'", lambda: small.infer([view(depth=DEPTH)]))
    refused(InputError, "view 0|3|known: img", lambda: small.infer([{**view(), 3: 4}]))  # type: ignore[dict-item]


@pytest.mark.parametrize("name", ["dino", ["croco"], 3, [3], [], ["dinov2", "dino"], [np.array(["dinov2", "x"])]])
def test_images_normalised_for_another_encoder(small: Engine, name: Any) -> None:
    views = [{"img": IMAGE, "data_norm_type": name}]
    refused(DataNormTypeError, "view 0: data_norm_type|expects ['dinov2']", lambda: small.infer(views))


@pytest.mark.parametrize("flag", ["yes", 2, 0.5, np.nan, [True, True], np.zeros((1, 1, 1), bool)])
def test_metric_flags_that_are_none(small: Engine, flag: Any) -> None:
    refused(InputError, "view 0: is_metric_scale", lambda: small.infer([view(is_metric_scale=flag)]))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("minibatch_size", 0),
        ("minibatch_size", 1.5),
        ("minibatch_size", True),
        ("confidence_percentile", 101),
        ("confidence_percentile", np.nan),
        ("confidence_percentile", None),
        ("edge_normal_threshold", np.inf),
        ("edge_depth_threshold", "wide"),
        ("multiview_conf_depth_abs_thresh", -1),
        ("apply_mask", "no"),
        ("mask_edges", None),
        ("use_amp", "no"),
        ("memory_efficient_inference", 1),
        ("ignore_depth_inputs", "no"),
        ("ignore_pose_scale_inputs", None),
        ("amp_dtype", "int8"),
        ("amp_dtype", None),
        ("progress", 3),
    ],
)
def test_options_out_of_range(small: Engine, option: str, value: Any) -> None:
    refused(InputError, option, lambda: small.infer([view()], **{option: value}))


def test_more_views_than_the_profile_allows(small: Engine) -> None:
    refused(ProfileError, "33 views|built for 1 to 32|--views 1:4:33", lambda: small.infer([view()] * 33))
    refused(ProfileError, "33 views|built for 1 to 32", lambda: small.reconstruct([PIXELS] * 33))


# Bundles and results


@pytest.mark.parametrize("path", [None, 3, b"bundle", ["bundle"]])
def test_bundle_paths_that_are_none(path: Any) -> None:
    refused(InputError, "the bundle is a|path of its folder", lambda: Engine.load(path))


def test_folders_that_are_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no bundle")
    refused(BundleNotFoundError, f"{tmp_path}|no engine bundle|mapengine build", lambda: Engine.load(tmp_path))
    refused(BundleNotFoundError, "nowhere does not exist", lambda: Engine.load(tmp_path / "nowhere"))
    refused(BundleNotFoundError, "notes.txt is a file", lambda: Engine.load(tmp_path / "notes.txt"))
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ManifestError):
        Engine.load(tmp_path)


@pytest.fixture
def scene(small: Engine) -> Scene:
    return small.reconstruct([PIXELS, PIXELS], size=SIZE)


NAMES = ("a.ply", "a.npz", "a.glb", "model")


@pytest.mark.parametrize("name", NAMES)
def test_no_permission_to_write(scene: Scene, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An administrator may write everywhere, so the refusal of the system is played where that is who runs this."""
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    if os.access(folder, os.W_OK):
        for function in ("replace", "mkdir", "rename"):
            monkeypatch.setattr(os, function, _raising(errno.EACCES))
    refused(OutputError, f"{name}|no permission|choose another place", lambda: scene.save(folder / name))
    monkeypatch.undo()
    folder.chmod(0o755)
    assert list(folder.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_disk_full(scene: Scene, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = scene.save(tmp_path / name)
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    scene.points = scene.points + 1
    monkeypatch.setattr(os, "fsync", _raising(errno.ENOSPC))
    refused(OutputError, f"{name}|the disk is full|free some space", lambda: scene.save(saved))
    refused(OutputError, "new|the disk is full", lambda: scene.save(tmp_path / "sub" / f"new-{name}"))
    refused(OutputError, "p.png|the disk is full", lambda: scene.preview(tmp_path / "p.png"))
    after = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    assert after == before
    assert not (tmp_path / "sub").exists()


def _raising(number: int) -> Callable[..., Any]:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_places_where_nothing_can_be_written(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here first")
    (tmp_path / "folder.ply").mkdir()
    refused(OutputError, "file|not a folder", lambda: scene.save(tmp_path / "file" / "a.ply"))
    refused(OutputError, "folder.ply|it is a folder", lambda: scene.save(tmp_path / "folder.ply", format="ply"))
    refused(InputError, "a.obj|.glb, .ply|.npz", lambda: scene.save(tmp_path / "a.obj"))
    with pytest.raises(OutputError, match=r"the name is too long; choose a shorter one"):
        scene.save(tmp_path / ("x" * 300 + ".ply"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.ply"]


def test_no_warning_about_numbers_leaks(small: Engine) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small.infer([view(intrinsics=K, depth_z=DEPTH * 0, camera_poses=EYE), view(camera_poses=EYE)])
        small.reconstruct([PIXELS[:1, :1]], size=SIZE)
