"""Results in the world of the poses that were given: the transform, its residual, and that everything moves with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from mapengine.calibration.data.samples import sample_views
from mapengine.runtime import Engine, InputError, Scene
from mapengine.runtime.geometry import quaternion_to_matrix
from mapengine.runtime.inputs.sources import read_views
from mapengine.runtime.options import InferOptions
from mapengine.runtime.outputs.frame import Alignment, align_cameras, alignment_of, move_arrays, moved_prediction
from mapengine.runtime.outputs.scene_arrays import SHAPES
from mapengine.runtime.outputs.view_files import load_view, save_views

Array = np.ndarray[Any, Any]
Predictions = list[dict[str, Any]]
SIZE = (56, 42)


def rotation(rng: np.random.Generator) -> Array:
    return quaternion_to_matrix(rng.normal(size=4))


def cameras(rng: np.random.Generator, count: int, layout: str = "free") -> Array:
    poses = np.tile(np.eye(4), (count, 1, 1))
    for index, pose in enumerate(poses):
        pose[:3, :3] = rotation(rng)
        pose[:3, 3] = {"free": rng.normal(size=3), "line": (index, 2 * index, -index), "place": (1, 2, 3)}[layout]
    return poses


def transformed(poses: Array, turn: Array, scale: float, shift: Array) -> Array:
    result = poses.copy()
    result[:, :3, :3] = turn @ poses[:, :3, :3]
    result[:, :3, 3] = scale * poses[:, :3, 3] @ turn.T + shift
    return result


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 6),
    layout=st.sampled_from(["free", "line", "place"]),
    scale=st.floats(0.001, 1000),
    far=st.sampled_from([0, 1, 1e6]),
    metric=st.booleans(),
)
def test_the_transform_is_found(seed: int, count: int, layout: str, scale: float, far: float, metric: bool) -> None:
    rng = np.random.default_rng(seed)
    has_scale = not metric and count > 1 and layout != "place"
    scale = scale if has_scale else 1.0
    predicted, turn, shift = cameras(rng, count, layout), rotation(rng), far * rng.normal(size=3)
    found = align_cameras(predicted, transformed(predicted, turn, scale, shift), metric)
    np.testing.assert_allclose(found.rotation, turn, atol=1e-6)
    assert found.scale == pytest.approx(scale, rel=1e-6)
    if not has_scale:
        assert found.scale == 1
    assert np.abs(found.translation - shift).max() < 1e-7 * (1 + far) + 1e-6 * scale
    assert found.translation_error < 1e-6 * scale + 1e-8 * far
    assert found.rotation_error < 1e-4
    assert bool(found.note) == (not metric and not has_scale)
    assert (found.cameras, found.metric) == (count, metric)
    np.testing.assert_allclose(found.poses(predicted), transformed(predicted, turn, scale, shift), atol=1e-3, rtol=1e-6)


@pytest.mark.parametrize("metric", [True, False])
def test_no_other_transform_fits_better(metric: bool) -> None:
    rng = np.random.default_rng(4)
    predicted, given_poses = cameras(rng, 8), []
    for pose in transformed(predicted, rotation(rng), 1.0 if metric else 3.0, rng.normal(size=3)):
        noise = quaternion_to_matrix(np.array([*rng.normal(scale=0.02, size=3), 1]))
        given_poses.append(pose.copy())
        given_poses[-1][:3, :3] = noise @ pose[:3, :3]
        given_poses[-1][:3, 3] += rng.normal(scale=0.05, size=3)
    wanted = np.array(given_poses)
    found = align_cameras(predicted, wanted, metric)
    spread = np.sqrt(np.square(wanted[:, :3, 3] - wanted[:, :3, 3].mean(0)).sum(-1).mean())

    def cost(turn: Array, scale: float, shift: Array) -> float:
        moved = transformed(predicted, turn, scale, shift)
        centres = np.square(moved[:, :3, 3] - wanted[:, :3, 3]).sum() / spread**2
        return float(centres + np.square(moved[:, :3, :3] - wanted[:, :3, :3]).sum())

    best = cost(found.rotation, found.scale, found.translation)
    assert 0.01 < found.translation_error < 0.3
    assert 0.5 < found.rotation_error < 5
    moved = found.poses(predicted)
    centres = np.linalg.norm(moved[:, :3, 3] - wanted[:, :3, 3], axis=-1)
    assert found.translation_error == pytest.approx(np.sqrt(np.mean(centres**2)), rel=1e-5)
    cosines = (np.einsum("nij,nij->n", moved[:, :3, :3], wanted[:, :3, :3]) - 1) / 2
    assert found.rotation_error == pytest.approx(np.degrees(np.sqrt(np.mean(np.arccos(cosines) ** 2))), rel=1e-2)
    for _ in range(100):
        turn = quaternion_to_matrix(np.array([*rng.normal(scale=0.01, size=3), 1])) @ found.rotation
        scale = found.scale if metric else found.scale * (1 + rng.normal(scale=0.01))
        shift = wanted[:, :3, 3].mean(0) - scale * turn @ predicted[:, :3, 3].mean(0) + rng.normal(scale=0.01, size=3)
        assert cost(turn, scale, shift) > best - 1e-3 * best


def test_cameras_that_do_not_follow_keep_the_networks_scale() -> None:
    rng = np.random.default_rng(0)
    predicted = cameras(rng, 3)
    given_poses = predicted.copy()
    given_poses[:, :3, 3] *= -1
    found = align_cameras(predicted, given_poses, False)
    assert found.scale == 1
    assert "do not follow" in found.note
    assert "do not follow" in str(found)


def test_a_mirror_image_is_not_reached_by_a_reflection() -> None:
    rng = np.random.default_rng(1)
    predicted = cameras(rng, 5)
    given_poses = predicted.copy()
    given_poses[:, 2, 3] *= -1
    found = align_cameras(predicted, given_poses, True)
    assert np.linalg.det(found.rotation) == pytest.approx(1)


def unprojected(arrays: dict[str, Array], view: int) -> Array:
    """Points of a view, from its depth, intrinsics and pose."""
    height, width = arrays["depth"].shape[1:]
    v, u = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    k = arrays["intrinsics"][view].astype(np.float64)
    rays = np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones_like(u)], axis=-1)
    pose = arrays["poses"][view].astype(np.float64)
    return np.asarray((rays * arrays["depth"][view][..., None]) @ pose[:3, :3].T + pose[:3, 3])


def an_alignment(scale: float, far: float) -> Alignment:
    rng = np.random.default_rng(2)
    predicted = cameras(rng, 4)
    return align_cameras(
        predicted, transformed(predicted, rotation(rng), scale, far * np.array([1.0, -2, 0.5])), scale == 1
    )


@pytest.mark.parametrize(("scale", "far"), [(1.0, 1.0), (2.5, 1.0), (0.01, 0), (2.5, 4e6)])
def test_a_moved_scene_is_its_unprojected_depth(predictions: Predictions, scale: float, far: float) -> None:
    scene = Scene.from_predictions(predictions)
    before = {name: getattr(scene, name) for name in SHAPES}
    moved = {name: value.copy() for name, value in before.items()}
    alignment = an_alignment(scale, far)
    move_arrays(moved, alignment)
    mask = scene.mask
    wanted = before["points"] @ (alignment.scale * alignment.rotation.T) + alignment.translation
    assert moved["points"].dtype == moved["poses"].dtype == (np.float64 if far == 4e6 else np.float32)
    np.testing.assert_allclose(moved["points"][mask], wanted[mask], atol=1e-5 * scale + 1e-6)
    assert not moved["points"][~mask].any()
    np.testing.assert_array_equal(moved["intrinsics"], before["intrinsics"])
    np.testing.assert_allclose(moved["depth"], before["depth"] * scale, rtol=1e-6)
    for view in range(2):
        found = unprojected(moved, view)[mask[view]]
        np.testing.assert_allclose(moved["points"][view][mask[view]], found, atol=2e-5 * max(scale, 1))


def test_a_moved_prediction_agrees_with_a_moved_scene(small: Engine) -> None:
    views = [{"img": np.zeros((1, 3, 42, 56), np.float32) + i, "data_norm_type": ["dinov2"]} for i in range(2)]
    predictions = small.infer(views)
    scene = Scene.from_predictions(predictions)
    alignment = an_alignment(2.5, 1.0)
    arrays = {name: getattr(scene, name) for name in SHAPES}
    move_arrays(arrays, alignment)
    moved = [moved_prediction(prediction, alignment) for prediction in predictions]
    again = Scene.from_predictions(moved)
    for name in SHAPES:
        np.testing.assert_allclose(getattr(again, name), arrays[name], rtol=1e-6, atol=1e-7, err_msg=name)
    assert again.metric_scale == pytest.approx(scene.metric_scale * 2.5)
    for one, other in zip(moved, predictions, strict=True):
        assert one.keys() == other.keys()
        assert {key: value.dtype for key, value in one.items()} == {key: value.dtype for key, value in other.items()}
        np.testing.assert_allclose(one["pts3d_cam"], other["pts3d_cam"] * 2.5, rtol=1e-6)
        np.testing.assert_allclose(one["depth_along_ray"], other["depth_along_ray"] * 2.5, rtol=1e-6)
        np.testing.assert_allclose(quaternion_to_matrix(one["cam_quats"]), one["camera_poses"][:, :3, :3], atol=1e-5)
        np.testing.assert_array_equal(one["cam_trans"], one["camera_poses"][:, :3, 3])


# ---- through an engine ----------------------------------------------------------------------------------------------


def posed(count: int = 3, shift: float = 3.0) -> tuple[list[Array], list[Array]]:
    rng = np.random.default_rng(7)
    world = np.eye(4)
    world[:3, :3], world[:3, 3] = rotation(rng), shift * rng.normal(size=3)
    samples = sample_views(count, width=80, height=60)
    return [sample.image for sample in samples], [world @ sample.pose for sample in samples]


def check_moved(scene: Scene, own: Scene) -> None:
    """Whether two scenes differ by the alignment of the first."""
    alignment = scene.alignment
    assert alignment is not None
    np.testing.assert_array_equal(scene.mask, own.mask)
    wanted = own.points @ (alignment.scale * alignment.rotation.T) + alignment.translation
    np.testing.assert_allclose(scene.points[scene.mask], wanted[own.mask], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scene.depth, own.depth * alignment.scale, rtol=1e-6)
    assert scene.metric_scale == pytest.approx(own.metric_scale * alignment.scale)
    np.testing.assert_array_equal(scene.intrinsics, own.intrinsics)


@pytest.mark.parametrize("some", [[0, 1, 2], [0, 2], [0]])
@pytest.mark.parametrize("metric", [True, False])
def test_a_reconstruction_is_in_the_world_of_its_poses(small: Engine, some: list[int], metric: bool) -> None:
    images, poses = posed()
    known = [pose if index in some else None for index, pose in enumerate(poses)]
    scene = small.reconstruct(images, poses=known, metric=metric, size=SIZE)
    own = small.reconstruct(images, poses=known, metric=metric, size=SIZE, frame="view0")
    assert (scene.frame, own.frame, own.alignment) == ("given", "view0", None)
    check_moved(scene, own)
    alignment = scene.alignment
    assert alignment is not None
    expected = align_cameras(own.poses[some], np.array(poses)[some], metric)
    np.testing.assert_allclose(alignment.matrix, expected.matrix, atol=1e-9)
    assert (alignment.cameras, alignment.metric, alignment.note) == (len(some), metric, expected.note)
    assert alignment.translation_error == pytest.approx(expected.translation_error, rel=1e-6, abs=1e-9)
    assert alignment.rotation_error == pytest.approx(expected.rotation_error, rel=1e-6, abs=1e-5)
    if metric:
        assert alignment.scale == 1
    if some == [0]:
        np.testing.assert_allclose(scene.poses[0], poses[0], atol=1e-5)


def test_poses_that_are_ignored_or_absent_leave_the_frame_of_view_0(small: Engine) -> None:
    images, poses = posed()
    assert small.reconstruct(images, size=SIZE).frame == "view0"
    assert small.reconstruct(images, poses=poses, size=SIZE, ignore_pose_inputs=True).frame == "view0"
    scaled = small.reconstruct(images, poses=poses, size=SIZE, ignore_pose_scale_inputs=True).alignment
    assert scaled is not None
    assert not scaled.metric
    with pytest.raises(InputError, match="frame is 'world'; choose given or view0"):
        small.reconstruct(["missing.png"], size=SIZE, frame="world")


def test_map_coordinates_keep_their_digits(small: Engine, tmp_path: Path) -> None:
    images, poses = posed(shift=0)
    near = small.reconstruct(images, poses=poses, size=SIZE)
    shift = np.array([5e5, 5.3e6, 120.25])
    for pose in poses:
        pose[:3, 3] += shift
    far = small.reconstruct(images, poses=poses, size=SIZE)
    assert far.points.dtype == far.poses.dtype == np.float64
    np.testing.assert_allclose(far.points[far.mask] - shift, near.points[near.mask], atol=1e-4)
    np.testing.assert_allclose(far.poses[:, :3, 3] - shift, near.poses[:, :3, 3], atol=1e-4)
    for name, flip, digits in (("far.ply", (1, 1, 1), 1e-4), ("far.glb", (1, -1, -1), 1e-3)):
        cloud = trimesh.load(far.save(tmp_path / name))
        if isinstance(cloud, trimesh.Scene):
            node = next(name for name in cloud.graph.nodes_geometry if "camera" not in name)
            matrix, geometry = cloud.graph[node]
            cloud = cloud.geometry[geometry].apply_transform(matrix)
        np.testing.assert_allclose(np.array(cloud.vertices) * flip - shift, near.point_cloud()[0], atol=digits)
    far.save(tmp_path / "far.npz")
    again = Scene.load(tmp_path / "far.npz")
    np.testing.assert_array_equal(again.points, far.points)
    np.testing.assert_array_equal(again.poses, far.poses)


def test_an_archive_keeps_frame_and_original_pixels(small: Engine, tmp_path: Path) -> None:
    images, poses = posed()
    scene = small.reconstruct(images, poses=poses, size=SIZE, metric=False)
    scene.save(tmp_path / "s.npz")
    again = Scene.load(tmp_path / "s.npz")
    assert scene.alignment is not None
    assert again.alignment is not None
    assert again.alignment.facts() == scene.alignment.facts()
    assert scene.original_pixels is not None
    assert scene.original_sizes is not None
    np.testing.assert_array_equal(again.original_pixels, scene.original_pixels)
    np.testing.assert_array_equal(again.original_sizes, [[80, 60]] * 3)
    with np.load(tmp_path / "s.npz") as archive:
        arrays = dict(archive)
    del arrays["alignment_scale"]
    np.savez(tmp_path / "damaged.npz", **arrays)
    with pytest.raises(InputError, match=r"damaged \(alignment_scale is missing\)"):
        Scene.load(tmp_path / "damaged.npz")


@pytest.mark.parametrize("half", [False, True])
def test_streamed_views_are_those_of_the_scene(small: Engine, tmp_path: Path, half: bool) -> None:
    images, poses = posed()
    raw = read_views(images, poses=poses, metric=False)
    scene = small.reconstruct_views(raw, size=SIZE)
    prepared = small.prepare(raw, size=SIZE)
    files = save_views(
        tmp_path / "views",
        small.infer_stream(prepared),
        ["a", "b", "c"],
        original_pixels=[view.original_pixels for view in prepared],
        align=lambda poses: alignment_of(poses, prepared, InferOptions()),
        half=half,
    )
    assert sorted(path.name for path in (tmp_path / "views").iterdir()) == [path.name for path in files]
    assert scene.original_pixels is not None
    for index, file in enumerate(files):
        view = load_view(file)
        assert (str(view["frame"]), str(view["name"])) == ("given", "abc"[index])
        assert view["pts3d"].dtype == (np.float16 if half else np.float32)
        np.testing.assert_allclose(view["pts3d"][0], scene.points[index], rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(view["depth_z"][0, ..., 0], scene.depth[index], rtol=1e-3)
        np.testing.assert_array_equal(view["camera_poses"][0], scene.poses[index])
        np.testing.assert_array_equal(view["original_pixels"], scene.original_pixels[index])
        assert view["metric_scaling_factor"] == pytest.approx(scene.metric_scale)
        np.testing.assert_array_equal(view["alignment_rotation"], scene.alignment.rotation)  # type: ignore[union-attr]


def test_views_that_wait_leave_nothing_when_the_stream_ends_early(tmp_path: Path) -> None:
    def views() -> Any:
        yield {"camera_poses": np.eye(4, dtype=np.float32)[None]}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="no views are complete"):
        save_views(tmp_path / "views", views(), align=lambda _: None)
    assert list((tmp_path / "views").iterdir()) == []


def test_frame_of_views_without_poses(tmp_path: Path, room_predictions: Callable[..., Predictions]) -> None:
    files = save_views(tmp_path / "views", room_predictions(1))
    assert str(load_view(files[0])["frame"]) == "view0"


def test_predicted_poses_that_are_not_finite_leave_the_frame_of_view_0_and_that_is_said(small: Engine) -> None:
    images, poses = posed(2)
    prepared = small.prepare(read_views(images, poses=[None, poses[1]]), size=SIZE)
    lost = np.full((4, 4), np.nan, np.float32)
    with pytest.warns(UserWarning, match=r"no finite pose of a view whose pose was given.* camera of view 0"):
        assert alignment_of([np.eye(4, dtype=np.float32), lost], prepared, InferOptions()) is None
    kept = alignment_of([lost, np.eye(4, dtype=np.float32)], prepared, InferOptions())
    assert kept is not None
    assert kept.cameras == 1
