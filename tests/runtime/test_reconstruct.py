"""From files, arrays and pictures to a scene."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mapengine.calibration.data.samples import sample_views
from mapengine.runtime import Engine, InputError, ProfileError, ReadOptions, Scene, preprocess_inputs
from mapengine.runtime.errors import ImageReadError, ImageSizeError
from mapengine.runtime.inputs.raw_view import RawView
from mapengine.runtime.inputs.sources import open_views, read_views
from mapengine.runtime.options import Progress

from .inputs.formats.recordings import write_tum


@pytest.fixture
def images() -> list[np.ndarray]:
    return [sample.image for sample in sample_views(3, width=80, height=60)]


@pytest.mark.slow
def test_arrays_pictures_paths_and_a_folder_agree(small: Engine, images: list[np.ndarray], tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    expected = small.reconstruct(images, size=(56, 42))
    assert isinstance(expected, Scene)
    assert expected.names == ["view 0", "view 1", "view 2"]
    sources: list[Any] = [
        [Image.fromarray(image) for image in images],
        paths,
        [str(path) for path in paths],
        tmp_path,
        str(tmp_path),
        iter(images),
        np.stack(images),
        [images[0], Image.fromarray(images[1]), paths[2]],
        [(image + 0.5) / 255 for image in images],  # 0..1 and a little more, truncated to uint8 again
        [np.minimum(image + 0.5, 255) for image in images],
    ]
    for source in sources:
        scene = small.reconstruct(source, size=(56, 42))
        np.testing.assert_array_equal(scene.points, expected.points)
    assert small.reconstruct(tmp_path, size=(56, 42)).names == ["0.png", "1.png", "2.png"]
    assert small.reconstruct(paths[0], size=(56, 42)).points.shape == (1, 42, 56, 3)


@pytest.mark.slow
def test_times_of_a_recording_are_those_of_its_trajectory(small: Engine, tmp_path: Path) -> None:
    folder = write_tum(tmp_path / "tum")
    scene = small.reconstruct(folder, read=ReadOptions(ignore=("depth", "poses"), max_views=2), size=(28, 28))
    assert scene.times is not None
    lines = scene.save(tmp_path / "poses.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines if line[0] != "#"] == ["100", "200"]
    assert [line for line in lines if ".png" in line] == ["# rgb/0.png", "# rgb/late.png"]
    assert small.reconstruct([folder / "rgb/0.png"], size=(28, 28)).times is None


@pytest.mark.slow
def test_shapes_types_and_the_chosen_size(small: Engine, images: list[np.ndarray]) -> None:
    scene = small.reconstruct(images[:2])
    assert scene.points.shape == (2, 392, 518, 3)  # the table's size for 4:3
    assert scene.colors.shape == (2, 392, 518, 3)
    assert scene.depth.shape == scene.confidence.shape == scene.mask.shape == (2, 392, 518)
    assert (scene.intrinsics.shape, scene.poses.shape) == ((2, 3, 3), (2, 4, 4))
    kinds = [scene.points, scene.depth, scene.confidence, scene.intrinsics, scene.poses]
    assert {array.dtype for array in kinds} == {np.dtype(np.float32)}
    assert (scene.colors.dtype, scene.mask.dtype) == (np.uint8, np.bool_)
    assert scene.metric_scale > 0
    assert not scene.points[~scene.mask].any()
    tall = small.reconstruct([images[0].transpose(1, 0, 2)])
    assert tall.points.shape == (1, 518, 392, 3)
    assert small.reconstruct([images[0], images[1][:30]], size=(28, 14)).points.shape == (2, 14, 28, 3)


def test_prepared_views_are_the_preprocessed_ones_without_a_second_check(
    small: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = sample_views(3, width=80, height=60)
    cameras, poses, depths = ([getattr(s, k) for s in samples] for k in ("intrinsics", "pose", "depth_z"))
    raw = read_views([s.image for s in samples], cameras, poses, depths)
    expected = small.infer(small.preprocess(raw, size=(56, 42)))
    for check in ("normalized_image", "camera_intrinsics", "camera_pose", "depth_map"):
        monkeypatch.delattr(f"mapengine.runtime.inputs.prepared.{check}")
    prepared = small.prepare(raw, size=(56, 42))
    for found in (small.infer(prepared), list(small.infer_stream(prepared))):
        for got, want in zip(found, expected, strict=True):
            assert got.keys() == want.keys()
            for key, value in want.items():
                np.testing.assert_array_equal(got[key], value, err_msg=key)


@pytest.mark.slow
def test_geometry_arrives_scaled_at_the_network(small: Engine, images: list[np.ndarray]) -> None:
    samples = sample_views(3, width=80, height=60)
    cameras, poses, depths = ([getattr(s, k) for s in samples] for k in ("intrinsics", "pose", "depth_z"))
    raw = [{"img": s.image, "intrinsics": s.intrinsics, "depth_z": s.depth_z, "camera_poses": s.pose} for s in samples]
    by_hand = small.infer(preprocess_inputs(raw, resize_mode="fixed_size", size=(56, 42)))
    scene = small.reconstruct(images, cameras, poses, depths, size=(56, 42), frame="view0")
    np.testing.assert_allclose(scene.points, np.concatenate([p["pts3d"] for p in by_hand]), atol=1e-5)
    plain = small.reconstruct(images, size=(56, 42))
    assert not np.allclose(scene.points, plain.points)
    shared = small.reconstruct(images, [100.0, 100, 39.5, 29.5], size=(56, 42))
    each = small.reconstruct(images, [[[100, 0, 39.5], [0, 100, 29.5], [0, 0, 1]]] * 3, size=(56, 42))
    np.testing.assert_array_equal(shared.points, each.points)
    some = small.reconstruct(images, [cameras[0], None, None], [poses[0], None, poses[2]], size=(56, 42))
    assert not np.allclose(some.points, plain.points)


def test_metric_flag_and_options_are_passed_on(small: Engine, images: list[np.ndarray]) -> None:
    poses = [s.pose for s in sample_views(3, width=80, height=60)]
    metric = small.reconstruct(images, poses=poses, size=(56, 42))
    flagged = small.reconstruct(images, poses=poses, size=(56, 42), metric=False)
    ignored = small.reconstruct(images, poses=poses, size=(56, 42), ignore_pose_scale_inputs=True)
    np.testing.assert_array_equal(flagged.points, ignored.points)
    assert not np.allclose(metric.points, flagged.points)
    stages: list[str] = []
    small.reconstruct(images, size=(56, 42), progress=lambda stage, done, total: stages.append(stage))
    assert set(stages) == {"image_encoder", "aggregator", "dense_head"}


def test_positions_far_from_the_origin_keep_their_digits(small: Engine, images: list[np.ndarray]) -> None:
    poses = [np.eye(4), np.eye(4), np.eye(4)]
    poses[1][0, 3], poses[2][1, 3] = 0.25, 0.5
    far = [pose.copy() for pose in poses]
    for pose in far:
        pose[:3, 3] += (4e6, -1e7, 5e6)  # Earth-centred coordinates, say
    near = small.reconstruct(images, poses=poses, size=(56, 42), frame="view0")
    found = small.reconstruct(images, poses=far, size=(56, 42), frame="view0")
    np.testing.assert_allclose(found.points, near.points, atol=1e-5)


@pytest.mark.parametrize("size", [(50, 50), (57, 42)])
def test_sizes_are_not_rounded_silently(small: Engine, images: list[np.ndarray], size: tuple[int, int]) -> None:
    with pytest.raises(ImageSizeError, match=r"not a multiple of 14; the nearest is"):
        small.reconstruct(images, size=size)


@pytest.mark.parametrize("size", [14, (), (0, 14), (14, -14), (14.0, 14.0), "14x14", (14, 14, 14), (True, 14)])
def test_sizes_of_another_form(small: Engine, images: list[np.ndarray], size: Any) -> None:
    with pytest.raises(InputError, match=r"give \(width, height\) in pixels"):
        small.reconstruct(images, size=size)


def test_refusals_come_before_the_work(
    small: Engine, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the images were resized first")

    monkeypatch.setattr(RawView, "resized", never)
    with pytest.raises(ProfileError, match=r"33 views"):
        small.reconstruct(images[:1] * 33)
    with pytest.raises(ProfileError, match=r"532x14"):
        small.reconstruct(images, size=(532, 14))
    with pytest.raises(InputError, match=r"no option 'mask_edge'; the nearest is 'mask_edges'"):
        small.reconstruct(images, mask_edge=False)
    with pytest.raises(InputError, match=r"no option 'names'"):
        small.reconstruct(images, names=["a", "b", "c"])
    with pytest.raises(InputError, match=r"confidence_percentile is '10'"):
        small.reconstruct(["missing.jpg"], confidence_percentile="10")
    with pytest.raises(InputError, match=r"progress is a int"):
        small.reconstruct(images, progress=3)
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"view 1: camera_poses is given but view 0"):
        small.reconstruct_views([RawView(images[0]), RawView(images[1], pose=np.eye(4))])
    with pytest.raises(InputError, match=r"b: depth needs the calibration"):
        small.reconstruct_views([RawView(images[0], depth=np.ones(images[0].shape[:2]), name="b")])


@pytest.mark.parametrize(
    "raw", [None, 3, "a.jpg", [], {"img": np.zeros((4, 4, 3), np.uint8)}, iter([]), [None], [{}], ["a.jpg"]]
)
def test_what_are_no_raw_views(small: Engine, raw: Any) -> None:
    with pytest.raises(InputError, match="no list of views that were read"):
        small.reconstruct_views(raw)
    # An empty dictionary is what preprocess_inputs takes, without its image.
    wanted = "view 0: img is missing" if raw == [{}] else "no list of views that were read"
    with pytest.raises(InputError, match=wanted):
        small.preprocess(raw)


def test_dictionaries_are_brought_to_a_size_that_is_served(small: Engine, images: list[np.ndarray]) -> None:
    views = [{"img": image, "camera_poses": np.eye(4)} for image in images]
    (by_table, *_), wanted = small.preprocess(views), small.preprocess(views, size=(56, 42))
    assert by_table["img"].shape == small.preprocess([RawView(image) for image in images])[0]["img"].shape
    for found, given in zip(wanted, preprocess_inputs(views, resize_mode="fixed_size", size=(56, 42)), strict=True):
        assert found.keys() == given.keys()
        np.testing.assert_array_equal(found["img"], given["img"])
    with pytest.raises(InputError, match="view 1: is a str"):
        small.preprocess([views[0], "a.jpg"])  # type: ignore[list-item]


def test_views_that_were_read_reconstruct_the_same_scene(small: Engine, images: list[np.ndarray]) -> None:
    samples = sample_views(3, width=80, height=60)
    cameras, poses, depths = ([getattr(s, k) for s in samples] for k in ("intrinsics", "pose", "depth_z"))
    expected = small.reconstruct(images, cameras, poses, depths, metric=[True, None, False], size=(56, 42))
    views = read_views(images, cameras, poses, depths, metric=[True, None, False])
    scene = small.reconstruct_views(views, size=(56, 42))
    np.testing.assert_array_equal(scene.points, expected.points)
    assert scene.names == expected.names == ["view 0", "view 1", "view 2"]
    # The same numbers, bit for bit, through the dictionaries that infer checks.
    scene = small.reconstruct_views(views, size=(56, 42), frame="view0")
    by_hand = small.infer(small.preprocess(views, size=(56, 42)))
    np.testing.assert_array_equal(scene.points, np.concatenate([p["pts3d"] for p in by_hand]))


def test_fixed_sizes_of_a_bundle(tiny_bundle: Path, rewritten: Callable[..., Path], images: list[np.ndarray]) -> None:
    def fixed(manifest: dict[str, Any]) -> None:
        manifest["profile"]["sizes"] = [[56, 42], [42, 56], [56, 56]]

    engine = Engine.load(rewritten(fixed), "onnxruntime", threads=1, verify=False)
    assert engine.reconstruct(images).depth.shape == (3, 42, 56)
    assert engine.reconstruct([images[0].transpose(1, 0, 2)]).depth.shape == (1, 56, 42)
    with pytest.raises(ProfileError, match=r"70x56"):
        engine.reconstruct(images, size=(70, 56))


@dataclass(frozen=True, eq=False)
class SlowView(RawView):
    """A view that can be read once ``ready`` is set."""

    ready: threading.Event = field(default_factory=threading.Event)

    def resized(self, target: tuple[int, int]) -> RawView:
        assert self.ready.wait(30), "the first view was not encoded meanwhile"
        return super().resized(target)


@pytest.mark.slow
def test_a_view_is_encoded_while_the_next_is_read(small: Engine, images: list[np.ndarray]) -> None:
    expected = small.reconstruct(images, size=(56, 42))

    def check(call: Callable[[list[RawView], Progress], Sequence[np.ndarray]]) -> None:
        ready = threading.Event()
        views = [RawView(images[0]), *(SlowView(image, ready=ready) for image in images[1:])]
        reports: list[tuple[str, int, int]] = []

        def progress(*report: Any) -> None:
            reports.append(report)
            ready.set()

        np.testing.assert_array_equal(call(views, progress), expected.depth)
        assert reports[:3] == [("image_encoder", number, 3) for number in (1, 2, 3)]

    check(lambda views, progress: small.reconstruct_views(views, size=(56, 42), progress=progress).depth)
    for infer in (small.infer, small.infer_stream):
        check(
            lambda views, progress, infer=infer: [
                view["depth_z"][0, ..., 0] for view in infer(small.prepare(views, size=(56, 42)), progress=progress)
            ]
        )


@pytest.mark.slow
def test_a_file_that_cannot_be_read_ends_the_call_that_has_begun(
    small: Engine, images: list[np.ndarray], tmp_path: Path
) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    paths[2].write_bytes(paths[2].read_bytes()[:-1000])  # its header is there
    with pytest.raises(ImageReadError, match=r"view 2: .*2\.png"):
        small.reconstruct(paths, size=(56, 42))
    prepared = small.prepare(open_views(paths), size=(56, 42))
    for _ in range(2):
        with pytest.raises(ImageReadError, match=r"view 2: .*2\.png"):
            small.infer(prepared)
    poses = [None, np.eye(4), None]
    with pytest.raises(InputError, match="view 1: camera_poses is given but view 0"):
        small.reconstruct(images, poses=poses, size=(56, 42))
