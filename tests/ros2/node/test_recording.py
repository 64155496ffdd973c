"""A recorded scene is played to the node: what comes, and how right it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed; `make ros` runs the tests of the node where it is")

from mapengine.calibration.scenes import RenderedScene

from .robot import play, read_cloud, read_image, read_pose, running, write_bag


def test_images_alone(nano, scene: RenderedScene, tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", scene)
    with running(nano, window=4, keyframe_every=0, cloud_step=1) as (robot, _):
        stamps = play(bag, robot, ["image", "camera_info"])
        for index, seconds in enumerate(stamps):
            depth = read_image(robot.result(seconds))
            t = scene.depth_z[index]
            ok = np.isfinite(depth) & (t > 0)
            pose = robot.result(seconds, "/mapengine/camera/pose")
            print(index, seconds, depth.shape, ok.mean(), np.mean(np.abs(depth - t)[ok] / t[ok]), pose.header.frame_id)
            print(np.round(read_pose(pose), 3))
        for s in robot.status("engine", lambda s: True).values:
            print(s.key, s.value)
        print(robot.heard["/mapengine/points"][-1].header, len(read_cloud(robot.heard["/mapengine/points"][-1])))
