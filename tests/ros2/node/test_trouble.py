"""What goes wrong on a robot: a camera stops, messages are wrong, too many come; and parameters that change."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed; `make ros` runs the tests of the node where it is")

from rclpy.parameter import Parameter

from mapengine.calibration.scenes import RenderedScene
from mapengine_ros.parameters import bounds_of, parameter_defaults

from .robot import PATIENCE, Robot, image_message, info_message, read_pose, running, seconds_of

SINGLE: dict[str, Any] = {"window": 1, "keyframe_every": 0}


def say(robot: Robot, scene: RenderedScene, seconds: float, camera: str = "camera", view: int = 0) -> None:
    """Publish a view of the scene with its ``CameraInfo``."""
    robot.say(f"/{camera}/camera_info", info_message(scene.intrinsics[view], (140, 112), seconds))
    robot.say(f"/{camera}/image", image_message(scene.images[view], "rgb8", seconds, f"{camera}_optical"))


def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what the node counts when it has published."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_camera_that_stops_is_left_out_and_comes_back(nano: Any, scene: RenderedScene) -> None:
    with running(nano, ("left", "right"), timeout=0.5, **SINGLE) as (robot, node):
        say(robot, scene, 10.0, "left", 0)
        say(robot, scene, 10.01, "right", 1)
        assert robot.result(10.0, "/mapengine/left/depth").header.frame_id == "left_optical"
        assert robot.result(10.01, "/mapengine/right/depth").header.frame_id == "right_optical"
        # The second camera of a set is somewhere else than the first.
        assert np.linalg.norm(read_pose(robot.result(10.01, "/mapengine/right/pose"))[:3, 3]) > 0.05

        time.sleep(0.6)
        for index in range(4):  # the first ones are waited with, until the silence is long enough
            say(robot, scene, 11 + index / 4, "left", 0)
            time.sleep(0.25)
        robot.result(11.75, "/mapengine/left/depth")
        assert len(robot.heard["/mapengine/right/depth"]) == 1
        status = robot.status("right", lambda found: found.level == b"\x03")
        assert status.message == "no images come"

        say(robot, scene, 20.0, "left", 0)
        say(robot, scene, 20.0, "right", 1)
        robot.result(20.0, "/mapengine/right/depth")
        eventually(lambda: node.record.counts("right") == {"received": 2, "used": 2})


def test_a_wrong_encoding_drops_that_frame_and_says_why(nano: Any, scene: RenderedScene) -> None:
    with running(nano, **SINGLE) as (robot, node):
        robot.say("/camera/camera_info", info_message(scene.intrinsics[0], (140, 112), 1.0))
        robot.say("/camera/image", image_message(np.zeros((112, 140, 3), np.float32), "32FC3", 1.0))
        status = robot.status("camera", lambda found: found.level == b"\x01" and "32FC3" in found.message)
        assert "the encoding '32FC3' is not read as an image; publish one of rgb8" in status.message
        say(robot, scene, 2.0)
        robot.result(2.0)
        assert [seconds_of(m.header) for m in robot.heard["/mapengine/camera/depth"]] == [2.0]
        eventually(lambda: node.record.counts("camera") == {"received": 2, "refused": 1, "used": 1})


def test_a_camera_info_of_another_size_drops_the_frame_until_it_fits(nano: Any, scene: RenderedScene) -> None:
    with running(nano, **SINGLE) as (robot, _):
        robot.say("/camera/camera_info", info_message(scene.intrinsics[0], (640, 480), 1.0))
        robot.say("/camera/image", image_message(scene.images[0], "rgb8", 1.0))
        status = robot.status("camera", lambda found: "CameraInfo" in found.message)
        assert status.level == b"\x01"
        assert "CameraInfo is of an image of 640x480 pixels, but the image has 140x112" in status.message
        robot.say("/camera/camera_info", info_message(scene.intrinsics[0], (140, 112), 2.0))
        time.sleep(0.3)  # topics have no order among each other, and the newest CameraInfo counts
        robot.say("/camera/image", image_message(scene.images[0], "rgb8", 2.0))
        robot.result(2.0)
        assert [seconds_of(m.header) for m in robot.heard["/mapengine/camera/depth"]] == [2.0]


def test_of_a_burst_the_newest_frame_is_reconstructed_and_the_others_are_counted(
    nano: Any, scene: RenderedScene
) -> None:
    with running(nano, window=4, keyframe_every=0) as (robot, node):
        say(robot, scene, 1.0)
        robot.result(1.0)
        for index in range(40):
            robot.say("/camera/image", image_message(scene.images[index % 4], "rgb8", 2 + index / 100))
            time.sleep(0.002)
        robot.result(2.39)
        heard = [seconds_of(message.header) for message in robot.heard["/mapengine/camera/depth"]]
        assert heard == sorted(heard)
        assert len(heard) < 30
        eventually(lambda: node.record.counts("camera")["used"] == len(heard))
        counts = node.record.counts("camera")
        assert counts["replaced"] > 0
        assert counts["received"] == counts["used"] + counts["replaced"] + counts.get("unmatched", 0)


def test_an_image_without_a_stamp_is_refused(nano: Any, scene: RenderedScene) -> None:
    with running(nano, **SINGLE) as (robot, _):
        say(robot, scene, 0.0)
        status = robot.status("camera", lambda found: "has no stamp" in found.message)
        assert status.level == b"\x01"


def test_parameters_are_bounded_described_and_change_while_it_runs(nano: Any, scene: RenderedScene) -> None:
    with running(nano, **SINGLE) as (robot, node):
        for name in parameter_defaults():
            described, bounds = node.describe_parameter(name), bounds_of(name)
            assert described.description == bounds.text
            assert described.read_only == bounds.fixed

        def change(name: str, value: Any) -> Any:
            return node.set_parameters([Parameter(name, value=value)])[0]

        for name, value in (
            ("tolerance", 2.0),
            ("cloud_step", 0),
            ("cloud_views", "all"),
            ("cameras", ["other"]),
            ("window", "many"),
        ):
            assert not change(name, value).successful, name
        refused = change("window", 33)
        assert not refused.successful
        assert refused.reason == (
            "a window of 33 with 1 cameras is 33 views, but this bundle was built for up to 32; make window or "
            "max_keyframes smaller"
        )
        assert node.get_parameter("window").value == 1

        say(robot, scene, 1.0)
        first = robot.result(1.0, "/mapengine/points").width
        assert change("cloud_step", 4).successful
        say(robot, scene, 2.0)
        assert robot.result(2.0, "/mapengine/points").width < first / 3


def test_the_program_says_what_is_wrong_with_its_parameters(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("mapengine_node")
    for arguments, sentence in (
        ([], "engine is not set; give the folder of an engine bundle"),
        (["-p", f"engine:={tmp_path}"], "manifest.json"),
        (["-p", "engine:=x", "-p", "cameras:=['a', 'a']"], "cameras names one twice"),
    ):
        run = subprocess.run(
            [program, "--ros-args", *arguments], capture_output=True, text=True, timeout=60, env=os.environ, check=False
        )
        assert run.returncode == 1, run.stderr
        assert sentence in run.stderr
        assert "Traceback" not in run.stderr


def test_poses_of_tf_need_tf2(nano: Any) -> None:
    from mapengine.runtime import InputError

    with (
        pytest.raises(InputError, match="pose_source is tf, but tf2_ros cannot be imported"),
        running(nano, pose_source="tf"),
    ):
        pass


def test_the_package_is_found_as_ros_finds_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMENT_PREFIX_PATH", sys.prefix)
    from ament_index_python.packages import get_package_share_directory

    share = Path(get_package_share_directory("mapengine_ros"))
    for name in ("package.xml", "config/mapengine.yaml", "launch/mapengine.launch.py", "rviz/mapengine.rviz"):
        assert (share / name).is_file(), name
