from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mapengine.runtime.errors import ImageReadError, InputError
from mapengine.runtime.inputs.normalization import normalize_image
from mapengine.runtime.inputs.preprocess import load_images, preprocess_inputs

DATA = Path(__file__).parents[2] / "data" / "preprocess"
IMAGES = DATA / "images"
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


class FakeTensor:
    """What the runtime uses of a torch tensor."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def detach(self) -> FakeTensor:
        return self

    def cpu(self) -> FakeTensor:
        return self

    def numpy(self) -> np.ndarray:
        return self.array


def golden(name: str) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    with np.load(DATA / f"{name}.npz") as file:
        arrays = dict(file)
    return json.loads((DATA / f"{name}.json").read_text()), arrays


LOAD_CASES, LOAD_ARRAYS = golden("load_images")
PREPROCESS_CASES, PREPROCESS_ARRAYS = golden("preprocess_inputs")


def to_u8(image: np.ndarray) -> np.ndarray:
    """Undo the normalisation of (1, 3, H, W), which is exact for 8-bit values: uint8 (H, W, 3)."""
    return np.rint((image[0].transpose(1, 2, 0) * STD + MEAN) * 255).astype(np.uint8)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pinhole(focal: float, width: int, height: int, dtype: Any = np.float32) -> np.ndarray:
    return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]], dtype)


# --- upstream's results, pixel for pixel


@pytest.mark.parametrize("case", LOAD_CASES, ids=lambda case: case["tag"])
def test_load_images_equals_upstream(case: dict[str, Any]) -> None:
    source = IMAGES if case["source"] == "folder" else [IMAGES / name for name in case["source"]]
    views = load_images(source, **case["kwargs"])
    assert len(views) == case["n"]
    assert [view["idx"] for view in views] == case["idx"]
    assert [view["instance"] for view in views] == case["instance"]
    for index, view in enumerate(views):
        assert sorted(view) == case["keys"]
        assert view["data_norm_type"] == case["norm"]
        assert view["true_shape"].tolist() == case["true_shape"]
        assert view["true_shape"].dtype == case["true_shape_dtype"]
        assert view["img"].dtype == np.float32
        assert list(view["img"].shape) == case["shape"]
        sample = view["img"] if case["sample"] == "full" else view["img"][:, :, 5::11, 5::11]
        if f"{case['tag']}.{index}.u8" in LOAD_ARRAYS:
            np.testing.assert_array_equal(to_u8(sample), LOAD_ARRAYS[f"{case['tag']}.{index}.u8"])
        else:
            np.testing.assert_array_equal(sample, LOAD_ARRAYS[f"{case['tag']}.{index}.f32"])
        if f"{case['tag']}.{index}.f32_corner" in LOAD_ARRAYS:
            corner = LOAD_ARRAYS[f"{case['tag']}.{index}.f32_corner"]
            np.testing.assert_array_equal(view["img"][:, :, :2, :2], corner)  # bit for bit


def golden_view(tag: str, index: int, types: dict[str, str]) -> dict[str, Any]:
    view: dict[str, Any] = {}
    for key, kind in types.items():
        name = f"{tag}.in.{index}.{key}"
        if kind == "tuple":
            view[key] = (PREPROCESS_ARRAYS[f"{name}.quats"], PREPROCESS_ARRAYS[f"{name}.trans"])
        elif kind == "Image":
            view[key] = Image.fromarray(PREPROCESS_ARRAYS[name])
        else:
            view[key] = FakeTensor(PREPROCESS_ARRAYS[name]) if "Tensor" in kind else PREPROCESS_ARRAYS[name]
    return view


@pytest.mark.parametrize("case", PREPROCESS_CASES, ids=lambda case: case["tag"])
@pytest.mark.filterwarnings("ignore:.*array with values up to 255")
def test_preprocess_inputs_equals_upstream(case: dict[str, Any]) -> None:
    tag = case["tag"]
    views = [golden_view(tag, index, expected["in_types"]) for index, expected in enumerate(case["views"])]
    results = preprocess_inputs(views, **case["kwargs"])
    for index, (result, expected) in enumerate(zip(results, case["views"], strict=True)):
        assert sorted(result) == expected["out_keys"]
        for key, (shape, dtype) in expected["out"].items():
            assert list(result[key].shape) == shape
            assert f"torch.{result[key].dtype}" == dtype
        assert result["data_norm_type"] == ["dinov2"]
        step = slice(None) if expected["sample"] == "full" else slice(5, None, 11)
        want = {key: PREPROCESS_ARRAYS.get(f"{tag}.out.{index}.{key}") for key in ("u8", "depth_z", "intrinsics")}
        np.testing.assert_array_equal(to_u8(result["img"][:, :, step, step]), want["u8"])
        if want["depth_z"] is not None:
            np.testing.assert_array_equal(result["depth_z"][:, step, step], want["depth_z"])
        if want["intrinsics"] is not None and tag != "rays":
            np.testing.assert_array_equal(result["intrinsics"], want["intrinsics"])  # bit for bit
        elif want["intrinsics"] is not None:  # fitted; upstream's float32 sums have a relative noise of 1e-5 to 1e-4
            np.testing.assert_allclose(result["intrinsics"], want["intrinsics"], rtol=1e-4)
        poses = result.get("camera_poses")
        if isinstance(poses, tuple):
            np.testing.assert_array_equal(poses[0], PREPROCESS_ARRAYS[f"{tag}.out.{index}.quats"])
            np.testing.assert_array_equal(poses[1], PREPROCESS_ARRAYS[f"{tag}.out.{index}.trans"])
        elif poses is not None:
            np.testing.assert_array_equal(poses, PREPROCESS_ARRAYS[f"{tag}.out.{index}.camera_poses"])


# --- preprocess_inputs


@pytest.mark.slow
def test_extreme_sizes() -> None:
    for size, expected in [((1, 1), (518, 518)), ((20000, 10), (518, 168)), ((10, 2000), (252, 518))]:
        image = Image.new("RGB", size, (10, 20, 30))
        (view,) = preprocess_inputs([{"img": image}])
        assert view["img"].shape == (1, 3, *expected[::-1])
        np.testing.assert_array_equal(
            view["img"], normalize_image(np.full((*expected[::-1], 3), (10, 20, 30), np.uint8))
        )


def test_too_narrow_images_are_refused() -> None:
    image = Image.new("RGB", (2_000_000, 1))
    with pytest.raises(InputError, match="view 0: an image of 2000000x1 pixels is too narrow"):
        preprocess_inputs([{"img": image}])


def test_inputs_are_not_modified() -> None:
    view = {
        "img": noise(77, 101),
        "intrinsics": pinhole(90, 101, 77),
        "depth_z": np.full((77, 101), np.nan, np.float32),
        "camera_poses": np.eye(4),
    }
    copies = {key: value.copy() for key, value in view.items()}
    (result,) = preprocess_inputs([view])
    for key, value in view.items():
        np.testing.assert_array_equal(value, copies[key])
    assert (result["depth_z"] == 0).all()
    for key in ("intrinsics", "depth_z", "camera_poses"):
        assert not np.shares_memory(result[key], view[key])


def test_poses_are_copied() -> None:
    quaternion, translation = np.array([0, 0, 0, 1.0]), np.zeros(3)
    (result,) = preprocess_inputs([{"img": noise(20, 30), "camera_poses": (quaternion, translation)}])
    for part in result["camera_poses"]:
        part += 1
    assert quaternion.tolist() == [0, 0, 0, 1]
    assert translation.tolist() == [0, 0, 0]


def test_other_keys_are_copied_and_absent_ones_may_be_none() -> None:
    view = {
        "img": noise(20, 30),
        "intrinsics": None,
        "depth_z": None,
        "idx": 7,
        "instance": "left",
        "is_metric_scale": False,
        "data_norm_type": ["other"],
        "camera_poses": [np.array([0, 0, 0, 1.0]), FakeTensor(np.zeros(3))],
    }
    (result,) = preprocess_inputs([view])
    assert result["idx"] == 7
    assert result["instance"] == "left"
    assert result["data_norm_type"] == ["dinov2"]
    assert result["is_metric_scale"].tolist() == [False]
    assert "intrinsics" not in result
    assert "depth_z" not in result
    assert [part.shape for part in result["camera_poses"]] == [(1, 4), (1, 3)]


def test_views_share_the_size_of_their_mean_aspect_ratio() -> None:
    results = preprocess_inputs([{"img": noise(100, 100)}, {"img": noise(100, 200)}])  # 1 and 2: nearest is 1.542
    assert [view["img"].shape for view in results] == [(1, 3, 336, 518)] * 2


def levels(value: Any) -> np.ndarray:
    (view,) = preprocess_inputs([{"img": value}], "fixed_size", (30, 20), patch_size=1)
    return to_u8(view["img"])


def test_levels_of_arrays_and_tensors() -> None:
    image = noise(20, 30)
    image[0, 0] = 255
    unit = (image + 0.5).astype(np.float32) / 256
    unit[0, 0] = 1
    np.testing.assert_array_equal(levels(image), image)
    np.testing.assert_array_equal(levels(FakeTensor(image)), image)
    np.testing.assert_array_equal(levels(unit), (unit * 255).astype(np.uint8))
    np.testing.assert_array_equal(levels(unit.astype(np.float64)), (unit.astype(np.float64) * 255).astype(np.uint8))
    np.testing.assert_array_equal(levels(FakeTensor(unit)), (unit * 255).astype(np.uint8))
    np.testing.assert_array_equal(levels(FakeTensor(image + np.float32(0.7))), image)
    np.testing.assert_array_equal(levels(image > 127), np.where(image > 127, 255, 0))
    np.testing.assert_array_equal(levels(image[:, ::-1, ::-1]), image[:, ::-1, ::-1])


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int64, np.uint16])
def test_levels_of_integers_do_not_overflow(dtype: type[np.generic]) -> None:
    small = noise(20, 30) // 2
    small[0, 0] = 127
    np.testing.assert_array_equal(levels(FakeTensor(small.astype(dtype))), small)
    black_and_white = small > 60
    np.testing.assert_array_equal(levels(black_and_white.astype(dtype)), np.where(black_and_white, 255, 0))


def test_levels_that_saturate_warn() -> None:
    image = noise(20, 30)
    image[0, 0] = 255
    with pytest.warns(
        UserWarning, match=r"view 0: img is a float32 array with values up to 255, taken as 0\.\.1"
    ) as record:
        np.testing.assert_array_equal(levels(image.astype(np.float32)), np.where(image > 0, 255, 0))
    assert Path(record[0].filename).name == Path(__file__).name  # the caller's line
    with pytest.warns(UserWarning, match="int64 array"):
        assert levels(image.astype(np.int64)).max() == 255
    with pytest.warns(UserWarning, match="integer tensor"):
        np.testing.assert_array_equal(levels(FakeTensor(image // 255)), image // 255 * 255)
    with pytest.warns(UserWarning, match="before it is normalised"):
        levels((image / 255 - MEAN).astype(np.float32))


def test_pillow_images_of_any_mode() -> None:
    grey = noise(20, 30)[:, :, 0]
    rgb = np.repeat(grey[:, :, None], 3, 2)
    np.testing.assert_array_equal(levels(Image.fromarray(grey)), rgb)
    np.testing.assert_array_equal(levels(Image.fromarray(rgb).convert("RGBA")), rgb)
    np.testing.assert_array_equal(levels(Image.fromarray(grey.astype(np.uint16) * 257)), rgb)


GOOD = {"img": np.zeros((20, 30, 3), np.uint8)}
RAYS = np.full((20, 30, 3), (0.0, 0.0, 1.0))


def changed(**entries: Any) -> list[dict[str, Any]]:
    return [GOOD, {**GOOD, **entries}]


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ([], "non-empty list"),
        (GOOD, "non-empty list"),
        ([GOOD, GOOD["img"]], "view 1: is a ndarray"),
        (changed(img=None), "view 1: img is missing"),
        (changed(img="photo.jpg"), "view 1: img is a file name"),
        (changed(img=np.zeros((3, 20, 30), np.uint8)), r"view 1: img has shape \(3, 20, 30\).*channels come last"),
        (changed(img=np.zeros((20, 30), np.uint8)), r"view 1: img has shape \(20, 30\); it must be \(H, W, 3\)"),
        (changed(img=np.zeros((20, 30, 4), np.uint8)), r"view 1: img has shape \(20, 30, 4\)"),
        (changed(img=np.zeros((0, 30, 3), np.uint8)), r"view 1: img has shape \(0, 30, 3\)"),
        (changed(img=np.full((20, 30, 3), np.nan)), "view 1: img holds NaN"),
        (changed(img=np.full((20, 30, 3), np.inf)), "view 1: img holds NaN or infinite"),
        (changed(img=np.zeros((20, 30, 3), complex)), "view 1: img holds complex128"),
        (changed(img=np.full((20, 30, 3), None)), "view 1: img holds object"),
        (changed(img=Image.new("RGB", (0, 3))), "view 1: img"),
        (changed(depth_z=np.zeros((30, 20))), r"view 1: depth_z has shape \(30, 20\), the image \(20, 30\)"),
        (changed(depth_z=np.zeros((20, 30, 2))), "view 1: depth_z has shape"),
        (changed(depth_z=np.zeros((20, 30), np.uint16)), "view 1: depth_z holds uint16.*millimetres"),
        (changed(depth_z=np.full((20, 30), -1.0)), "view 1: depth_z is negative"),
        (changed(intrinsics=np.eye(4)), r"view 1: intrinsics has shape \(4, 4\)"),
        (changed(intrinsics=np.eye(3)[None]), r"view 1: intrinsics has shape \(1, 3, 3\)"),
        (changed(intrinsics=[[1, 2], [3]]), "view 1: intrinsics is not a rectangular array"),
        (changed(intrinsics=np.full((3, 3), np.nan)), "view 1: intrinsics holds NaN"),
        (changed(intrinsics=np.diag([1.0, -1, 1])), "view 1: intrinsics has the focal length -1"),
        (changed(intrinsics=np.diag([0.0, 1, 1])), "view 1: intrinsics has the focal length 0"),
        (changed(intrinsics=pinhole(9, 30, 20).T), "view 1: intrinsics.*transposed"),
        (changed(intrinsics=np.eye(3), ray_directions=RAYS), "view 1: has both intrinsics and ray_directions"),
        (changed(ray_directions=RAYS[:5]), r"view 1: ray_directions has shape \(5, 30, 3\)"),
        (changed(ray_directions=RAYS + np.inf), "view 1: ray_directions holds NaN"),
        (changed(ray_directions=RAYS), "view 1: ray_directions are all the same"),
        (changed(camera_poses=np.eye(3)), r"view 1: camera_poses has shape \(3, 3\)"),
        (changed(camera_poses=np.full((4, 4), np.nan)), "view 1: camera_poses holds NaN"),
        (changed(camera_poses=(np.zeros(3), np.zeros(3))), r"view 1: camera_poses has shape"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_bad_views(views: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        preprocess_inputs(views)


def test_truncated_pillow_image_names_the_view(tmp_path: Path) -> None:
    data = (IMAGES / "e.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(data[: len(data) // 2])
    with Image.open(tmp_path / "half.jpg") as image, pytest.raises(InputError, match="view 0: img cannot be converted"):
        preprocess_inputs([{"img": image}])


def test_rays_of_a_pinhole_camera_become_its_intrinsics() -> None:
    intrinsics = pinhole(40, 30, 20, np.float64)
    columns, rows = np.meshgrid(np.arange(30), np.arange(20))
    rays = np.stack([(columns - 14.5) / 40, (rows - 9.5) / 40, np.ones((20, 30))], -1)
    by_rays, by_matrix = preprocess_inputs([{**GOOD, "ray_directions": rays}, {**GOOD, "intrinsics": intrinsics}])
    np.testing.assert_allclose(by_rays["intrinsics"], by_matrix["intrinsics"], rtol=1e-5)
    assert by_rays["intrinsics"].dtype == np.float32
    assert "ray_directions" not in by_rays


# --- load_images


def test_folder_order_stride_and_other_files(tmp_path: Path) -> None:
    for name, level in [("c.PNG", 30), ("a.jpg", 10), ("b.txt", 0), ("d.jpeg", 40)]:
        if name != "b.txt":
            Image.new("RGB", (30, 30), (level,) * 3).save(tmp_path / name)
        else:
            (tmp_path / name).write_text("not an image")
    (tmp_path / "e.png").mkdir()

    def found(**options: Any) -> list[int]:
        views = load_images(tmp_path, norm_type="identity", **options)
        return [round(float(view["img"][0, 0, 0, 0]) * 255 / 10) for view in views]

    with pytest.warns(UserWarning, match=r"e\.png: is a folder"):
        assert found() == [1, 3, 4]
    with pytest.warns(UserWarning, match=r"e\.png: is a folder"):
        assert found(stride=2) == [1, 3]  # of a, b, c, d, e: the stride counts the text file, too
    assert found(stride=3) == [1, 4]


def test_unreadable_files_are_left_out_and_named(tmp_path: Path) -> None:
    Image.new("RGB", (100, 100)).save(tmp_path / "square.png")
    (tmp_path / "empty.png").write_bytes(b"")
    data = (IMAGES / "c.png").read_bytes()  # 1000 x 333: it would change the size, were it counted
    (tmp_path / "truncated.png").write_bytes(data[: len(data) // 2])
    with pytest.warns(UserWarning, match="left out") as record:
        views = load_images(tmp_path)
    assert [view["img"].shape for view in views] == [(1, 3, 518, 518)]
    assert [view["idx"] for view in views] == [0]
    messages = [str(warning.message) for warning in record]
    assert len(messages) == 2
    assert "empty.png" in messages[0]
    assert "truncated.png" in messages[1]
    assert {Path(warning.filename).name for warning in record} == {Path(__file__).name}
    with pytest.raises(ImageReadError, match=r"empty\.png"):
        load_images(tmp_path, on_error="raise")
    with pytest.raises(ImageReadError, match=r"truncated\.png"):
        load_images([tmp_path / "square.png", tmp_path / "truncated.png"], on_error="raise")


def test_no_image_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing: cannot be listed"):
        load_images(tmp_path / "missing")
    with pytest.raises(InputError, match="holds no images"):
        load_images(tmp_path)
    with pytest.raises(InputError, match="list of images is empty"):
        load_images([])
    (tmp_path / "a.png").write_text("no")
    with pytest.warns(UserWarning, match="left out"), pytest.raises(InputError, match="none of the 1 images"):
        load_images(str(tmp_path))
    with pytest.raises(InputError, match="is a file, not a folder"):
        load_images(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm_type": "resnet"}, "unknown norm_type 'resnet'; choose one of dinov2, identity"),
        ({"stride": 0}, "stride"),
        ({"on_error": "ignore"}, "on_error"),
        ({"resize_mode": "none"}, "unknown resize_mode"),
        ({"resize_mode": "square"}, "needs a size"),
        ({"resolution_set": 1}, "resolution_set"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_images(IMAGES, **options)


def test_bad_lists() -> None:
    entries: Any = [IMAGES / "f.png", np.zeros(3)]
    with pytest.raises(InputError, match="entry 1 of the list is a ndarray"):
        load_images(entries)
    nothing: Any = None
    with pytest.raises(InputError, match="pass a folder or a list of image files, not NoneType"):
        load_images(nothing)


def test_verbose_prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    load_images([IMAGES / "f.png"], verbose=True)
    assert capsys.readouterr().out == "Loaded 1 images at 518x336 (width x height)\n"
    preprocess_inputs([GOOD], verbose=True)
    assert capsys.readouterr().out == "Preparing 1 views at 518x336 (width x height)\n"
    load_images([IMAGES / "f.png"])
    assert capsys.readouterr().out == ""


def test_depth_may_have_a_channel_axis() -> None:
    depth = np.arange(1, 1 + 30 * 40, dtype=np.float32).reshape(30, 40)
    view = {"img": np.zeros((30, 40, 3), np.uint8), "intrinsics": np.diag([40.0, 40.0, 1.0]).astype(np.float32)}
    view["intrinsics"][:2, 2] = 20, 15
    options = {"resize_mode": "fixed_size", "size": (28, 28)}
    plain, channel = (preprocess_inputs([{**view, "depth_z": d}], **options) for d in (depth, depth[..., None]))
    np.testing.assert_array_equal(plain[0]["depth_z"], channel[0]["depth_z"])
