"""From messages to results with a real engine: what is wrong with one camera does not stop the others."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mapengine.runtime import BackendError, Engine
from mapengine_ros.diagnostics import Record
from mapengine_ros.parameters import Settings, parameter_defaults
from mapengine_ros.reconstructor import Job, Reconstructor, SetResult
from mapengine_ros.synchronizer import CAMERA_INFO, DEPTH, IMAGE, POSE, FrameSet

from .plain_messages import camera_info, header, image, pose

PICTURE = np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def engine(tiny_bundle: Path) -> Engine:
    """An engine of a small random network."""
    return Engine.load(tiny_bundle, "onnxruntime", threads=1, verify=False)


class Node:
    """A reconstructor of two cameras, and what it publishes."""

    def __init__(self, engine: Engine, **changes: Any) -> None:
        given = {"engine": "x", "cameras": ["a", "b"], "keyframe_every": 0, "width": 56, "height": 42, **changes}
        self.settings = Settings.of({**parameter_defaults(), **given})
        self.record = Record(self.settings.cameras)
        self.reconstructor = Reconstructor(engine, self.settings, self.record)
        self.published: list[SetResult] = []

    def give(self, **cameras: dict[str, Any]) -> SetResult | None:
        """Reconstruct a set; return what it published."""
        before = len(self.published)
        self.reconstructor.reconstruct(Job(FrameSet(1, cameras), time.perf_counter()), self.published.append)
        return self.published[-1] if len(self.published) > before else None

    def said(self, camera: str) -> str:
        """The last refusal of a camera."""
        status = next(one for one in self.record.statuses([], {}, time.monotonic()) if one.name == camera)
        return status.values.get("last refusal", "")


def frame(**more: Any) -> dict[str, Any]:
    return {IMAGE: image(PICTURE, "rgb8"), CAMERA_INFO: camera_info(64, 48, 50.0), **more}


def names(found: SetResult | None) -> list[str]:
    return [] if found is None else [one.name for one in found.cameras]


def posed(frame_id: str, x: float = 0.0) -> Any:
    matrix = np.eye(4)
    matrix[0, 3] = x
    return SimpleNamespace(header=header(frame=frame_id), pose=pose(matrix))


def test_a_set_of_two_cameras(engine: Engine) -> None:
    node = Node(engine)
    found = node.give(a=frame(), b=frame())
    assert found is not None
    assert names(found) == ["a", "b"]
    assert found.frame == "reconstruction"
    assert found.cameras[0].depth.shape == found.cameras[0].confidence.shape == (42, 56)
    assert set(node.record.latencies()) == {"wait", "decode", "prepare", "encode", "infer", "publish", "total"}


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({IMAGE: image(PICTURE.astype(np.float32), "32FC3")}, "'32FC3' is not read as an image"),
        ({CAMERA_INFO: camera_info(640, 480)}, "CameraInfo is of an image of 640x480 pixels"),
        ({CAMERA_INFO: camera_info(64, 48, distortion_model="odd", d=[1.0])}, "distortion model 'odd'"),
    ],
)
def test_a_frame_that_is_wrong_leaves_the_other_camera(engine: Engine, wrong: dict[str, Any], sentence: str) -> None:
    node = Node(engine)
    assert names(node.give(a=frame(**wrong), b=frame())) == ["b"]
    assert sentence in node.said("a")
    assert node.record.counts("a") == {"refused": 1}
    assert node.give(a=frame(**wrong)) is None
    assert names(node.give(a=frame(), b=frame())) == ["a", "b"]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({DEPTH: image(np.ones((24, 32), np.uint16), "16UC1")}, "register depth to the image"),
        ({DEPTH: image(np.full((48, 64), -1, np.float32), "32FC1")}, "depth is negative somewhere"),
        ({DEPTH: image(PICTURE, "rgb8")}, "'rgb8' is not read as depth"),
        (
            {DEPTH: image(np.ones((48, 64), np.uint16), "16UC1"), CAMERA_INFO: camera_info(64, 48, 0.0)},
            "it needs the CameraInfo of a calibrated camera",
        ),
        ({CAMERA_INFO: camera_info(64, 48, 0.0)}, "the camera is not calibrated"),
        ({POSE: posed("")}, "name the frame that it is in"),
        ({POSE: posed("reconstruction")}, "which is not 'reconstruction'"),
    ],
)
def test_what_is_known_besides_may_be_wrong(engine: Engine, wrong: dict[str, Any], sentence: str) -> None:
    node = Node(engine, depth_transport="raw", pose_source="pose")
    assert names(node.give(a=frame(**wrong))) == ["a"]
    assert sentence in node.said("a")
    counts = node.record.counts("a")
    assert counts["used"] == 1
    assert counts["incomplete"] >= 1
    assert "refused" not in counts


def test_poses_name_the_frame_and_another_frame_begins_a_window(engine: Engine) -> None:
    node = Node(engine, pose_source="pose", window=3)
    frames = []
    for number, frame_id in enumerate(["map", "map", "odom"]):
        found = node.give(a=frame(**{POSE: posed(frame_id, number / 10)}))
        assert found is not None
        assert found.frame == frame_id
        frames.append(int(node.reconstructor.facts()["frames in use"]))
    assert frames == [1, 2, 1]


def test_an_engine_that_fails_drops_the_set_and_goes_on(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(engine, window=4)
    with monkeypatch.context() as patch:

        def fail(*_: Any, **__: Any) -> Any:
            raise BackendError("the device is gone")

        patch.setattr(engine, "infer", fail)
        assert node.give(a=frame()) is None
    assert node.record.counts("a") == {"failed": 1}
    assert node.record.statuses([], {}, 0)[0].message == "the device is gone"
    assert names(node.give(a=frame())) == ["a"]
    assert node.reconstructor.facts()["frames in use"] == "1"
