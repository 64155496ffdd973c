"""Conversion of views against the reference's, and every refusal of unusable input."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapengine.runtime import geometry
from mapengine.runtime.errors import DataNormTypeError, ImageSizeError, InputError, ViewMismatchError
from mapengine.runtime.inputs.prepared import PreparedView, PreparedViews, prepare_views
from mapengine.runtime.options import InferOptions

DATA = Path(__file__).parents[2] / "data"
H, W = 28, 42
View = dict[str, Any]


def load_case(name: str) -> tuple[Any, list[View]]:
    """A golden file and the views that are its input."""
    stored = np.load(DATA / "v11_tiny" / f"{name}.npz")
    views: dict[int, View] = {}
    for key in stored.files:
        kind, index, *rest = key.split(".")
        if kind == "in":
            view = views.setdefault(int(index), {"data_norm_type": ["dinov2"]})
            if rest == ["camera_poses", "quats"]:
                view["camera_poses"] = (stored[key], stored[key.replace("quats", "trans")])
            elif len(rest) == 1:
                view[rest[0]] = stored[key]
    return stored, [views[index] for index in sorted(views)]


def make_view(batch: int = 1, seed: int = 0, **extra: Any) -> View:
    image = np.random.default_rng(seed).standard_normal((batch, 3, H, W)).astype(np.float32)
    return {"img": image, "data_norm_type": ["dinov2"], **extra}


def intrinsics(batch: int = 1) -> np.ndarray:
    return np.tile(np.array([[40, 0, 20], [0, 40, 14], [0, 0, 1]], np.float32), (batch, 1, 1))


def depth(batch: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(1, 3, (batch, H, W)).astype(np.float32)


def pose(batch: int = 1, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return geometry.pose_matrix(rng.standard_normal((batch, 4)), rng.standard_normal((batch, 3)))


def refused(error: type[Exception], match: str, *views: View, **options: Any) -> None:
    with pytest.raises(error, match=match):
        prepare_views(list(views), InferOptions(**options))


def values_of(view: PreparedView) -> dict[str, np.ndarray]:
    """What a view brings, by upstream's names."""
    quaternion, translation = view.pose or (None, None)
    values = {
        "is_metric_scale": view.is_metric,
        "ray_directions_cam": view.rays,
        "depth_along_ray": view.distance,
        "camera_pose_quats": quaternion,
        "camera_pose_trans": translation,
    }
    return {key: value for key, value in values.items() if value is not None}


# Against the reference


@pytest.mark.parametrize("name", ["all_2v", "depth_2v", "img_1v", "img_2v"])
def test_conversion_matches_the_reference(name: str) -> None:
    stored, views = load_case(f"cases/{name}")
    prepared = prepare_views(views)
    expected = [key for key in stored.files if key.startswith("pre.")]
    converted = [values_of(view) for view in prepared.views]
    for key in expected:
        _, index, quantity = key.split(".")
        found = converted[int(index)][quantity]
        is_pose = quantity.startswith("camera_pose")  # float64 until it is relative to view 0
        assert found.dtype == (np.float64 if is_pose else stored[key].dtype)
        np.testing.assert_allclose(found, stored[key], rtol=1e-6, atol=1e-6)
    assert len(expected) == sum(len(entry) for entry in converted)


def test_encoder_inputs_match_the_reference() -> None:
    stored, views = load_case("stages")
    prepared = prepare_views(views)
    first, second, third = prepared.geometry
    assert first is not None
    assert second is not None
    assert third is None
    np.testing.assert_allclose(first.rotation, stored["cam_rot_encoder.0"][:1], atol=1e-6)
    np.testing.assert_allclose(first.translation, stored["cam_trans_encoder.0"][:1], atol=1e-6)
    np.testing.assert_allclose(first.translation_log_scale, stored["cam_trans_scale_encoder.0"][:1], rtol=1e-6)
    np.testing.assert_allclose(first.depth_log_scale, stored["depth_scale_encoder.0"][:1], rtol=1e-6)
    np.testing.assert_array_equal(first.flags, [[True] * 5])
    np.testing.assert_array_equal(second.flags, [[True, False, False, False, False]])


@pytest.mark.parametrize("case", json.loads((DATA / "view_validation.json").read_text()), ids=lambda case: case["case"])
def test_the_reference_s_own_checks(case: dict[str, Any]) -> None:
    values = {**make_view(), "intrinsics": intrinsics(), "depth_z": depth(), "camera_poses": pose()}
    values["ray_directions"] = geometry.rays_from_intrinsics(intrinsics(), H, W)
    views = [{key: values.get(key, 1) for key in keys} for keys in case["views"]]
    if case["result"] == "ok":
        assert len(prepare_views(views).images) == len(views)
    else:
        assert case["result"] == "ValueError"
        with pytest.raises(ValueError, match=r"view"):
            prepare_views(views)


# What is accepted


def same(a: PreparedViews, b: PreparedViews) -> None:
    for one, other in zip(map(values_of, a.views), map(values_of, b.views), strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            np.testing.assert_allclose(value, other[key], atol=1e-6)


def test_documented_and_actual_forms_are_both_accepted() -> None:
    quaternion, translation = geometry.split_pose_matrix(pose(2))
    forms: list[View] = [
        {"depth_z": depth(2), "is_metric_scale": np.array([True, True]), "camera_poses": pose(2)},
        {"depth_z": depth(2)[..., None], "is_metric_scale": True, "camera_poses": (quaternion, translation)},
        {"depth_z": depth(2).astype(float), "is_metric_scale": [[1], [1]], "camera_poses": [quaternion, translation]},
        {"depth_z": depth(2).tolist(), "data_norm_type": "dinov2", "camera_poses": pose(2).tolist()},
        {"depth_z": depth(2), "intrinsics": intrinsics(2).astype(float), "camera_poses": pose(2).astype(np.float32)},
        {"depth_z": depth(2), "is_metric_scale": None, "ray_directions": None, "camera_poses": pose(2)},
    ]
    views = [{**make_view(2), "intrinsics": intrinsics(2), **form} for form in forms]
    expected = prepare_views([views[0]])
    for view in views[1:]:
        same(prepare_views([view]), expected)


def test_torch_tensors_are_accepted() -> None:
    class Tensor:  # what the runtime may use of a tensor, so that this test needs no torch
        def __init__(self, array: np.ndarray, bfloat16: bool = False) -> None:
            self.array, self.bfloat16 = array, bfloat16

        def detach(self) -> Tensor:
            return self

        def cpu(self) -> Tensor:
            return self

        def float(self) -> Tensor:
            return Tensor(self.array)

        def numpy(self) -> np.ndarray:
            if self.bfloat16:
                raise TypeError("Got unsupported ScalarType BFloat16")
            return self.array

    plain = {**make_view(), "intrinsics": intrinsics(), "camera_poses": geometry.split_pose_matrix(pose())}
    tensors = {
        "img": Tensor(plain["img"], bfloat16=True),
        "data_norm_type": ["dinov2"],
        "intrinsics": Tensor(plain["intrinsics"]),
        "camera_poses": tuple(Tensor(part) for part in plain["camera_poses"]),
    }
    same(prepare_views([tensors]), prepare_views([plain]))


def test_images_are_not_copied_and_views_not_changed() -> None:
    view = {**make_view(), "intrinsics": intrinsics(), "depth_z": depth(), "camera_poses": pose(), "instance": "7"}
    before = copy.deepcopy(view)
    prepared = prepare_views([view])
    assert prepared.images[0] is view["img"]
    assert (prepared.batch, prepared.height, prepared.width) == (1, H, W)
    assert view.keys() == before.keys()
    for key in ("img", "intrinsics", "depth_z", "camera_poses"):
        np.testing.assert_array_equal(view[key], before[key])


def test_other_floats_and_strides_are_converted() -> None:
    view = make_view()
    wide = view["img"].astype(np.float64)
    for image in (wide, view["img"].transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)):
        (result,) = prepare_views([{**view, "img": image}]).images
        assert result.dtype == np.float32
        assert result.flags["C_CONTIGUOUS"]
        np.testing.assert_array_equal(result, view["img"])


def test_three_digit_pose_files_and_zero_depth_are_accepted() -> None:
    rough = np.round(pose(), 3)
    views = [{**make_view(), "camera_poses": rough, "intrinsics": intrinsics(), "depth_z": 0 * depth()}]
    (only,) = prepare_views(views).geometry
    assert only is not None
    assert only.depth is not None
    assert not only.depth.any()
    np.testing.assert_allclose(only.depth_log_scale, np.log(2e-8), rtol=1e-6)


# Flags, ignored inputs, normalisation


def full_views() -> list[View]:
    first = {**make_view(2), "intrinsics": intrinsics(2), "depth_z": depth(2), "camera_poses": pose(2)}
    second = {**make_view(2, 1), "camera_poses": pose(2, 1), "is_metric_scale": np.array([True, False])}
    return [first, second, make_view(2, 2)]


@pytest.mark.parametrize(
    ("option", "first", "second"),
    [
        ("", "11111 11111", "00011 00010"),
        ("ignore_calibration_inputs", "01111 01111", "00011 00010"),
        ("ignore_depth_inputs", "10011 10011", "00011 00010"),
        ("ignore_pose_inputs", "11100 11100", ""),
        ("ignore_depth_scale_inputs", "11011 11011", "00011 00010"),
        ("ignore_pose_scale_inputs", "11110 11110", "00010 00010"),
    ],
)
def test_flags(option: str, first: str, second: str) -> None:
    prepared = prepare_views(full_views(), InferOptions(**({option: True} if option else {})))
    for geometry_inputs, expected in zip(prepared.geometry, (first, second, ""), strict=True):
        if not expected:
            assert geometry_inputs is None
            continue
        assert geometry_inputs is not None
        assert geometry_inputs.has_any
        assert [" ".join("".join(str(int(x)) for x in row) for row in geometry_inputs.flags)] == [expected]
        absent = [geometry_inputs.ray_directions, geometry_inputs.depth, geometry_inputs.rotation]
        for value, used in zip(absent, geometry_inputs.flags[0, [0, 1, 3]], strict=True):
            assert (value is not None) == used


def test_ignoring_everything_leaves_plain_images() -> None:
    ignored = {f"ignore_{name}_inputs": True for name in ("calibration", "depth", "pose")}
    prepared = prepare_views(full_views(), InferOptions(**ignored))
    assert prepared.geometry == [None, None, None]


def test_ignored_inputs_are_still_checked() -> None:
    refused(InputError, "negative", make_view(intrinsics=intrinsics(), depth_z=-depth()), ignore_depth_inputs=True)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.permutations([1, 2, 3]))
def test_the_order_of_the_other_views_and_the_world_frame_do_not_matter(seed: int, order: list[int]) -> None:
    poses = [pose(2, seed + index) for index in range(4)]
    move = pose(1, seed + 9)
    views = [make_view(2, camera_poses=matrix) for matrix in poses]
    moved = [make_view(2, camera_poses=move @ poses[index]) for index in (0, *order)]
    expected = prepare_views(views).geometry
    for index, found in zip((0, *order), prepare_views(moved).geometry, strict=True):
        wanted = expected[index]
        assert found is not None
        assert wanted is not None
        assert found.rotation is not None
        assert wanted.rotation is not None
        np.testing.assert_allclose(found.translation, wanted.translation, atol=1e-6)
        np.testing.assert_allclose(found.translation_log_scale, wanted.translation_log_scale, atol=1e-6)
        # q and -q are the same rotation.
        np.testing.assert_allclose(abs((found.rotation * wanted.rotation).sum(-1)), 1, atol=1e-6)


def test_a_view_without_a_pose_does_not_count_in_the_mean_distance() -> None:
    posed = [make_view(camera_poses=pose(seed=index)) for index in range(3)]
    with_plain = [posed[0], make_view(), *posed[1:]]
    expected = [item for item in prepare_views(posed).geometry if item is not None]
    found = [item for item in prepare_views(with_plain).geometry if item is not None]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.translation, b.translation, atol=1e-6)


# What is refused


def test_views_that_are_no_list_of_dictionaries() -> None:
    unusable: list[Any] = [{}, make_view(), "abc", None, 3, np.zeros(3)]
    for views in unusable:
        with pytest.raises(InputError, match="list of dictionaries"):
            prepare_views(views)
    mixed: list[Any] = [make_view(), "x"]
    with pytest.raises(InputError, match="view 1: is a str"):
        prepare_views(mixed)
    with pytest.raises(InputError, match="empty"):
        prepare_views([])


def test_unknown_and_missing_keys() -> None:
    refused(InputError, "view 1: unknown key 'depth'.*'depth_z'", make_view(), make_view(depth=1))
    refused(InputError, "unknown key 'camera_pose'.*'camera_poses'", make_view(camera_pose=1))
    refused(InputError, "view 0: unknown key '3'", {**make_view(), "3": 1})
    refused(InputError, "view 0: img is missing", {"data_norm_type": ["dinov2"]})
    refused(InputError, "data_norm_type is missing", {"img": make_view()["img"]})


def test_keys_that_exclude_or_need_each_other() -> None:
    rays = geometry.rays_from_intrinsics(intrinsics(), H, W)
    refused(InputError, "both intrinsics and ray_directions", make_view(intrinsics=intrinsics(), ray_directions=rays))
    refused(InputError, "depth_z needs the calibration", make_view(depth_z=depth()))
    refused(InputError, "view 1: camera_poses is given but view 0", make_view(), make_view(camera_poses=pose()))


@pytest.mark.parametrize(
    ("image", "error", "match"),
    [
        (np.zeros((1, 3, 28, 42), np.uint8), InputError, "uint8 pixels; normalise it"),
        (np.zeros((3, 28, 42), np.float32), InputError, "lacks the batch axis"),
        (np.zeros((1, 28, 42, 3), np.float32), InputError, "channels come last"),
        (np.zeros((1, 1, 28, 42), np.float32), InputError, r"\(B, 3, H, W\)"),
        (np.zeros((0, 3, 28, 42), np.float32), InputError, r"\(B, 3, H, W\)"),
        (np.zeros((1, 3, 28, 41), np.float32), ImageSizeError, "41x28 pixels.*multiples of 14"),
        (np.zeros((1, 3, 0, 14), np.float32), ImageSizeError, "multiples of 14"),
        (np.full((1, 3, 28, 42), np.nan, np.float32), InputError, "NaN"),
        (np.full((1, 3, 28, 42), np.inf, np.float32), InputError, "NaN or infinite"),
        (np.full((1, 3, 28, 42), 1e300), InputError, "NaN or infinite"),
        (np.full((1, 3, 28, 42), 255.0), InputError, "not normalised"),
        ([[1, 2], [3]], InputError, "is not a rectangular array"),
        ("a.jpg", InputError, "array of numbers"),
    ],
)
def test_images(image: Any, error: type[Exception], match: str) -> None:
    refused(error, f"view 1: img.*{match}", make_view(), {"img": image, "data_norm_type": ["dinov2"]})


def test_images_of_another_size_or_encoder() -> None:
    small = {"img": np.zeros((1, 3, 14, 42), np.float32), "data_norm_type": ["dinov2"]}
    refused(ViewMismatchError, "view 1: img has shape.*view 0", make_view(), small)
    refused(ViewMismatchError, "view 1", make_view(1), make_view(2))
    for name in (["croco"], "croco", [], 3, ["dinov2", "croco"]):
        refused(DataNormTypeError, "view 0: data_norm_type", {**make_view(), "data_norm_type": name})
    with pytest.raises(AssertionError):  # what upstream raises
        prepare_views([{**make_view(), "data_norm_type": ["croco"]}])


def changed(matrix: np.ndarray, row: int, column: int, value: float) -> np.ndarray:
    matrix = matrix.copy()
    matrix[0, row, column] = value
    return matrix


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (changed(intrinsics(), 0, 0, np.nan), "NaN"),
        (changed(intrinsics(), 1, 1, -40), "focal length -40"),
        (changed(intrinsics(), 0, 0, 0), "focal length 0"),
        (changed(intrinsics(), 0, 0, 0.8), "as a fraction of the image"),
        (changed(intrinsics(), 0, 2, 1e30), "which no camera has"),
        (intrinsics().swapaxes(1, 2), "transposed"),
        (intrinsics()[0], r"has shape \(3, 3\)"),
        (intrinsics(2), r"has shape \(2, 3, 3\); it must be \(1, 3, 3\)"),
    ],
)
def test_intrinsics(value: np.ndarray, match: str) -> None:
    refused(InputError, f"view 1: intrinsics.*{match}", make_view(), make_view(intrinsics=value))


def test_rays() -> None:
    rays = geometry.rays_from_intrinsics(intrinsics(), H, W)
    zero, infinite, long = rays.copy(), rays.copy(), rays.copy()
    zero[0, 3, 4], infinite[0, 3, 4, 0], long[0, 3, 4] = 0, np.inf, 1e30
    refused(InputError, "view 0: ray_directions has a ray of length 0", make_view(ray_directions=zero))
    refused(InputError, "view 0: ray_directions holds NaN or inf", make_view(ray_directions=infinite))
    refused(InputError, "view 0: ray_directions has a ray of length", make_view(ray_directions=long))
    refused(InputError, "ray_directions has shape", make_view(ray_directions=rays[:, :14]))
    flat = rays.copy()
    flat[0, 3, 4] = (1, 0, 0)
    refused(InputError, "depth_z is positive where the ray", make_view(ray_directions=flat, depth_z=depth()))
    sparse = depth()
    sparse[0, 3, 4] = 0
    (only,) = prepare_views([make_view(ray_directions=flat, depth_z=sparse)]).geometry
    assert only is not None
    assert only.depth is not None
    assert np.isfinite(only.depth).all()


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (depth()[:, :14], r"has shape \(1, 14, 42\), the image \(1, 28, 42\)"),
        (depth()[0], "has shape"),
        (-depth(), "negative somewhere.*use 0"),
        (np.where(depth() > 2, np.nan, depth()), "NaN.*use 0"),
        (np.where(depth() > 2, np.inf, depth()), "infinite.*use 0"),
        (np.where(depth() > 2, np.finfo(np.float32).max, depth()), "no distance; use 0"),
        ((depth() * 1000).astype(np.uint16), "uint16 values.*divide millimetres by 1000"),
    ],
)
def test_depth(value: np.ndarray, match: str) -> None:
    refused(InputError, f"view 0: depth_z.*{match}", make_view(intrinsics=intrinsics(), depth_z=value))


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (pose()[0], r"has shape \(4, 4\)"),
        (pose()[:, :3], r"has shape \(1, 3, 4\)"),
        (pose().swapaxes(1, 2), "transposed"),
        (changed(pose(), 0, 3, np.nan), "NaN"),
        (changed(pose(), 0, 3, np.inf), "infinite"),
        (pose() * np.array([[1.1], [1.1], [1.1], [1]]), "off orthonormal by 0.21.*remove scale"),
        (pose() @ np.diag([1.0, 1, -1, 1]), "mirrors.*OpenCV axes"),
        ((np.zeros((1, 4)), np.zeros((1, 3))), "quaternion of length 0"),
        ((np.full((1, 4), 1e200), np.zeros((1, 3))), "quaternion of length"),
        ((np.ones((1, 4)), np.full((1, 3), np.nan)), r"\(translation\) holds NaN"),
        ((np.ones((2, 4)), np.ones((1, 3))), r"\(quaternion\) has shape \(2, 4\)"),
        ((np.ones((1, 3)), np.ones((1, 4))), "rectangular|has shape"),
        ("abcd", "array of numbers"),
    ],
)
def test_poses(value: Any, match: str) -> None:
    refused(
        InputError, f"view 1: camera_poses.*({match})", make_view(camera_poses=pose()), make_view(camera_poses=value)
    )


@pytest.mark.parametrize("value", [np.array([True, False]), 2.5, "yes", np.nan, np.ones((1, 1, 1))])
def test_metric_flags(value: Any) -> None:
    refused(InputError, "view 0: is_metric_scale", make_view(is_metric_scale=value))
