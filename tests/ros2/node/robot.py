"""A robot for the node: what it publishes, what it hears, and a recording (MCAP) of a rendered scene.

Only the node's own environment has ROS: ``make ros`` makes it, and runs these tests in it.
"""

from __future__ import annotations

import os
import threading
import time
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Nobody else's robot is to hear these tests, nor two of their runs each other.
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))

import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import qos_profile_sensor_data
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header

from mapengine.calibration.scenes import RenderedScene
from mapengine_ros.node import ReconstructionNode
from mapengine_ros.poses import matrix_of, split

TYPES = {"Image": Image, "CameraInfo": CameraInfo, "PoseStamped": PoseStamped}
PATIENCE = 30.0  # seconds for what must come: the machine may be busy


def stamp(seconds: float) -> Time:
    """Seconds as messages have them."""
    nanoseconds = round(seconds * 1e9)
    return Time(sec=nanoseconds // 10**9, nanosec=nanoseconds % 10**9)


def seconds_of(header: Header) -> float:
    """The stamp of a header in seconds."""
    return header.stamp.sec + header.stamp.nanosec / 1e9


def image_message(values: np.ndarray, encoding: str, seconds: float, frame: str = "optical") -> Image:
    """An ``Image`` of values (H, W) or (H, W, C)."""
    data = array("B")
    data.frombytes(np.ascontiguousarray(values).tobytes())
    return Image(
        header=Header(stamp=stamp(seconds), frame_id=frame),
        height=values.shape[0],
        width=values.shape[1],
        encoding=encoding,
        step=values.nbytes // values.shape[0],
        data=data,
    )


def info_message(intrinsics: np.ndarray, size: tuple[int, int], seconds: float, frame: str = "optical") -> CameraInfo:
    """The ``CameraInfo`` of a pinhole camera for an image of ``size`` = (W, H)."""
    return CameraInfo(
        header=Header(stamp=stamp(seconds), frame_id=frame),
        width=size[0],
        height=size[1],
        distortion_model="plumb_bob",
        d=[0.0] * 5,
        k=intrinsics.astype(np.float64).reshape(-1),
    )


def read_image(message: Image) -> np.ndarray:
    """A 32FC1 ``Image`` as an array."""
    assert (message.encoding, message.is_bigendian, message.step) == ("32FC1", 0, 4 * message.width)
    return np.frombuffer(message.data, np.float32).reshape(message.height, message.width)


def read_pose(message: PoseStamped) -> np.ndarray:
    """The (4, 4) matrix of a pose."""
    p, q = message.pose.position, message.pose.orientation
    return matrix_of([p.x, p.y, p.z], [q.x, q.y, q.z, q.w])


def read_cloud(message: PointCloud2) -> np.ndarray:
    """The points of a cloud by the offsets that it declares."""
    names = [field.name for field in message.fields]
    kind = np.dtype(
        {
            "names": names,
            "formats": ["<u4" if name == "rgb" else "<f4" for name in names],
            "offsets": [field.offset for field in message.fields],
            "itemsize": message.point_step,
        }
    )
    assert all((field.datatype, field.count) == (7, 1) for field in message.fields)
    assert len(message.data) == message.row_step == message.point_step * message.width
    return np.frombuffer(message.data, kind)


class Robot(Node):
    """Publishes on topics of cameras, and keeps what it hears of the node."""

    def __init__(self, context: Any, cameras: Sequence[str]) -> None:
        super().__init__("robot", context=context)
        self._arrived = threading.Condition()
        self.heard: dict[str, list[Any]] = defaultdict(list)
        for name in cameras:
            for topic, kind in (
                ("depth", Image),
                ("confidence", Image),
                ("camera_info", CameraInfo),
                ("pose", PoseStamped),
            ):
                self._listen(f"/mapengine/{name}/{topic}", kind)
        self._listen("/mapengine/points", PointCloud2)
        self._listen("/diagnostics", DiagnosticArray)
        self._voices: dict[str, Any] = {}

    def _listen(self, topic: str, kind: Any) -> None:
        def hear(message: Any) -> None:
            with self._arrived:
                self.heard[topic].append(message)
                self._arrived.notify_all()

        self.create_subscription(kind, topic, hear, 100)

    def say(self, topic: str, message: Any, kind: Any = None) -> None:
        """Publish a message, or serialized bytes of ``kind``, when the node listens."""
        if topic not in self._voices:
            self._voices[topic] = self.create_publisher(kind or type(message), topic, qos_profile_sensor_data)
            deadline = time.monotonic() + PATIENCE
            while not self._voices[topic].get_subscription_count():
                assert time.monotonic() < deadline, f"nobody listens to {topic}"
                time.sleep(0.01)
        self._voices[topic].publish(message)

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait until something that was heard makes a condition true, and return its value."""
        with self._arrived:
            found = self._arrived.wait_for(condition, PATIENCE)
        assert found, f"{what} did not come; heard: { {topic: len(found) for topic, found in self.heard.items()} }"
        return found

    def result(self, seconds: float, topic: str = "/mapengine/camera/depth") -> Any:
        """Wait for the result of the image with a stamp."""

        def find() -> Any:
            return next((m for m in self.heard[topic] if abs(seconds_of(m.header) - seconds) < 1e-6), None)

        return self.wait(find, f"{topic} of {seconds}")

    def status(self, name: str, condition: Callable[[Any], bool]) -> Any:
        """Wait for an entry of ``/diagnostics`` from now on."""
        begun = len(self.heard["/diagnostics"])

        def find() -> Any:
            entries = (s for message in self.heard["/diagnostics"][begun:] for s in message.status)
            return next((s for s in entries if s.name == f"mapengine: {name}" and condition(s)), None)

        return self.wait(find, f"a diagnosis of {name}")


@contextmanager
def running(engine: Any, cameras: Sequence[str] = ("camera",), **parameters: Any) -> Iterator[tuple[Robot, Any]]:
    """Yield a robot and the node of an engine with parameters, in this process."""
    given = {"engine": "given", "cameras": list(cameras), **parameters}
    context = rclpy.Context()
    rclpy.init(context=context)
    overrides = [Parameter(name, value=value) for name, value in given.items()]
    node = ReconstructionNode(engine, context=context, parameter_overrides=overrides)
    robot = Robot(context, cameras)
    executors = []
    threads = []
    for one in (node, robot):
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(one)
        executors.append(executor)
        threads.append(threading.Thread(target=executor.spin, daemon=True))
        threads[-1].start()
    try:
        yield robot, node
        assert node.failure is None
    finally:
        for executor, thread in zip(executors, threads, strict=True):
            executor.shutdown()
            thread.join(10)
        robot.destroy_node()
        node.destroy_node()
        rclpy.shutdown(context=context)


def write_bag(folder: Path, scene: RenderedScene, camera: str = "camera", begin: float = 100.0) -> Path:
    """Record a scene as MCAP: a camera that moves, with its ``CameraInfo``, depth in millimetres, and poses in map."""
    types = get_typestore(Stores.ROS2_KILTED)
    known = {name: types.types[name] for name in types.types}
    make_time, make_header = known["builtin_interfaces/msg/Time"], known["std_msgs/msg/Header"]
    height, width = scene.images.shape[1:3]
    with Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        topics = {"image": "Image", "camera_info": "CameraInfo", "depth": "Image", "pose": "PoseStamped"}
        connections = {}
        for topic, kind in topics.items():
            package = "geometry_msgs" if kind == "PoseStamped" else "sensor_msgs"
            connections[topic] = writer.add_connection(f"/{camera}/{topic}", f"{package}/msg/{kind}", typestore=types)
        for index in range(len(scene.images)):
            at = stamp(begin + index / 2)
            nanoseconds = at.sec * 10**9 + at.nanosec

            def header(frame: str, at: Time = at) -> Any:
                return make_header(stamp=make_time(sec=at.sec, nanosec=at.nanosec), frame_id=frame)

            def raw(values: np.ndarray, encoding: str, own: Any) -> Any:
                data = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
                step = data.size // height
                return known["sensor_msgs/msg/Image"](
                    header=own, height=height, width=width, encoding=encoding, is_bigendian=0, step=step, data=data
                )

            k = scene.intrinsics[index].astype(np.float64)
            (x, y, z), (qx, qy, qz, qw) = split(scene.poses[index].astype(np.float64))
            messages = {
                "camera_info": known["sensor_msgs/msg/CameraInfo"](
                    header=header("optical"),
                    height=height,
                    width=width,
                    distortion_model="plumb_bob",
                    d=np.zeros(5),
                    k=k.reshape(-1),
                    r=np.eye(3).reshape(-1),
                    p=np.concatenate([k, np.zeros((3, 1))], axis=1).reshape(-1),
                    binning_x=0,
                    binning_y=0,
                    roi=known["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False),
                ),
                "pose": known["geometry_msgs/msg/PoseStamped"](
                    header=header("map"),
                    pose=known["geometry_msgs/msg/Pose"](
                        position=known["geometry_msgs/msg/Point"](x, y, z),
                        orientation=known["geometry_msgs/msg/Quaternion"](qx, qy, qz, qw),
                    ),
                ),
                "depth": raw(np.rint(scene.depth_z[index] * 1000).astype(np.uint16), "16UC1", header("optical")),
                "image": raw(scene.images[index], "rgb8", header("optical")),
            }
            for topic, message in messages.items():
                connection = connections[topic]
                writer.write(connection, nanoseconds, types.serialize_cdr(message, connection.msgtype))
    return folder


def play(bag: Path, robot: Robot, topics: Sequence[str]) -> list[float]:
    """Publish what a bag holds on some topics, the next frame when the last is reconstructed; return the stamps."""
    begun: list[float] = []
    with Reader(bag) as reader:
        wanted = [c for c in reader.connections if c.topic.rpartition("/")[2] in topics]
        for connection, nanoseconds, data in reader.messages(connections=wanted):
            if begun and nanoseconds / 1e9 != begun[-1]:
                robot.result(begun[-1])
            if not begun or nanoseconds / 1e9 != begun[-1]:
                begun.append(nanoseconds / 1e9)
            robot.say(connection.topic, bytes(data), TYPES[connection.msgtype.rpartition("/")[2]])
    robot.result(begun[-1])
    return begun
