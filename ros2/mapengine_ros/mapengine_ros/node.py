"""The node: topics in, a worker that reconstructs the newest set, topics out."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Sequence
from functools import partial
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Odometry
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2

from mapengine.runtime import Engine, MapEngineError

from .diagnostics import Record
from .fields import camera_info_message, cloud_message, diagnostic_message, image_message, pose_message
from .newest import Newest
from .parameters import Bounds, Settings, bounds_of, parameter_defaults
from .poses import TfPoses
from .reconstructor import Job, Reconstructor, SetResult, stamp_of
from .synchronizer import CAMERA_INFO, DEPTH, IMAGE, POSE, Synchronizer

_SECOND = 1_000_000_000
_DIAGNOSTICS_EVERY = 1.0


class ReconstructionNode(Node):
    """Loads an engine once and reconstructs what cameras see; docs/guide/ros2.md lists topics and parameters."""

    def __init__(self, engine: Engine | None = None, **options: Any) -> None:
        """Declare parameters, load the engine, and subscribe.

        Args:
            engine: one that is loaded already, in place of the parameter's.
            **options: of ``rclpy.node.Node``.

        Raises:
            MapEngineError: a parameter or the bundle is wrong.
        """
        super().__init__("mapengine", **options)
        for name, default in parameter_defaults().items():
            self._declare(name, default, bounds_of(name))
        settings = self._settings()
        self._engine = engine or Engine.load(
            settings.engine, settings.backend, threads=settings.threads or None, verify=settings.verify
        )
        self._check(settings)
        self.record = Record(settings.cameras)
        poses = TfPoses(self, settings.tf_frame) if settings.pose_source == "tf" else None
        self._reconstructor = Reconstructor(self._engine, settings, self.record, poses)
        self._synchronizer = Synchronizer(
            {name: _kinds(settings) for name in settings.cameras},
            round(settings.tolerance * _SECOND),
            settings.timeout,
        )
        self._waiting: Newest[Job] = Newest()
        self.add_on_set_parameters_callback(self._on_parameters)
        self.add_post_set_parameters_callback(self._after_parameters)
        self._advertise(settings)
        self._subscribe(settings)
        self.create_timer(_DIAGNOSTICS_EVERY, self._publish_diagnostics)
        self.failure: BaseException | None = None
        self._worker = threading.Thread(target=self._work, name="mapengine worker", daemon=True)
        self._worker.start()
        self.get_logger().info(f"{self._engine.label} on {self._engine.where}; cameras: {', '.join(settings.cameras)}")

    def destroy_node(self) -> None:
        """End the worker, after the set that it is at, and the node."""
        self._waiting.close()
        self._worker.join()
        super().destroy_node()

    def _declare(self, name: str, default: Any, bounds: Bounds) -> None:
        described = ParameterDescriptor(description=bounds.text, read_only=bounds.fixed)
        if bounds.choices:
            described.additional_constraints = f"one of {', '.join(bounds.choices)}"
        if isinstance(default, float):
            described.floating_point_range = [FloatingPointRange(from_value=bounds.low, to_value=bounds.high)]
        elif isinstance(default, int) and not isinstance(default, bool):
            described.integer_range = [IntegerRange(from_value=int(bounds.low), to_value=int(bounds.high))]
        if isinstance(default, tuple):  # an empty list has no type of its own
            kind = Parameter.Type.DOUBLE_ARRAY if name == "camera_mounts" else Parameter.Type.STRING_ARRAY
            value = Parameter(name, kind, list(default)).value
            self.declare_parameter(name, value if default else kind, described)
            return
        self.declare_parameter(name, default, described)

    def _settings(self, changed: Sequence[Parameter[Any]] = ()) -> Settings:
        names = parameter_defaults()
        set_values = {name: self.get_parameter_or(name, Parameter(name)).value for name in names}
        values = {name: names[name] if value is None else value for name, value in set_values.items()}
        return Settings.of({**values, **{item.name: item.value for item in changed if item.name in names}})

    def _check(self, settings: Settings) -> None:
        settings.window_size.check(len(settings.cameras), self._engine.manifest.requests.views.max)
        if settings.size is not None:
            width, height = settings.size
            self._engine.manifest.requests.check(1, height, width)

    def _on_parameters(self, changed: list[Parameter[Any]]) -> SetParametersResult:
        try:
            self._check(self._settings(changed))
        except MapEngineError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _after_parameters(self, changed: list[Parameter[Any]]) -> None:
        settings = self._settings(changed)
        self._synchronizer.tolerance = round(settings.tolerance * _SECOND)
        self._synchronizer.timeout = settings.timeout
        self._reconstructor.settings = settings

    def _advertise(self, settings: Settings) -> None:
        make = partial(self.create_publisher, qos_profile=QoSProfile(depth=5), qos_overriding_options=_overriding())
        self._outputs = {
            name: {
                "depth": make(Image, f"~/{name}/depth"),
                "confidence": make(Image, f"~/{name}/confidence"),
                "camera_info": make(CameraInfo, f"~/{name}/camera_info"),
                "pose": make(PoseStamped, f"~/{name}/pose"),
            }
            for name in settings.cameras
        }
        self._cloud = make(PointCloud2, "~/points")
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)

    def _subscribe(self, settings: Settings) -> None:
        for name in settings.cameras:
            for kind in (IMAGE, *_kinds(settings)):
                message, topic = _topic(kind, settings)
                self.create_subscription(
                    message,
                    f"{name}/{topic}",
                    partial(self._on_message, name, kind),
                    qos_profile_sensor_data,
                    event_callbacks=SubscriptionEventCallbacks(message_lost=partial(self._on_lost, name, kind)),
                    qos_overriding_options=_overriding(),
                )

    def _on_message(self, camera: str, kind: str, message: Any) -> None:
        arrived, now = time.perf_counter(), time.monotonic()
        if kind == IMAGE:
            self.record.count(camera, "received")
        stamp = stamp_of(message.header)
        if stamp == 0 and kind != CAMERA_INFO:
            text = f"the {kind} has no stamp; without one it cannot be matched, so let the driver set it"
            self.record.refuse(camera, text, now, frame=kind == IMAGE)
            return
        found = self._synchronizer.add(camera, kind, stamp, message, now)
        for name, count in self._synchronizer.take_unmatched().items():
            self.record.count(name, "unmatched", count)
        if found is not None:
            replaced = self._waiting.put(Job(found, arrived))
            for name in replaced.frames.messages if replaced else ():
                self.record.count(name, "replaced")

    def _on_lost(self, camera: str, kind: str, lost: Any) -> None:
        if kind == IMAGE:
            self.record.count(camera, "lost", lost.total_count_change)

    def _work(self) -> None:
        try:
            while (job := self._waiting.take()) is not None:
                self._reconstructor.reconstruct(job, self._publish, wants_cloud=self._wants_cloud)
        except BaseException as error:  # told by the main thread, which ends
            self.failure = error
            self._waiting.close()
            self.context.try_shutdown()

    def _wants_cloud(self) -> bool:
        return self._cloud.get_subscription_count() > 0

    def _publish(self, result: SetResult) -> None:
        for camera in result.cameras:
            outputs = self._outputs[camera.name]
            outputs["depth"].publish(image_message(camera.header, camera.depth))
            outputs["confidence"].publish(image_message(camera.header, camera.confidence))
            outputs["camera_info"].publish(camera_info_message(camera))
            outputs["pose"].publish(pose_message(camera, result.frame))
        if result.cloud is not None:
            self._cloud.publish(cloud_message(result, result.cloud))

    def _publish_diagnostics(self) -> None:
        now = time.monotonic()
        facts = {"bundle": self._engine.label, "backend": self._engine.where, **self._reconstructor.facts()}
        statuses = self.record.statuses(self._synchronizer.silent(now), facts, now)
        self._diagnostics.publish(diagnostic_message(self.get_clock().now().to_msg(), self.get_name(), statuses))


def _overriding() -> QoSOverridingOptions:
    return QoSOverridingOptions.with_default_policies()


def _topic(kind: str, settings: Settings) -> tuple[Any, str]:
    """Type and name of a topic of a camera."""
    if kind == IMAGE:
        return (Image, "image") if settings.image_transport == "raw" else (CompressedImage, "image/compressed")
    if kind == DEPTH:
        return (Image, "depth") if settings.depth_transport == "raw" else (CompressedImage, "depth/compressedDepth")
    if kind == POSE:
        return (Odometry, "odometry") if settings.pose_source == "odometry" else (PoseStamped, "pose")
    return CameraInfo, "camera_info"


def _kinds(settings: Settings) -> tuple[str, ...]:
    """Topics of a camera besides its images."""
    wanted = {
        CAMERA_INFO: settings.use_camera_info,
        DEPTH: settings.depth_transport != "none",
        POSE: settings.pose_source in ("pose", "odometry"),
    }
    return tuple(kind for kind, is_wanted in wanted.items() if is_wanted)


def main(arguments: list[str] | None = None) -> int:
    """Run the node until it is interrupted; return the exit code."""
    rclpy.init(args=arguments)
    node = None
    try:
        node = ReconstructionNode()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        executor.spin()
    except MapEngineError as error:
        print(f"mapengine: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    if node is not None and node.failure is not None:
        traceback.print_exception(node.failure)
        return 1
    return 0
