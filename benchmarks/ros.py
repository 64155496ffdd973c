"""What the ROS 2 node costs per set of frames beyond the engine, with one and with four cameras of 640x480.

Run it where ROS is, after ``make ros``:

.venv-ros/bin/python benchmarks/ros.py

Publisher, node and listener share one process, and so one interpreter: what the node costs is rather more than on a
robot, where cameras have processes of their own.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median

from mapengine.calibration.scenes import render_scene
from mapengine.runtime import Engine
from mapengine.runtime.system.origin import record_origin
from mapengine.runtime.writing.files import write_record

ROOT = Path(__file__).resolve().parents[1]
SIZE = (640, 480)
WARM_UP = 5
PHASES = ("wait", "decode", "prepare", "encode", "infer", "publish", "total")


def measure(engine: Engine, cameras: int, sets: int) -> dict[str, object]:
    """Reconstruct sets of one image per camera, the next when the last has come; return medians in milliseconds."""
    sys.path.insert(0, str(ROOT))
    from tests.ros2.node.robot import image_message, info_message, running

    scene = render_scene(1_000_046, 4, *SIZE)
    names = [f"camera{index}" for index in range(cameras)]
    ends: list[float] = []
    with running(engine, names, window=1, keyframe_every=0) as (robot, node):
        for count in range(WARM_UP + sets):
            seconds = 1.0 + count
            messages = [
                (info_message(scene.intrinsics[i], SIZE, seconds), image_message(scene.images[i], "rgb8", seconds))
                for i in range(cameras)
            ]
            begun = time.perf_counter()
            for name, (info, image) in zip(names, messages, strict=True):
                robot.say(f"/{name}/camera_info", info)
                robot.say(f"/{name}/image", image)
            robot.result(seconds, "/mapengine/points")
            ends.append(time.perf_counter() - begun)
        phases = {phase: 1000 * node.record.latencies()[phase] for phase in PHASES}
        counts = [node.record.counts(name) for name in names]
    engine_ms = phases["encode"] + phases["infer"]
    whole = 1000 * median(ends[WARM_UP:])
    return {
        "cameras": cameras,
        "sets": sets,
        "phases_ms": phases,
        "engine_ms": engine_ms,
        "node_ms": phases["total"] - engine_ms,
        "node_ms_per_image": (phases["total"] - engine_ms) / cameras,
        "publish_to_cloud_ms": whole,
        "beyond_engine_ms": whole - engine_ms,
        "counts": counts,
    }


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", nargs="?", type=Path, default=ROOT / "build" / "ros" / "engine")
    parser.add_argument("--sets", type=int, default=40)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "ros.json")
    args = parser.parse_args()
    engine = Engine.load(args.bundle, "onnxruntime", verify=False)
    record = {
        "benchmark": "ros",
        "what": "milliseconds of the ROS 2 node by phase, medians; one image of 640x480 (rgb8) per camera and set",
        "model": engine.manifest.model.id,
        "results": [measure(engine, cameras, args.sets) for cameras in (1, 4)],
        **record_origin("mapengine", "onnxruntime", "numpy", "ros-rclpy", "ros-rmw-fastrtps-cpp"),
    }
    write_record(args.json, record)


if __name__ == "__main__":
    main()
