from __future__ import annotations

import errno
import io
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapengine.runtime.errors import InputError, OutputError
from mapengine.runtime.outputs.scene import Scene

Predictions = list[dict[str, Any]]
FIELDS = ("points", "colors", "depth", "confidence", "mask", "intrinsics", "poses")


def test_repr_is_one_short_line(scene: Scene, empty: Scene) -> None:
    assert repr(scene) == f"Scene(2 views of 56x42, {int(scene.mask.sum())} points, metric_scale=1.5)"
    scene.names = ["a\nb"] * 2
    assert "\n" not in repr(scene) + repr(empty)
    assert len(repr(scene)) < 100


def test_fields(scene: Scene, predictions: Predictions) -> None:
    assert scene.points.shape == scene.colors.shape == (2, 42, 56, 3)
    assert scene.depth.shape == scene.confidence.shape == scene.mask.shape == (2, 42, 56)
    assert scene.intrinsics.shape == (2, 3, 3)
    assert scene.poses.shape == (2, 4, 4)
    assert [getattr(scene, name).dtype for name in FIELDS] == [
        *("float32", "uint8", "float32", "float32", "bool", "float32", "float32")
    ]
    assert scene.metric_scale == 1.5
    assert scene.names == ["a.jpg", "b.jpg"]
    np.testing.assert_array_equal(scene.points[1], predictions[1]["pts3d"][0])
    np.testing.assert_array_equal(scene.colors[0] / np.float32(255), predictions[0]["img_no_norm"][0])
    np.testing.assert_array_equal(scene.mask[0], predictions[0]["mask"][0, ..., 0])


def test_batch_index_takes_that_sample(room_predictions: Callable[..., Predictions]) -> None:
    predictions = room_predictions(1, 28, 28, batch=3)
    for key in ("pts3d", "conf", "camera_poses"):
        predictions[0][key] = predictions[0][key] * np.arange(1, 4).reshape(3, *[1] * (predictions[0][key].ndim - 1))
    scenes = [Scene.from_predictions(predictions, batch_index=i) for i in range(3)]
    for i in (1, 2):
        np.testing.assert_allclose(scenes[i].points, (i + 1) * scenes[0].points, rtol=1e-6)
        np.testing.assert_allclose(scenes[i].poses, (i + 1) * scenes[0].poses, rtol=1e-6)
    with pytest.raises(InputError, match="batch_index 3 is outside the batch of 3"):
        Scene.from_predictions(predictions, batch_index=3)


def test_without_mask_the_non_ambiguous_mask_counts(predictions: Predictions) -> None:
    for prediction in predictions:
        del prediction["mask"]
    predictions[0]["non_ambiguous_mask"][:, :5] = False
    del predictions[1]["non_ambiguous_mask"]
    scene = Scene.from_predictions(predictions)
    assert not scene.mask[0, :5].any()
    assert scene.mask[0, 5:, 10:].all()
    assert scene.mask[1].all()


@pytest.mark.parametrize("key", ["pts3d", "conf", "depth_z", "intrinsics", "camera_poses", "img_no_norm"])
def test_missing_and_misshapen_keys_are_named(predictions: Predictions, key: str) -> None:
    value = predictions[1].pop(key)
    with pytest.raises(InputError, match=f"view 1: the prediction lacks {key}"):
        Scene.from_predictions(predictions)
    predictions[1][key] = value[0]
    with pytest.raises(InputError, match=f"view 1: {key} has shape"):
        Scene.from_predictions(predictions)


def test_refuses_nothing_different_sizes_and_wrong_names(predictions: Predictions) -> None:
    with pytest.raises(InputError, match="no predictions"):
        Scene.from_predictions([])
    with pytest.raises(InputError, match="3 names for 2 views"):
        Scene.from_predictions(predictions, names=["a", "b", "c"])
    predictions[1]["pts3d"] = predictions[1]["pts3d"][:, :-14]
    with pytest.raises(InputError, match="differ in size"):
        Scene.from_predictions(predictions)


def test_refuses_arrays_that_do_not_fit(scene: Scene) -> None:
    values = {name: getattr(scene, name) for name in FIELDS}
    for name in FIELDS:
        with pytest.raises(InputError, match=r"scene: .* has shape"):
            Scene(**{**values, name: values[name][:1]})
    with pytest.raises(InputError, match="no view or no pixel"):
        Scene(**{name: value[:0] for name, value in values.items()})


def test_arrays_stay_the_callers_unless_a_scene_may_have_them(scene: Scene) -> None:
    arrays = {name: getattr(scene, name).copy() for name in FIELDS}
    arrays["points"][0, 0, 0] = np.nan
    copied = Scene(**arrays)
    assert not any(np.shares_memory(getattr(copied, name), arrays[name]) for name in FIELDS)
    assert np.isnan(arrays["points"][0, 0, 0]).all()
    taken = Scene(**arrays, copy=False)
    assert all(getattr(taken, name) is arrays[name] for name in FIELDS)
    np.testing.assert_array_equal(taken.points, copied.points)


def test_points_that_are_not_finite_are_masked(predictions: Predictions) -> None:
    predictions[0]["pts3d"][0, 20, 30, 1] = np.nan
    predictions[0]["pts3d"][0, 21, 30] = np.inf
    predictions[1]["depth_z"][0, 22, 30] = -np.inf
    predictions[1]["conf"][0, 23, 30] = np.nan
    scene = Scene.from_predictions(predictions)
    assert not scene.mask[0, 20, 30]
    assert not scene.mask[0, 21, 30]
    assert not scene.mask[1, 22, 30]
    assert all(np.isfinite(getattr(scene, name)).all() for name in FIELDS)
    assert np.isfinite(scene.point_cloud()[0]).all()


def test_point_cloud_is_the_masked_pixels_in_order(scene: Scene) -> None:
    points, colors = scene.point_cloud()
    np.testing.assert_array_equal(points, np.concatenate([p[m] for p, m in zip(scene.points, scene.mask, strict=True)]))
    np.testing.assert_array_equal(colors, scene.colors[scene.mask])
    assert points.dtype == np.float32
    assert colors.dtype == np.uint8


def test_confidence_percentile_is_per_view(scene: Scene) -> None:
    scene.confidence[1] *= 100
    counts = scene.mask.sum(axis=(1, 2))
    kept = scene.selection(confidence_percentile=40)
    np.testing.assert_allclose(kept.sum(axis=(1, 2)), 0.6 * counts, rtol=0.02)
    for view in range(2):
        dropped = scene.mask[view] & ~kept[view]
        assert scene.confidence[view][kept[view]].min() >= scene.confidence[view][dropped].max()


@settings(max_examples=20, deadline=None)
@given(limit=st.integers(0, 5000), percentile=st.floats(0, 100))
def test_max_points_is_exact_and_repeatable(limit: int, percentile: float) -> None:
    rng = np.random.default_rng(3)
    mask = rng.random((2, 20, 30)) < 0.7
    scene = Scene(
        points=rng.normal(size=(2, 20, 30, 3)),
        colors=np.zeros((2, 20, 30, 3), np.uint8),
        depth=np.ones((2, 20, 30)),
        confidence=rng.random((2, 20, 30)),
        mask=mask,
        intrinsics=np.stack([np.eye(3)] * 2),
        poses=np.stack([np.eye(4)] * 2),
    )
    all_points = scene.selection(None, percentile)
    kept = scene.selection(limit, percentile)
    assert kept.sum() == min(limit, all_points.sum())
    assert not (kept & ~all_points).any()
    np.testing.assert_array_equal(kept, scene.selection(limit, percentile))


def test_bad_options_are_refused(scene: Scene, tmp_path: Path) -> None:
    for options in ({"max_points": -1}, {"confidence_percentile": 101}, {"confidence_percentile": float("nan")}):
        with pytest.raises(InputError, match=next(iter(options))):
            scene.save(tmp_path / "x.ply", **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"saved as \.obj; use \.glb, \.ply, .*\.npz"):
        scene.save(tmp_path / "x.obj")
    with pytest.raises(InputError, match="'obj' is not known; choose one of glb, ply, "):
        scene.save(tmp_path / "x", format="obj")
    with pytest.raises(InputError, match="no option 'max_point'; the nearest is 'max_points'"):
        scene.save(tmp_path / "x.ply", max_point=3)
    assert list(tmp_path.iterdir()) == []


def test_npz_round_trip(scene: Scene, tmp_path: Path) -> None:
    assert scene.save(tmp_path / "new" / "scene.npz") == tmp_path / "new" / "scene.npz"
    loaded = Scene.load(tmp_path / "new" / "scene.npz")
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(loaded, name), getattr(scene, name))
        assert getattr(loaded, name).dtype == getattr(scene, name).dtype
    assert (loaded.names, loaded.metric_scale) == (scene.names, 1.5)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["scene.npz"]


def rewritten(path: Path, **changes: Any) -> Path:
    with np.load(path) as archive:
        values = {**archive, **changes}
    np.savez(path, **{key: value for key, value in values.items() if value is not None})
    return path


def test_load_refuses_what_is_no_scene(scene: Scene, tmp_path: Path) -> None:
    good = scene.save(tmp_path / "good.npz").read_bytes()
    path = tmp_path / "bad.npz"

    def refused(message: str, **changes: Any) -> None:
        path.write_bytes(good)
        with pytest.raises(InputError, match=message):
            Scene.load(rewritten(path, **changes))

    refused("version 2, this mapengine reads 1", version=np.int64(2))
    refused("is not a scene", version=None)
    refused("is not a scene", points=None)
    refused("is not a scene", names=np.array([{}, {}], dtype=object))
    refused("names or metric_scale", names=np.array(["a", "b"])[:, None])
    refused("1 names for 2 views", names=np.array(["a"]))
    refused("points is float64", points=scene.points.astype(np.float64))
    refused("depth has shape", depth=scene.depth[:, :-1])
    for content in (b"", b"PK", b"not a zip file at all", good[: len(good) // 2], good[:-30]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="is not a scene"):
            Scene.load(path)
    with pytest.raises(InputError, match="no such file"):
        Scene.load(tmp_path / "missing.npz")
    with pytest.raises(InputError, match="is not a scene"):
        Scene.load(tmp_path)
    np.save(tmp_path / "array.npy", scene.points)
    with pytest.raises(InputError, match="is not a scene"):
        Scene.load(tmp_path / "array.npy")


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(position=st.floats(0, 1), value=st.integers(0, 255))
def test_load_of_a_damaged_file_is_right_or_refused(position: float, value: int) -> None:
    content = bytearray(_small_npz())
    content[int(position * (len(content) - 1))] = value
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a.npz").write_bytes(content)
        try:
            scene = Scene.load(Path(folder) / "a.npz")
        except InputError:
            return
    assert scene.points.shape == (1, 2, 2, 3)


def _small_npz() -> bytes:
    buffer = io.BytesIO()
    shape = (1, 2, 2)
    np.savez(
        buffer,
        version=np.int64(1),
        points=np.ones((*shape, 3), np.float32),
        colors=np.ones((*shape, 3), np.uint8),
        depth=np.ones(shape, np.float32),
        confidence=np.ones(shape, np.float32),
        mask=np.ones(shape, bool),
        intrinsics=np.eye(3, dtype=np.float32)[None],
        poses=np.eye(4, dtype=np.float32)[None],
        metric_scale=np.float64(1),
        names=np.array(["a"]),
    )
    assert zipfile.is_zipfile(buffer)
    return buffer.getvalue()


def test_format_overrides_the_suffix(scene: Scene, tmp_path: Path) -> None:
    scene.save(tmp_path / "scene.v1", format="ply")
    assert (tmp_path / "scene.v1").read_bytes().startswith(b"ply\n")
    (tmp_path / "folder.v2").mkdir()
    scene.save(tmp_path / "folder.v2")
    assert (tmp_path / "folder.v2" / "sparse" / "0" / "cameras.bin").is_file()
    (tmp_path / "folder.ply").mkdir()
    with pytest.raises(OutputError, match="it is a folder"):
        scene.save(tmp_path / "folder.ply")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scene.glb", "scene.ply", "scene.npz", "colmap", "preview.png"])
def test_full_disk_leaves_the_old_result(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def write() -> None:
        scene.preview(tmp_path / name) if name.endswith(".png") else scene.save(tmp_path / name)

    def content() -> dict[str, bytes]:
        return {str(f.relative_to(tmp_path)): f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="disk is full"):
        write()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    write()
    before = content()
    scene.points[:] += 1
    scene.colors[:] = 0
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="disk is full"):
        write()
    assert content() == before


@pytest.mark.parametrize("path", [None, 3, "", "  ", "a\0.ply", b"a.ply"])
def test_save_refuses_what_cannot_name_a_file(room_predictions: Callable[..., Any], path: Any) -> None:
    scene = Scene.from_predictions(room_predictions(1, 28, 28))
    for write in (scene.save, scene.preview):
        with pytest.raises(OutputError, match="give"):
            write(path)


@pytest.mark.parametrize(
    "options", [{"max_points": "3"}, {"max_points": 1.5}, {"max_points": -1}, {"confidence_percentile": "3"}]
)
def test_save_refuses_options_of_a_wrong_type(
    room_predictions: Callable[..., Any], tmp_path: Path, options: dict[str, Any]
) -> None:
    scene = Scene.from_predictions(room_predictions(1, 28, 28))
    with pytest.raises(InputError, match=next(iter(options))):
        scene.save(tmp_path / "scene.ply", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x.jpg", "x"])
def test_preview_is_a_png(room_predictions: Callable[..., Any], tmp_path: Path, name: str) -> None:
    scene = Scene.from_predictions(room_predictions(1, 28, 28))
    with pytest.raises(InputError, match=r"\.png"):
        scene.preview(tmp_path / name)
    with pytest.raises(InputError, match="max_width"):
        scene.preview(tmp_path / "x.png", max_width="wide")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_from_predictions_refuses_what_infer_never_returns(room_predictions: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="what infer returned"):
        Scene.from_predictions([None])  # type: ignore[list-item]
    with pytest.raises(InputError, match="batch_index"):
        Scene.from_predictions(room_predictions(1, 28, 28), batch_index="a")  # type: ignore[arg-type]


def test_loading_what_is_no_scene_does_not_advise_unpickling(tmp_path: Path) -> None:
    (tmp_path / "scene.ply").write_bytes(b"ply\nformat binary_little_endian 1.0\n")
    with pytest.raises(InputError, match="not a scene") as caught:
        Scene.load(tmp_path / "scene.ply")
    assert "pickle" not in str(caught.value)
